"""How far two models of one hidden width are apart: layer by layer, in pooled states, in logits.

A relative error is the root of |student - teacher|^2 / |teacher|^2 over the real tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.data.batches import Batch
from models.data.buckets import bucket_batches, lengths_of, trim
from models.nn.encoder import LayerOutputs, Model
from models.nn.lora import Params
from models.sites.sites import Range, join_ranges, met_ranges

__all__ = [
    "Agreement",
    "agreement",
    "compared",
    "embeddings",
    "layer_outputs",
    "layer_pairs",
    "mean_pooled",
]

BUCKETS = (16, 32, 64, 128)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far a student is from its teacher on some texts, over real tokens.

    states, attention: per student layer the root of |student - teacher|^2 / |teacher|^2, pooled and
    logits too (NaN where shapes differ). ranges: canonical, met by the student.
    """

    states: tuple[float, ...]
    attention: tuple[float, ...]
    pooled: float
    logits: float
    ranges: dict[str, Range]

    def __str__(self) -> str:
        layers = ", ".join(f"{error:.3f}" for error in self.states)
        mixed = ", ".join(f"{error:.3f}" for error in self.attention)
        return f"hidden states {layers}; attention {mixed}; pooled {self.pooled:.3f}"


def layer_pairs(teacher: Model, student: Model) -> tuple[tuple[int, int], ...]:
    """(student's layer, the teacher's that it learns from): evenly spread, last with last."""
    t, s = teacher.config.layers, student.config.layers
    return tuple((i, math.ceil((i + 1) * t / s) - 1) for i in range(s))


Terms = dict[str, tuple[jax.Array, jax.Array]]
"""Sums of squared differences, and of squares of the teacher's, by name."""


def compared(
    teacher: LayerOutputs,
    student: LayerOutputs,
    real: jax.Array,
    pairs: tuple[tuple[int, int], ...],
) -> Terms:
    """Sums over the tokens where `real` (batch, tokens) is 1, for every part whose shapes agree."""
    terms: Terms = {}

    def compare(name: str, theirs: jax.Array, own: jax.Array, weight: Any = 1.0) -> None:
        if theirs.shape == own.shape:
            difference = (own - theirs).astype(jnp.float32)
            square = jnp.square(theirs.astype(jnp.float32))
            terms[name] = (jnp.sum(weight * jnp.square(difference)), jnp.sum(weight * square))

    for i, j in pairs:
        compare(f"states/{i}", teacher.states[j], student.states[i], real[..., None])
        compare(f"attention/{i}", teacher.attention[j], student.attention[i], real[..., None])
    compare("pooled", mean_pooled(teacher.final, real), mean_pooled(student.final, real))
    compare("logits", teacher.logits, student.logits, real[:, :1])
    return terms


def mean_pooled(states: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the real tokens: (batch, tokens, hidden), (batch, tokens) -> (batch, hidden)."""
    total = jnp.einsum("bth,bt->bh", states, mask)
    return total / jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1.0)


def layer_outputs(model: Model, params: Params, rows: Any) -> LayerOutputs:
    """What every layer computes from token ids: `tokens`, `mask` and `types` of a batch."""
    return model.layer_outputs(params, model.embed(params, rows.tokens, rows.types), rows.mask)


@functools.lru_cache(maxsize=4)
def _measure(teacher: Model, student: Model) -> Callable[..., Any]:
    pairs, unit = layer_pairs(teacher, student), student.units()

    @jax.jit
    def run(theirs: Params, own: Params, rows: Batch, counted: Any) -> Any:
        found = layer_outputs(student, own, rows)
        expected = layer_outputs(teacher, theirs, rows)
        terms = compared(expected, found, rows.mask * counted[:, None], pairs)
        return terms, met_ranges(found.values, unit)

    return run


def agreement(
    teacher: Model,
    teacher_params: Params,
    student: Model,
    params: Params,
    rows: Batch,
    *,
    batch: int = 32,
    buckets: tuple[int, ...] = BUCKETS,
) -> Agreement:
    """How far the student is from the teacher on all rows (their targets are not looked at)."""
    run = _measure(teacher, student)
    sums: dict[str, np.ndarray] = {}
    met: list[Mapping[str, Any]] = []
    for plan in bucket_batches(lengths_of(rows), batch, buckets):
        part = trim(rows, plan)
        counted = (np.arange(len(plan.rows)) < plan.count).astype(np.float32)
        terms, ranges = run(teacher_params, params, part, counted)
        for name, pair in terms.items():
            sums[name] = sums.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
        met.append(ranges)
    roots = {name: math.sqrt(a / b) if b else math.nan for name, (a, b) in sums.items()}
    layers = range(student.config.layers)
    return Agreement(
        tuple(roots.get(f"states/{i}", math.nan) for i in layers),
        tuple(roots.get(f"attention/{i}", math.nan) for i in layers),
        roots.get("pooled", math.nan),
        roots.get("logits", math.nan),
        join_ranges(met),
    )


@functools.lru_cache(maxsize=4)
def _embed(model: Model) -> Callable[..., Any]:
    @jax.jit
    def run(params: Params, rows: Batch) -> jax.Array:
        x = model.embed(params, rows.tokens, rows.types)
        states, _ = model.hidden_states(params, x, rows.mask)
        pooled = mean_pooled(states, rows.mask)
        return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)

    return run


def embeddings(
    model: Model,
    params: Params,
    rows: Batch,
    *,
    batch: int = 64,
    buckets: tuple[int, ...] = BUCKETS,
) -> np.ndarray:
    """Means of the final states over real tokens, of length 1: (n, hidden)."""
    out = np.zeros((len(rows.tokens), model.config.hidden), np.float32)
    for plan in bucket_batches(lengths_of(rows), batch, buckets):
        part = trim(rows, plan)
        found = _embed(model)(params, part)
        out[plan.rows[: plan.count]] = np.asarray(found)[: plan.count]
    return out
