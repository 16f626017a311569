"""The published two-layer model, and smaller ones of the same operations: Programs and arguments.

Weights and tokens are random, which costs what trained ones cost; polynomials are fitted to the
ranges that the model meets on a few sentences, the one that is encrypted among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import hesim
from hesim.params import CKKSParams
from hesim.program import Program
from models.config import EncoderConfig, preset
from models.data.batches import Batch
from models.nn.encoder import Model
from models.sites.sites import fit_ranges
from models.train.evaluate import collect_ranges

__all__ = ["SIZES", "Sentence", "bootstrapped", "key_holder", "sentence", "shapes"]

_COLLECTED = 4
"""Sentences on which ranges are collected."""

_WHOLE = preset("paper", initial_std=None)
_SMALL = {"ffn": 1024, "sequence": 32, "vocabulary": 1024, "pooler": (32, 256)}
_TINY = {"ffn": 64, "sequence": 8, "vocabulary": 128, "pooler": (8, 16)}

SIZES: Mapping[str, EncoderConfig] = {
    "whole": _WHOLE,
    "layer": _WHOLE.replace(layers=1),
    "small": _WHOLE.replace(hidden=256, heads=4, **_SMALL),
    "tiny": _WHOLE.replace(hidden=48, heads=3, **_TINY),
}
"""Models by name: two layers as published, one layer, and narrower ones with fewer tokens. Weights
are by the width of their matrices, so that logits are about 1, as those of trained models.
"""


def key_holder(log_n: int = 15) -> CKKSParams:
    """The shortest chain that holds what lies between two refreshes by the key holder."""
    return CKKSParams(log_n, 4, 40, 50, 60)


def bootstrapped() -> CKKSParams:
    """N = 2^16 and a chain for few refreshes, as planned at the price of a bootstrap."""
    return CKKSParams(16, 20, 40, 50, 60)


@dataclass(frozen=True)
class Sentence:
    """One sentence: the Program of the logits of its rows, and arguments.

    Attributes:
      config, model: with fitted polynomials. program: rows encrypted, weights and mask public.
      params: weights. rows: float32 (1, tokens, hidden). mask: float32 (1, tokens).
    """

    config: EncoderConfig
    model: Model
    program: Program
    params: Any
    rows: np.ndarray
    mask: np.ndarray

    @property
    def args(self) -> tuple[Any, np.ndarray, np.ndarray]:
        return self.params, self.rows, self.mask


def sentence(config: EncoderConfig) -> Sentence:
    """A random sentence for a random model of this shape, every token of it real."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, config.vocabulary, (_COLLECTED, config.sequence)).astype(np.int32)
    batch = Batch(tokens, np.ones(tokens.shape, np.float32), np.zeros(_COLLECTED, int))
    exact = Model(config)
    params = exact.init(jax.random.key(0))
    model = exact.with_sites(fit_ranges(config, collect_ranges(exact, params, batch)))
    rows = np.asarray(model.embed(params, tokens[:1]))
    mask = np.ones((1, config.sequence), np.float32)
    program = hesim.trace(model.encrypted_forward, params, rows, mask, encrypted=(1,))
    return Sentence(config, model, program, params, rows, mask)


def shapes(config: EncoderConfig) -> str:
    """The shape of a model in a few words."""
    return (
        f"{config.layers} x {config.hidden} x {config.heads}, {config.sequence} tokens, "
        f"{config.vocabulary:,} words, feed-forward 2 x {config.ffn // 2}"
    )
