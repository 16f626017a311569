"""Operations that only move elements, as tables: where each element of the result comes from."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hesim.errors import NotHomomorphicError
from hesim.program import Equation

__all__ = ["FREE_MOVES", "INDEXED_MOVES", "move_table"]

FREE_MOVES = frozenset(
    {
        *(
            "broadcast_in_dim",
            "reshape",
            "transpose",
            "squeeze",
            "expand_dims",
            "slice",
            "rev",
            "copy",
        ),
        *("copy_p", "split", "tile", "concatenate", "stack", "pad", "optimization_barrier"),
        *("stop_gradient", "sharding_constraint"),
    }
)
"""Moves whose places are written in their parameters."""

INDEXED_MOVES = frozenset({"dynamic_slice", "gather", "scatter", "dynamic_update_slice"})
"""Moves whose places are operands."""


def move_table(
    eqn: Equation,
    tables: Sequence[np.ndarray | None],
    operands: Sequence[np.ndarray | None],
) -> list[np.ndarray]:
    """Applies a move to integer tables instead of to values.

    Args:
      eqn: an equation of FREE_MOVES or INDEXED_MOVES.
      tables: per operand, the table to move (integers of its shape), or None if it is an index.
      operands: per operand, the value of an index operand, or None.

    Returns:
      One integer table per result; -1 where a pad puts its padding value.

    Raises:
      NotHomomorphicError: a gather reaches outside its operand.
    """
    name, p = eqn.name, eqn.params
    x = tables[0]
    if name in ("copy", "copy_p", "optimization_barrier", "stop_gradient", "sharding_constraint"):
        return [t for t in tables if t is not None]
    if x is not None:
        if name in ("reshape", "squeeze", "expand_dims") and p.get("dimensions") is None:
            return [x.reshape(eqn.outputs[0].shape)]
        if name in ("squeeze", "expand_dims"):
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
        return [np.concatenate([t for t in tables if t is not None], axis=p["dimension"])]
    if name == "stack":
        return [np.stack([t for t in tables if t is not None], axis=p["axis"])]
    return _bound(eqn, tables, operands)


def _broadcast(x: np.ndarray, shape: tuple[int, ...], dimensions: tuple[int, ...]) -> np.ndarray:
    view = [1] * len(shape)
    for axis, target in enumerate(dimensions):
        view[target] = x.shape[axis]
    return np.broadcast_to(x.reshape(view), shape)


def _bound(eqn: Equation, tables, operands) -> list[np.ndarray]:
    """Any other move: the primitive itself, run on the integers."""
    params = dict(eqn.params)
    if eqn.name == "pad":
        tables = [tables[0], None]
        operands = [None, np.array(-1, np.int32)]
    if eqn.name == "gather":
        params["fill_value"] = -2
    if eqn.name == "scatter":
        names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
        args = [_int(t, o) for t, o in zip(tables, operands, strict=True)]
        return [np.asarray(jax.lax.scatter(*args, **{n: params[n] for n in names}))]
    args = [_int(t, o) for t, o in zip(tables, operands, strict=True)]
    out = np.asarray(eqn.primitive.bind(*args, **params))
    if eqn.name == "gather" and np.any(out == -2):
        raise NotHomomorphicError(
            "gather",
            eqn.source,
            "an index lies outside its operand, which JAX fills with NaN.",
            "Keep the indices inside, or clip them.",
        )
    return [out]


def _int(table: np.ndarray | None, operand: np.ndarray | None):
    return jnp.asarray(operand) if table is None else jnp.asarray(table, jnp.int32)
