"""Random circuits whose operations share operands: the same errors meet again in other places.

Each is a chain of 2 to 12 steps on encrypted square matrices and a public one. A step takes one or
two of the values so far, the newest among them, and multiplies, adds or subtracts them, transposes
or reverses one, centres it along an axis, sums it, or contracts two; then a constant brings the
result to a mean square of 1, as layers keep their values. No value is of a degree above 8 in the
input: beyond that a few elements would have all of the error, and no number of keys would settle
it. No product wraps around the modulus: slots hold it before constants that are still pending. The
seed says it all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

import hesim
from benchmarks.circuit_cases import CircuitCase
from hesim.circuit.gains import stays_pending

__all__ = ["STEPS", "random_case"]

_DEGREE = 8
_MOST_STEPS = 12

_LARGEST = 2.0**15
"""Root mean square of a product in slots: half of a first prime of 50 bits over a scale of 32."""

#: By name: the degrees of the operands that a step multiplies, 0 for those that it only adds, and
#: the step on stacks of square matrices along an axis.
STEPS: dict[str, tuple[tuple[int, ...], Callable[..., Any]]] = {
    "product": ((1, 1), lambda axis, a, b: a * b),
    "square": ((2,), lambda axis, a: a * a),
    "sum": ((0, 0), lambda axis, a, b: a + b),
    "difference": ((0, 0), lambda axis, a, b: a - b),
    "transposed": ((0,), lambda axis, a: _turned(a)),
    "reversed": ((0,), lambda axis, a: jnp.flip(a, axis)),
    "reversed product": ((2,), lambda axis, a: a * jnp.flip(a, axis)),
    "transposed product": ((2,), lambda axis, a: a * _turned(a)),
    "transposed difference": ((0,), lambda axis, a: a - _turned(a)),
    "centred": ((0,), lambda axis, a: a - a.mean(axis, keepdims=True)),
    "times sums": ((1, 1), lambda axis, a, b: a * b.sum(axis, keepdims=True)),
    "less sums": ((0, 0), lambda axis, a, b: a - b.mean(axis, keepdims=True)),
    "contracted": ((1, 1), lambda axis, a, b: a @ (b if axis == -1 else _turned(b))),
    "plus products summed": ((1, 1), lambda axis, a, b: a + (a * b).mean(axis, keepdims=True)),
    "weighted": ((0, 0), lambda axis, a, w: a @ w if axis == -1 else w @ a),
}


@dataclass(frozen=True)
class _Step:
    """One step: its name, the values it takes by number, an axis, and the constant it ends with."""

    name: str
    operands: tuple[int, ...]
    axis: int
    factor: float


def random_case(seed: int) -> CircuitCase:
    """Circuit number `seed`: a matrix of 32 × 32, or for odd seeds a batch of 16 of 16 × 16.

    Every third ends with the sums of its last value along an axis, where shared errors show most.
    """
    rng = np.random.default_rng([2026, seed])
    shape, size = ((16, 16, 16), 16) if seed % 2 else ((32, 32), 32)
    x = (np.sqrt(3.0) * rng.uniform(-1.0, 1.0, shape)).astype(np.float32)
    weight = (rng.normal(size=(size, size)) / np.sqrt(size)).astype(np.float32)
    steps: list[_Step] = []
    values, degrees, pending = [x.astype(np.float64)], [1], [1.0]
    for _ in range(int(rng.integers(2, _MOST_STEPS + 1))):
        step, degree, constant = _step(rng, values, degrees, pending, weight)
        steps.append(step)
        degrees.append(degree)
        pending.append(constant)
        values.append(np.asarray(_run(step, values, weight)))
    summed = seed % 3 == 0

    def chain(x: Any, weight: Any) -> Any:
        found = [x]
        for step in steps:
            found.append(_run(step, found, weight))
        return found[-1].sum(-1) if summed else found[-1]

    return CircuitCase(hesim.trace(chain, x, weight, encrypted=(0,)), (x, weight))


def _step(
    rng: np.random.Generator,
    values: list[Any],
    degrees: list[int],
    pending: list[float],
    weight: Any,
) -> tuple[_Step, int, float]:
    """A step on the newest value, with the constant that brings its result to a mean square of 1,
    the degree of that result, and the constant by which its slots are still to be multiplied.
    """
    chance = 2.0 ** np.arange(len(values))
    while True:
        name = str(rng.choice(list(STEPS)))
        times, axis = STEPS[name][0], int(rng.choice([-1, -2]))
        other = int(rng.choice(len(values), p=chance / chance.sum()))
        operands = (len(values) - 1, other)[: len(times)]
        product = sum(n * degrees[k] for n, k in zip(times, operands, strict=True))
        degree = product or max(degrees[k] for k in operands)
        size = float(
            np.sqrt(np.mean(np.square(_run(_Step(name, operands, axis, 1.0), values, weight))))
        )
        waiting = _waiting(times, [pending[k] for k in operands])
        if degree <= _DEGREE and 0.05 < size < 20.0 and size / waiting < _LARGEST:
            factor = 1.0 / round(size, 2)
            kept = waiting * factor if stays_pending(waiting * factor) else 1.0
            return _Step(name, operands, axis, factor), degree, kept


def _waiting(times: tuple[int, ...], pending: list[float]) -> float:
    """The constant that a step's slots lack before its own: of all factors of a product, or of the
    newest value.
    """
    if not any(times):
        return pending[0]
    return math.prod(constant**n for n, constant in zip(times, pending, strict=True))


def _run(step: _Step, values: list[Any], weight: Any) -> Any:
    taken = [values[k] for k in step.operands]
    if step.name == "weighted":
        taken[1] = weight
    return STEPS[step.name][1](step.axis, *taken) * step.factor


def _turned(x: Any) -> Any:
    return jnp.swapaxes(x, -1, -2)
