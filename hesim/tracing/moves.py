"""Operations that only move encrypted elements, written as moves that have rows of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from hesim.tracing.call import Call

__all__ = ["filled", "finite", "sorted_by_public", "unstacked"]


def finite(fill: float | None) -> bool:
    """Whether a gather fills with a number, not with the NaN that stands where none is given."""
    return fill is not None and bool(np.isfinite(fill))


def sorted_by_public(call: Call) -> Callable[..., Any] | None:
    """A sort by public keys only moves the encrypted operands."""
    params = call.params
    keys = params["num_keys"]
    if any(call.secret[:keys]):
        return None
    axis = params["dimension"]
    moved = [k for k, secret in enumerate(call.secret) if secret]

    def fn(*operands: Any) -> list[Any]:
        shape = operands[0].shape
        number = lax.broadcasted_iota(np.int32, shape, axis)
        public = [x for k, x in enumerate(operands) if k not in moved]
        *found, order = lax.sort(
            (*public, number), dimension=axis, num_keys=keys, is_stable=params["is_stable"]
        )
        rest = iter(found)
        return [
            jnp.take_along_axis(x, order, axis) if k in moved else next(rest)
            for k, x in enumerate(operands)
        ]

    return fn


def unstacked(call: Call) -> Callable[..., Any]:
    """The rows of one axis, each as a slice."""
    axis = call.params["axis"]

    def fn(x: Any) -> list[Any]:
        return [lax.index_in_dim(x, k, axis, keepdims=False) for k in range(x.shape[axis])]

    return fn


def filled(call: Call) -> Callable[..., Any] | None:
    """A gather that fills what lies outside with a number: with zeros, then chosen by a mask."""
    params = call.params
    fill = params["fill_value"]
    outside = lax.GatherScatterMode.FILL_OR_DROP
    if call.secret[1] or params["mode"] != outside or not finite(fill) or fill == 0:
        return None

    def fn(x: Any, indices: Any) -> Any:
        within = lax.full(x.shape, True)
        there = call.primitive.bind(within, indices, **{**params, "fill_value": False})
        got = call.primitive.bind(x, indices, **{**params, "fill_value": 0})
        return jnp.where(there, got, jnp.asarray(fill, x.dtype))

    return fn
