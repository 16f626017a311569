"""Maxima of several values by functions of one: max(a, b) = b + relu(a - b), in rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hesim.tracing.reductions import shifted

__all__ = ["Shift", "cumulative", "larger", "over_axes", "over_windows", "smaller"]


@dataclass(frozen=True)
class Shift:
    """What stands for a maximum that only shifts what it is subtracted from, as in softmax.

    Attributes:
      constant: a number near the maxima, or near their distance from the mean.
      mean: whether the mean over the axes is added.
    """

    constant: float
    mean: bool

    def apply(self, x: Any, axes: Sequence[int], hidden: Any = None) -> Any:
        """In the place of the maxima of x over axes; `hidden`: where x is left out of the mean."""
        if self.mean:
            count: Any = float(np.prod([x.shape[k] for k in axes]))
            if hidden is not None:
                x = lax.select(hidden, jnp.zeros_like(x), x)
                there = lax.convert_element_type(lax.bitwise_not(hidden), x.dtype)
                count = lax.max(lax.reduce_sum(there, tuple(axes)), jnp.ones((), x.dtype))
            total = lax.reduce_sum(x, tuple(axes)) * (1.0 / count)
            return total + jnp.asarray(self.constant, x.dtype)
        shape = [n for k, n in enumerate(x.shape) if k not in axes]
        return lax.full(shape, self.constant, x.dtype)


def larger(a: Any, b: Any) -> Any:
    """max(a, b), of which a is encrypted."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    difference = a - b
    return b + lax.max(difference, jnp.zeros((), difference.dtype))


def smaller(a: Any, b: Any) -> Any:
    """min(a, b), of which a is encrypted."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    difference = a - b
    return a - lax.max(difference, jnp.zeros((), difference.dtype))


def over_axes(x: Any, axes: Sequence[int]) -> Any:
    """The largest element over axes, in as many rounds as their product has bits."""
    kept = [k for k in range(x.ndim) if k not in axes]
    shape = [x.shape[k] for k in kept]
    count = int(np.prod([x.shape[k] for k in axes]))
    x = lax.reshape(lax.transpose(x, (*axes, *kept)), (count, *shape))
    while x.shape[0] > 1:
        half = x.shape[0] // 2
        first, second = lax.slice_in_dim(x, 0, half), lax.slice_in_dim(x, half, 2 * half)
        rest = lax.slice_in_dim(x, 2 * half, x.shape[0])
        pairs = larger(first, second)
        x = lax.concatenate([pairs, rest], 0) if rest.shape[0] else pairs
    return lax.index_in_dim(x, 0, keepdims=False)


def over_windows(x: Any, params: Mapping[str, Any]) -> Any:
    """The largest element in each window, as `lax.reduce_window` with a maximum."""
    parts = _shifted(x, params)
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [_joined(a, b) for a, b in pairs] + parts[len(parts) - len(parts) % 2 :]
    value, mask = parts[0]
    assert np.all(mask), "a window lies outside of what it slides over"
    return value


def cumulative(x: Any, axis: int, reverse: bool) -> Any:
    """Running maxima by doubling."""
    x = lax.rev(x, (axis,)) if reverse else x
    n, reach = x.shape[axis], 1
    while reach < n:
        near = lax.slice_in_dim(x, 0, reach, axis=axis)
        far = lax.slice_in_dim(x, reach, n, axis=axis)
        before = lax.slice_in_dim(x, 0, n - reach, axis=axis)
        x = lax.concatenate([near, larger(far, before)], axis)
        reach *= 2
    return lax.rev(x, (axis,)) if reverse else x


_Part = tuple[Any, np.ndarray]
"""One value for each window, and where there is one: elsewhere it lies outside."""


def _joined(left: _Part, right: _Part) -> _Part:
    """The larger where both are, one of them where it is alone."""
    (a, here), (b, there) = left, right
    both = larger(a, b)
    if np.all(here & there):
        return both, here
    alone = lax.select(jnp.asarray(here), a, b)
    return lax.select(jnp.asarray(here & there), both, alone), here | there


def _shifted(x: Any, params: Mapping[str, Any]) -> list[_Part]:
    """One strided slice of x for each place in a window, and where it lies inside of x."""
    with jax.ensure_compile_time_eval():
        inside = [np.asarray(part) for part in shifted(jnp.ones(x.shape, bool), False, params)]
    return list(zip(shifted(x, 0.0, params), inside, strict=True))
