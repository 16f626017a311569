"""Reductions with a computation of their own, over axes and windows, and running products."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hesim.tracing.call import Call, over_elements

__all__ = ["cumulative_product", "reduced", "shifted", "window_sums", "windowed"]

Values = list[Any]
Combine = Callable[[Values, Values], Values]


def reduced(call: Call) -> Callable[..., Any]:
    """`lax.reduce` with a computation that is no sum, product or comparison."""
    params = call.params
    count = len(call.operands) // 2
    jaxpr, axes = params["jaxpr"], params["dimensions"]
    rest = call.operands[0].ndim - len(axes)
    combine = _combining(jaxpr, (), rest)
    halve = _associative(jaxpr, (), call.operands[:count])

    def fn(*operands: Any) -> list[Any]:
        xs, first = operands[:count], list(operands[count:])
        kept = [k for k in range(xs[0].ndim) if k not in axes]
        shape = [xs[0].shape[k] for k in kept]
        total = [jnp.broadcast_to(a, shape) for a in first]
        rows = [x.transpose((*axes, *kept)).reshape(-1, *shape) for x in xs]
        parts = [_Part([row[k] for row in rows], None) for k in range(rows[0].shape[0])]
        return _folded(total, parts, combine, halve)

    return fn


def windowed(call: Call) -> Callable[..., Any]:
    """`lax.reduce_window` with a computation that is no sum or comparison."""
    params = call.params
    count = len(call.operands) // 2
    jaxpr, consts = params["jaxpr"], params["consts"]
    combine = _combining(jaxpr, consts, call.operands[0].ndim)
    halve = _associative(jaxpr, consts, call.operands[:count])

    def fn(*operands: Any) -> list[Any]:
        xs, first = operands[:count], operands[count:]
        split = [shifted(x, a, params) for x, a in zip(xs, first, strict=True)]
        with jax.ensure_compile_time_eval():
            inside = shifted(jnp.ones(xs[0].shape, bool), False, params)
            masks = [np.asarray(mask) for mask in inside]
        parts = [_Part(list(x), mask) for *x, mask in zip(*split, masks, strict=True)]
        total = [jnp.broadcast_to(a, masks[0].shape) for a in first]
        return _folded(total, parts, combine, halve)

    return fn


def window_sums(call: Call) -> Callable[..., Any]:
    """A sum over sliding windows, axis by axis: of the parts of an axis where windows lie side by
    side, else of as many slices as the extent of a window has bits.
    """
    p = call.params
    steps = [p[k] for k in ("window_dimensions", "window_strides", "window_dilation")]

    def fn(x: Any) -> Any:
        pads = [(*pad, b - 1) for pad, b in zip(p["padding"], p["base_dilation"], strict=True)]
        if any(any(pad) for pad in pads):
            x = lax.pad(x, jnp.zeros((), x.dtype), pads)
        for axis, (extent, stride, apart) in enumerate(zip(*steps, strict=True)):
            if extent == stride and apart == 1:
                x = _sum_of_parts(x, axis, extent)
                continue
            x = _sliding_sum(x, axis, extent, apart)
            if stride > 1:
                x = lax.slice_in_dim(x, 0, x.shape[axis], stride, axis)
        return x

    return fn


def _sum_of_parts(x: Any, axis: int, extent: int) -> Any:
    """Sums of `extent` neighbours that lie side by side; what is left over is in none."""
    if extent == 1:
        return x
    count = x.shape[axis] // extent
    if count * extent < x.shape[axis]:
        x = lax.slice_in_dim(x, 0, count * extent, axis=axis)
    shape = *x.shape[:axis], count, extent, *x.shape[axis + 1 :]
    return x.reshape(shape).sum(axis + 1)


def _sliding_sum(x: Any, axis: int, extent: int, apart: int) -> Any:
    """Sums of `extent` elements at equal distances, from every start that has so many."""

    def added(low: Any, high: Any, reach: int) -> Any:
        count = min(low.shape[axis], high.shape[axis] - reach)
        near = lax.slice_in_dim(low, 0, count, axis=axis)
        return near + lax.slice_in_dim(high, reach, reach + count, axis=axis)

    power, rest, size = x, None, 1
    while True:
        if extent & size:
            rest = power if rest is None else added(power, rest, size * apart)
        if 2 * size > extent:
            return rest
        power = added(power, power, size * apart)
        size *= 2


def cumulative_product(call: Call) -> Callable[..., Any]:
    """Running products by doubling: ceil(log2 n) products deep."""
    axis, reverse = call.params["axis"], call.params["reverse"]

    def fn(x: Any) -> Any:
        n, reach = x.shape[axis], 1
        x = lax.rev(x, (axis,)) if reverse else x
        while reach < n:
            near = lax.slice_in_dim(x, 0, reach, axis=axis)
            far = lax.slice_in_dim(x, reach, n, axis=axis)
            before = lax.slice_in_dim(x, 0, n - reach, axis=axis)
            x = lax.concatenate([near, far * before], axis)
            reach *= 2
        return lax.rev(x, (axis,)) if reverse else x

    return fn


def _combining(jaxpr: Any, consts: Sequence[Any], rank: int) -> Combine:
    apply = over_elements(jaxpr, consts, rank)
    return lambda left, right: list(apply(*left, *right))


def _associative(jaxpr: Any, consts: Sequence[Any], operands: Sequence[Any]) -> bool:
    """Whether a computation gives the same in any grouping, tried on a few numbers: then it is done
    by halves, which is fewer products deep. Another one is done in order, as XLA does it on a CPU.
    """
    rng = np.random.default_rng(0)
    with jax.ensure_compile_time_eval():
        try:
            combine = _combining(jaxpr, consts, 1)
            a, b, c = (
                [jnp.asarray(rng.uniform(-1, 1, 8), x.dtype) for x in operands] for _ in range(3)
            )
            left, right = combine(combine(a, b), c), combine(a, combine(b, c))
            return all(
                np.allclose(one, two, 1e-3, 1e-3) for one, two in zip(left, right, strict=True)
            )
        except Exception:  # it closes over traced values, or fails on such numbers
            return False


class _Part(NamedTuple):
    """One summand, so to speak, of every result, and where it is one (None: everywhere)."""

    values: Values
    mask: np.ndarray | None


def _folded(total: Values, parts: list[_Part], combine: Combine, halve: bool) -> Values:
    if not halve:
        for part in parts:
            total = _joined(_Part(total, None), part, combine).values
        return total
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [_joined(a, b, combine) for a, b in pairs] + parts[len(parts) - len(parts) % 2 :]
    return _joined(_Part(total, None), parts[0], combine).values if parts else total


def _joined(left: _Part, right: _Part, combine: Combine) -> _Part:
    """Both where both are, one of them where it is alone."""
    both = combine(left.values, right.values)
    if left.mask is None and right.mask is None:
        return _Part(both, None)
    shape = both[0].shape
    here, there = (np.ones(shape, bool) if p.mask is None else p.mask for p in (left, right))
    values = [
        jnp.where(here & there, c, jnp.where(here, a, b))
        for a, b, c in zip(left.values, right.values, both, strict=True)
    ]
    return _Part(values, None if np.all(here | there) else here | there)


def shifted(x: Any, first: Any, params: Mapping[str, Any]) -> list[Any]:
    """One strided slice of x for each place in a window; what lies outside x is `first`."""
    base, pads = params["base_dilation"], params["padding"]
    config = [(low, high, b - 1) for (low, high), b in zip(pads, base, strict=True)]
    if any(any(c) for c in config):
        x = lax.pad(x, jnp.asarray(first, x.dtype), config)
    extents, apart = params["window_dimensions"], params["window_dilation"]
    strides = params["window_strides"]
    counts = [
        (d - (w - 1) * a - 1) // s + 1
        for d, w, a, s in zip(x.shape, extents, apart, strides, strict=True)
    ]
    found = []
    for place in itertools.product(*map(range, extents)):
        start = [i * a for i, a in zip(place, apart, strict=True)]
        stop = [b + (n - 1) * s + 1 for b, n, s in zip(start, counts, strides, strict=True)]
        found.append(lax.slice(x, start, stop, strides))
    return found
