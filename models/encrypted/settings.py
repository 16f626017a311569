"""A fine-tuned model's answers, in the clear and as encryption gives them: the polynomial twin over
the ranges that the pre-trained model meets, and evaluation under simulated noise.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

import hesim
from hesim.noise.profiles import profile
from hesim.params import CKKSParams
from models.checks import check_numbers
from models.data.buckets import cut, lengths_of, whole
from models.data.datasets import sample
from models.nn.encoder import Model
from models.nn.lora import Params, combine, is_adapter, is_adapter_or_head, merge, partition
from models.objectives.losses import share_outside
from models.sites.sites import (
    FitSettings,
    Range,
    fit_ranges,
    join_ranges,
    met_ranges,
)
from models.train.classifier import Batch, Forward, exact_forward, simulated_forward, take

__all__ = ["AsEncrypted", "Evaluated", "make_evaluate_task", "merged", "twin_of"]


@dataclasses.dataclass(frozen=True)
class AsEncrypted:
    """The ring that is simulated, and the polynomials of the twin.

    fit: degrees, composites, and how far beyond the ranges met by the pre-trained model they must
    hold, since under encryption nothing can be clipped or penalised; its `ranges` are fixed ones,
    for what the pre-trained model says nothing about, or for one twin on many tasks. Entries of
    `loss.exp`, `loss.inv` and `optimizer.inv_sqrt` are those of a training step
    (`encrypted_step.training_sites`). loss_scale: factor of the loss and so of the gradients, which
    lifts them above the noise: the second moment's, a thousandfold at the first step by its bias
    correction, must stay below AdamW-HE's epsilon, which grows with the square of the factor.
    range_rows: training rows on which the ranges are measured.
    """

    ckks: CKKSParams = CKKSParams(
        log_n=16, levels=12, scale_bits=42, first_bits=50, special_bits=60
    )
    profile: str = "seal"
    fit: FitSettings = FitSettings(
        degrees=(
            ("exp", 31),
            ("gelu", 31),
            ("gelu_tanh", 31),
            ("inv", 31),
            ("inv_sqrt", 31),
            ("relu", 31),
            ("silu", 31),
            ("tanh", 63),
        ),
        margin=1.0,
        ranges=(("tanh", (-5.0, 5.0)),),
    )
    loss_scale: float = 32.0
    range_rows: int = 1024

    def __post_init__(self) -> None:
        check_numbers(self, positive=("loss_scale", "range_rows"))
        profile(self.profile)  # knows the names


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Logits (n, classes), and per site the canonical range met and the share of values outside
    the polynomial's domain (empty for an exact model).

    A row whose polynomials ran away has logits that are no numbers. lost: the numbers of these
    rows. answers: the logits with these rows at 0: class 0, or a rating of 0.
    """

    logits: np.ndarray
    ranges: dict[str, Range]
    outside: dict[str, float]

    @property
    def lost(self) -> np.ndarray:
        return np.flatnonzero(~np.isfinite(self.logits).all(axis=-1))

    @property
    def answers(self) -> np.ndarray:
        finite = np.isfinite(self.logits).all(axis=-1, keepdims=True)
        return np.where(finite, self.logits, np.float32(0))


def merged(model: Model, params: Params) -> tuple[Model, Params]:
    """The same function without adapters: each added to its matrix."""
    if not model.config.lora_rank:
        return model, params
    plain, _ = partition(merge(params, model.config.lora_scale), lambda path: not is_adapter(path))
    return dataclasses.replace(model, config=model.config.replace(lora_rank=0)), plain


def twin_of(
    model: Model, params: Params, train: Batch, buckets: tuple[int, ...], how: AsEncrypted
) -> Model:
    """The model with polynomials over the ranges that it meets on training rows, each widened;
    adapters kept as two thin products.
    """
    rows = sample(len(train.tokens), how.range_rows)
    plain, weights = merged(model, params)
    met = make_evaluate_task(plain, buckets)(weights, take(train, rows)).ranges
    sites = fit_ranges(model.config, met, how.fit)
    return Model(model.config, sites, low_rank=True)


@functools.lru_cache(maxsize=64)
def make_evaluate_task(
    model: Model, buckets: tuple[int, ...], how: AsEncrypted | None = None, size: int = 128
) -> Callable[[Params, Batch], Evaluated]:
    """A function (params, data) -> `Evaluated`, compiled once per bucket (tokens), `size` rows at
    a time.

    how: None without noise. As encrypted, each batch is answered under the noise of a fresh key;
    the sentences are encrypted and, of a model with adapters, whatever LoRA trained.
    """
    forward: Forward = exact_forward(model) if how is None else _noisy(model, how)
    unit, domains = model.units(), model.sites.ranges()

    @jax.jit
    def run(key: jax.Array, params: Params, batch: Batch):
        x = model.embed(params, batch.tokens, batch.types)
        logits, values = forward(key, params, x, batch.mask)
        return logits, met_ranges(values, unit), share_outside(values, unit, domains)

    def evaluate(params: Params, data: Batch) -> Evaluated:
        logits = np.zeros((len(data.tokens), model.config.classes), np.float32)
        ranges: list[Mapping[str, Any]] = []
        outside: dict[str, float] = {}
        for number, plan in enumerate(whole(lengths_of(data), size, buckets)):
            batch = cut(data, plan)
            found, met, share = run(jax.random.key(number), params, batch)
            own = plan.rows[: plan.count]
            logits[own] = np.asarray(found)[: plan.count]
            ranges.append(met)
            for name, value in share.items():
                weight = plan.count / len(data.tokens)
                outside[name] = outside.get(name, 0.0) + weight * float(value)
        return Evaluated(logits, join_ranges(ranges), outside)

    return evaluate


def _noisy(model: Model, how: AsEncrypted) -> Forward:
    """The forward pass under noise, with whatever LoRA trains encrypted beside the sentences."""
    if not model.config.lora_rank:
        return simulated_forward(model, how.ckks, how.profile)

    def forward(key: jax.Array, params: Params, x: jax.Array, mask: jax.Array):
        trained, frozen = partition(params, is_adapter_or_head)
        flags = combine(
            jax.tree.map(lambda _: True, trained), jax.tree.map(lambda _: False, frozen)
        )
        noisy = hesim.simulate(
            model.forward_with_values,
            how.ckks,
            encrypted=(flags, True, False),
            profile=how.profile,
            tier="train",
        )
        return noisy(key, params, x, mask)

    return forward
