"""Scatters that do more than add or set, written as reads, element-wise operations and sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hesim.tracing.call import Call, over_elements

__all__ = ["multiplied", "read_numbers", "sets", "subtracted", "targets", "updated"]

_MOST_WINDOWS = 256
"""Updates at places known only at run time that are applied one after the other."""


def sets(params: dict[str, Any]) -> bool:
    """Whether a `scatter` replaces elements by the updates, and does nothing else to them."""
    jaxpr = params["update_jaxpr"]
    if jaxpr is None:
        return True
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    return not inner.eqns and inner.outvars[0] is inner.invars[1]


def read_numbers(numbers: Any) -> lax.GatherDimensionNumbers:
    """How a gather reads what a scatter of these dimension numbers writes."""
    return lax.GatherDimensionNumbers(
        offset_dims=numbers.update_window_dims,
        collapsed_slice_dims=numbers.inserted_window_dims,
        start_index_map=numbers.scatter_dims_to_operand_dims,
        operand_batching_dims=numbers.operand_batching_dims,
        start_indices_batching_dims=numbers.scatter_indices_batching_dims,
    )


def windows(numbers: Any, operand: tuple[int, ...], updates: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of one window of a scatter in its operand."""
    sizes = iter([updates[k] for k in numbers.update_window_dims])
    skipped = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    return tuple(1 if k in skipped else next(sizes) for k in range(len(operand)))


def targets(
    params: dict[str, Any], operand: tuple[int, ...], updates: tuple[int, ...], indices: np.ndarray
) -> np.ndarray:
    """Flat place in the operand of every element of the updates, int64 of their shape; -1 where it
    is outside and dropped.
    """
    numbers, mode = params["dimension_numbers"], params["mode"]
    if mode == lax.GatherScatterMode.FILL_OR_DROP:
        mode = "fill"
    places = jnp.arange(int(np.prod(operand, dtype=np.int64)), dtype=jnp.int32).reshape(operand)
    found = lax.gather(
        places,
        jnp.asarray(indices),
        read_numbers(numbers),
        windows(numbers, operand, updates),
        mode=mode,
        fill_value=-1,
    )
    return np.asarray(found, np.int64)


def subtracted(call: Call) -> Callable[..., Any]:
    """operand - updates at their places, as an addition."""

    def fn(operand: Any, indices: Any, updates: Any) -> Any:
        return lax.scatter_add(operand, indices, -updates, **_options(call.params))

    return fn


def multiplied(call: Call) -> Callable[..., Any] | None:
    """operand * updates at their places: one product where the updates are public."""
    if call.secret[1]:
        return None
    if call.secret[2]:
        return updated(call)

    def fn(operand: Any, indices: Any, updates: Any) -> Any:
        ones = lax.full(operand.shape, 1, operand.dtype)
        return operand * lax.scatter_mul(ones, indices, updates, **_options(call.params))

    return fn


def updated(call: Call) -> Callable[..., Any] | None:
    """A scatter that computes what it writes from what is there: the elements are read, computed
    and set. Where updates share a place they come one after the other.
    """
    params = call.params
    if call.secret[1] or call.primitive.name == "scatter" and sets(params):
        return None
    jaxpr, consts = params["update_jaxpr"], params["update_consts"]
    operand, indices, updates = call.operands
    shape = updates.shape

    def write(operand: Any, indices: Any, updates: Any) -> Any:
        numbers = params["dimension_numbers"]
        sizes = windows(numbers, operand.shape, updates.shape)
        here = lax.gather(operand, indices, read_numbers(numbers), sizes, mode="clip")
        (new,) = over_elements(jaxpr, consts, updates.ndim)(here, updates)
        return lax.scatter(operand, indices, new, **_options(params, unique=True))

    number = params["dimension_numbers"]
    count = [d for k, d in enumerate(shape) if k not in number.update_window_dims]
    known = call.constant(1)
    if params["unique_indices"] or int(np.prod(count, dtype=np.int64)) <= 1:
        return write
    if known is not None:
        with jax.ensure_compile_time_eval():
            place = targets(params, operand.shape, shape, known).reshape(-1)
        layer = _occurrence(place)
        if not np.any(layer > 0):
            return write
        return _in_layers(place, layer, lambda a, b: over_elements(jaxpr, consts, 1)(a, b)[0])
    if int(np.prod(count, dtype=np.int64)) > _MOST_WINDOWS or number.operand_batching_dims:
        return None
    return _one_by_one(call, write)


def _occurrence(place: np.ndarray) -> np.ndarray:
    """How many earlier entries equal each; -1 for places outside."""
    order = np.argsort(place, kind="stable")
    ordered = place[order]
    first = np.searchsorted(ordered, ordered, side="left")
    out = np.empty(len(place), np.int64)
    out[order] = np.arange(len(place)) - first
    return np.where(place >= 0, out, -1)


def _in_layers(place: np.ndarray, layer: np.ndarray, compute: Callable[..., Any]):
    """Updates at known places, those that share one in the order in which they are written."""

    def fn(operand: Any, _indices: Any, updates: Any) -> Any:
        flat, given = operand.reshape(-1), updates.reshape(-1)
        for k in range(int(layer.max()) + 1):
            chosen = np.flatnonzero(layer == k)
            at = place[chosen]
            flat = flat.at[at].set(compute(flat[at], given[chosen]), unique_indices=True)
        return flat.reshape(operand.shape)

    return fn


def _one_by_one(call: Call, write: Callable[..., Any]) -> Callable[..., Any]:
    """Windows at places known only at run time, which may coincide, one after the other."""
    numbers = call.params["dimension_numbers"]
    shape = call.operands[2].shape
    free = [k for k in range(len(shape)) if k not in numbers.update_window_dims]
    batch = [shape[k] for k in free]

    def fn(operand: Any, indices: Any, updates: Any) -> Any:
        for where in np.ndindex(*batch):
            row = indices[tuple(slice(i, i + 1) for i in where)]
            cut: list[slice] = [slice(None)] * len(shape)
            for axis, i in zip(free, where, strict=True):
                cut[axis] = slice(i, i + 1)
            operand = write(operand, row, updates[tuple(cut)])
        return operand

    return fn


def _options(params: dict[str, Any], *, unique: bool = False) -> dict[str, Any]:
    return {
        "dimension_numbers": params["dimension_numbers"],
        "indices_are_sorted": params["indices_are_sorted"],
        "unique_indices": unique or params["unique_indices"],
        "mode": params["mode"],
    }
