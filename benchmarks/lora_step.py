"""A whole LoRA training step as one traced program: forward, loss, backward and AdamW-HE."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import hesim
from hesim.program import Program
from models.config import EncoderConfig
from models.data.batches import Batch
from models.encrypted.update import (
    PolynomialSoftmax,
    encrypted_arguments,
    lora_update,
    training_sites,
)
from models.nn.encoder import Model
from models.nn.lora import is_adapter_or_head, partition
from models.sites.sites import FitSettings, fit_ranges
from models.train.evaluate import collect_ranges
from models.train.optim import adamw_he

__all__ = ["lora_step"]

SMALLEST = EncoderConfig(
    layers=1,
    hidden=8,
    heads=2,
    ffn=4,
    sequence=8,
    vocabulary=32,
    pooler=(8,),
    lora_rank=1,
    first_norm=True,
)
"""One layer of 8 features with adapters of rank 1, on sentences of 8 tokens."""


def lora_step(
    config: EncoderConfig = SMALLEST, sentences: int = 4
) -> tuple[Program, tuple[Any, ...]]:
    """The step of a model with fresh weights on random words, with a polynomial root in the
    optimizer, and its arguments: sentences, labels, adapters, head and moments are encrypted.
    """
    rng = np.random.default_rng(0)
    size = sentences, config.sequence
    tokens = rng.integers(3, config.vocabulary, size).astype(np.int32)
    targets = rng.integers(0, 2, sentences).astype(np.int32)
    data = Batch(tokens, np.ones(size, np.float32), targets)
    exact = Model(config, low_rank=True)
    params = exact.init(jax.random.key(0))
    ranges = collect_ranges(exact, params, data)
    model = exact.with_sites(fit_ranges(config, ranges, FitSettings(margin=1.0)))
    trained, frozen = partition(params, is_adapter_or_head)
    sites = training_sites(2)
    root = sites.get("optimizer.inv_sqrt")
    optimizer = adamw_he(1e-2, eps=6e-4, inv_sqrt=root, prescale=1.0, stacked=True)
    state = optimizer.init(trained)
    update = lora_update(model, optimizer, PolynomialSoftmax.of(sites))
    labels = np.eye(2, dtype=np.float32)[data.targets]
    x = np.asarray(model.embed(params, tokens))
    args = (trained, state, frozen, x, data.mask, labels, np.float32(1))
    return hesim.trace(update, *args, encrypted=encrypted_arguments(state)), args
