"""The exact twin in JAX: every operation's value in float64, and polynomial domains checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import tree_util

from he_backend.errors import BackendError, DomainError, EncodeError
from hesim.domains import inside, public_polynomials
from hesim.program import Equation, Literal, Program, widened

if TYPE_CHECKING:
    from hesim.calibrate import Calibration

__all__ = ["Exact", "check_domain", "evaluate", "unchecked", "unlike"]

_WIDER = 0.25
"""Part of its width by which a calibrated range may be exceeded on either side."""


@dataclass(frozen=True)
class Exact:
    """A Program evaluated in the clear.

    Attributes:
      inputs: the encrypted leaves, float64, in order.
      outputs: as fn's result, float64.
      ranges: smallest and largest value of the first result of each operation of `program.ops`.
      ops: those results, float64, if they were asked for.
      fed: what a polynomial was fed, by its place in `program.ops`: smallest and largest value, and
        how many were outside its domain.
      outside: one message for each polynomial that is fed values outside its domain, those of
        public values first; what is said of bootstraps is added by who checks them.
    """

    inputs: list[np.ndarray]
    outputs: Any
    ranges: list[tuple[float, float]]
    ops: list[np.ndarray]
    outside: list[BackendError]
    fed: dict[int, tuple[float, float, int]] = field(default_factory=dict)


def evaluate(program: Program, args: Sequence[Any], keep_ops: bool = True) -> Exact:
    """Evaluate `program` on `args`: what is encrypted in float64, what is public as traced.

    Args:
      program, args: as for `program(*args)`.
      keep_ops: keep the result of every operation; otherwise only its range.

    Raises:
      EncodeError: an encrypted argument holds NaN or infinity.
      TraceError: arguments of another structure or shape.
    """
    flat = widened(program.flatten(args), program.inputs)
    secret = [x for x, v in zip(flat, program.inputs) if v.encrypted]
    labels = [s for s, v in zip(program.labels, program.inputs) if v.encrypted]
    for label, values in zip(labels, secret, strict=True):
        if not np.all(np.isfinite(values)):
            bad = int(np.sum(~np.isfinite(values)))
            raise EncodeError(
                f"{bad} of {values.size} values are NaN or infinite; clean the input first"
            ).at(f"input {label}", "")
    watched = {
        v.id
        for e in program.ops
        if e.name == "polynomial"
        for v in e.inputs
        if not isinstance(v, Literal)
    }
    known = {v.id: x for v, x in zip(program.inputs, flat, strict=True) if v.id in watched}
    ranges: list[tuple[float, float]] = []
    ops: list[np.ndarray] = []
    outside: list[BackendError] = []
    met: dict[int, tuple[float, float, int]] = {}
    for equation, values in public_polynomials(program, flat):
        outside.extend(check_domain(equation, values))

    def hook(equation: Equation, results: list[Any]) -> list[Any]:
        if equation.name == "polynomial":
            operand = equation.inputs[0]
            fed = operand.value if isinstance(operand, Literal) else known[operand.id]
            outside.extend(check_domain(equation, fed))
            wrong = int(np.sum(~inside(equation, fed)))
            met[len(ranges)] = (*_range(np.asarray(fed, np.float64)), wrong)
        for var, value in zip(equation.outputs, results, strict=True):
            if var.id in watched:
                known[var.id] = np.asarray(value, np.float64)
        first = np.asarray(results[0], np.float64)
        ranges.append(_range(first))
        if keep_ops:
            ops.append(first)
        return results

    with jax.enable_x64(True):
        outputs = [np.asarray(v) for v in program.evaluate(flat, hook, wide=True)]
    result = tree_util.tree_unflatten(program.out_tree, outputs)
    return Exact(secret, result, ranges, ops, outside, met)


def unchecked(program: Program, args: Sequence[Any]) -> Exact:
    """What is known of `program` on `args` where nothing encrypted is evaluated: the inputs. There
    are no outputs, and ranges are NaN.

    Raises:
      TraceError: arguments of another structure or shape.
    """
    flat = widened(program.flatten(args), program.inputs)
    secret = [x for x, v in zip(flat, program.inputs) if v.encrypted]
    nowhere = (float("nan"), float("nan"))
    return Exact(secret, None, [nowhere] * len(program.ops), [], [])


def _range(values: np.ndarray) -> tuple[float, float]:
    return float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))


def unlike(program: Program, exact: Exact, calibration: Calibration) -> list[DomainError]:
    """One DomainError for the first operation whose values leave its calibrated range, widened.

    Later operations follow from it and are not listed.

    Raises:
      BackendError: the calibration is of another program.
    """
    if [op.name for op in calibration.ops] != [e.name for e in program.ops]:
        raise BackendError(
            "the calibration is of another program; take hesim.calibrate(program, batches)"
        )
    for (low, high), met in zip(exact.ranges, calibration.ops, strict=True):
        margin = _WIDER * max(met.high - met.low, met.largest) + 1e-12
        if low < met.low - margin or high > met.high + margin:
            error = DomainError(
                f"values from {low:.5g} to {high:.5g} where calibration met {met.low:.5g} to "
                f"{met.high:.5g}: the data is unlike the calibration data; calibrate on data like "
                f"it, or pass outside='warn'"
            )
            error.at(met.name, met.source)
            return [error]
    return []


def check_domain(equation: Equation, fed: np.ndarray) -> list[DomainError]:
    """A DomainError if the values that the polynomial `equation` is fed leave its domain, be it
    beyond its ends or into a gap between its intervals.
    """
    values = np.asarray(fed, np.float64)
    poly = equation.params["poly"]
    outside = ~inside(equation, values)
    bad = int(np.sum(outside))
    if not bad:
        return []
    wrong = values[outside]
    low, high = poly.hull
    within = bool(np.all((wrong > low) & (wrong < high)))
    advice = (
        "fit it on a domain that holds them, or keep values out of the gap"
        if within
        else "fit it on a wider domain, or penalise the range in training"
    )
    of_what = "" if equation.encrypted else "public "
    error = DomainError(
        f"{bad} of {values.size} {of_what}values, from {wrong.min():.5g} to {wrong.max():.5g}, are "
        f"fed to {poly!r} outside its domain {_union(poly.intervals)}; {advice}"
    )
    source = equation.source
    error.at(f"polynomial {poly.name}", str(source) if source is not None else "")
    return [error]


def _union(intervals: Sequence[tuple[float, float]]) -> str:
    return " and ".join(f"[{low:g}, {high:g}]" for low, high in intervals)
