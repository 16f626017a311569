"""Operations that only move elements, as tables: where each element of the result comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hesim.errors import NotHomomorphicError
from hesim.program import Equation
from hesim.tracing.moves import finite
from hesim.tracing.scatters import targets

__all__ = ["index_places", "move_table", "scatter_targets"]

_UNCHANGED = frozenset(
    {
        *("copy", "copy_p", "device_put", "name", "reshard", "layout_constraint", "stop_gradient"),
        *("optimization_barrier", "sharding_constraint"),
    }
)
_RESHAPES = frozenset({"reshape", "squeeze", "expand_dims"})

_OUTSIDE = -2


def index_places(eqn: Equation) -> tuple[int, ...]:
    """Numbers of the operands of a move that say where; empty if its parameters do."""
    if eqn.name in ("gather", "scatter"):
        return (1,)
    first = {"dynamic_slice": 1, "dynamic_update_slice": 2}.get(eqn.name, len(eqn.inputs))
    return tuple(range(first, len(eqn.inputs)))


def move_table(
    eqn: Equation,
    tables: Sequence[np.ndarray | None],
    operands: Sequence[np.ndarray | None],
    outside: int = 0,
) -> list[np.ndarray]:
    """Applies a move to integer tables instead of to values.

    Args:
      eqn: an equation whose primitive moves elements.
      tables: per operand, the table to move (integers of its shape, not negative), or None if it
        is an index.
      operands: per operand, the value of an index operand, or None.
      outside: what stands for a zero where a gather reaches outside its operand and fills with it.

    Returns:
      One integer table per result.

    Raises:
      NotHomomorphicError: a gather reaches outside its operand, and fills with NaN.
    """
    name, p = eqn.name, eqn.params
    given = [t for t in tables if t is not None]
    x = given[0]
    if name in _UNCHANGED:
        return given
    if name in _RESHAPES:
        if name == "reshape" and p["dimensions"] is not None:  # axes are permuted first
            x = x.transpose(p["dimensions"])
        return [x.reshape(eqn.outputs[0].shape)]
    if name == "transpose":
        return [x.transpose(p["permutation"])]
    if name == "broadcast_in_dim":
        return [_broadcast(x, p["shape"], p["broadcast_dimensions"])]
    if name == "slice":
        strides = p["strides"] or (1,) * x.ndim
        bounds = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
        return [x[tuple(slice(int(a), int(b), int(s)) for a, b, s in bounds)]]
    if name == "rev":
        return [np.flip(x, p["dimensions"])]
    if name == "tile":
        return [np.tile(x, p["reps"])]
    if name == "split":
        cuts = np.cumsum([int(s) for s in p["sizes"]])[:-1]
        return list(np.split(x, cuts, axis=p["axis"]))
    if name == "concatenate":
        return [np.concatenate(given, axis=p["dimension"])]
    if name == "stack":
        return [np.stack(given, axis=p["axis"])]
    return [_bound(eqn, tables, operands, outside)]


def _broadcast(x: np.ndarray, shape: tuple[int, ...], dimensions: tuple[int, ...]) -> np.ndarray:
    view = [1] * len(shape)
    for axis, target in enumerate(dimensions):
        view[target] = x.shape[axis]
    return np.broadcast_to(x.reshape(view), shape)


def _bound(
    eqn: Equation, tables: Sequence[np.ndarray | None], operands: Sequence[Any], outside: int
) -> np.ndarray:
    """Any other move: the primitive itself, run on the integers."""
    params = dict(eqn.params)
    args = [
        jnp.asarray(o) if t is None else jnp.asarray(t, jnp.int32)
        for t, o in zip(tables, operands, strict=True)
    ]
    if eqn.name == "scatter":
        operand, indices, updates = args
        names = ("indices_are_sorted", "unique_indices", "mode")
        keywords = {name: params[name] for name in names}
        numbers = params["dimension_numbers"]
        return np.asarray(jax.lax.scatter(operand, indices, updates, numbers, **keywords))
    if eqn.name == "gather":
        params["fill_value"] = _OUTSIDE
    out = np.asarray(eqn.primitive.bind(*args, **params))
    if eqn.name != "gather" or not np.any(out == _OUTSIDE):
        return out
    if not finite(eqn.params["fill_value"]):
        raise NotHomomorphicError(
            "gather",
            eqn.source,
            "an index lies outside its operand, which JAX fills with NaN.",
            "Keep the indices inside, clip them, or name a finite fill_value: "
            'x.at[i].get(mode="fill", fill_value=0).',
        )
    return np.where(out == _OUTSIDE, outside, out)


def scatter_targets(eqn: Equation, indices: np.ndarray) -> np.ndarray:
    """Flat place in the operand of every update element of a scatter, -1 where it is outside."""
    operand, _, updates = eqn.inputs
    return targets(eqn.params, operand.shape, updates.shape, indices)
