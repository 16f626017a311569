"""From tables back to layouts: what a rule of tables has left, as digits or moved into them."""

from __future__ import annotations

import numpy as np

from hesim.circuit.packing.emission import spread
from hesim.circuit.packing.gathering import Gathering, clean, terms_between
from hesim.circuit.packing.layout import GAP, REPLICATED, Coordinate, Layout, places
from hesim.circuit.packing.maps import planned

__all__ = ["gathered_from", "numbered", "recognised"]

_LARGEST = 2**22
"""Positions of operands and result beyond which nothing is moved."""


def recognised(
    node: np.ndarray, column: np.ndarray, columns: int, repeats: int
) -> tuple[Layout, np.ndarray] | None:
    """The layout in which elements lie as tables say, if digits describe them.

    Args:
      node: int of the tensor's shape: number of its ciphertext, not negative.
      column: int of the same shape.
      columns: of a ciphertext. repeats: columns after which all of them repeat.

    Returns:
      (layout, whose positions without an element may hold anything; the number of each of its
      ciphertexts, -1 for one that holds nothing), or None.
    """
    shape = node.shape
    if not node.size or column.flat[0] != 0:
        return None
    on_slots: dict[int, Coordinate] = {}
    ciphers: list[Coordinate] = []
    for axis in range(len(shape)):
        found = _digits(axis, _line(node, axis), _line(column, axis), columns)
        if found is None or set(found[0]) & set(on_slots):
            return None
        on_slots.update(found[0])
        ciphers += found[1]
    slots: list[Coordinate] = []
    at = 1
    for below in sorted(on_slots):
        if below < at:
            return None
        slots += _unused(at, below, repeats)
        slots.append(on_slots[below])
        at = below * on_slots[below].size
    if at > columns:
        return None
    slots += _unused(at, columns, repeats)
    layout = Layout(shape, tuple(slots), tuple(ciphers), (), False).canonical()
    cipher, where = places(layout)
    number = np.full(layout.ciphertexts, -1, np.int64)
    number[cipher.reshape(-1)] = node.reshape(-1)
    if np.array_equal(where, column) and np.array_equal(number[cipher], node):
        return layout, number
    return None


def _line(table: np.ndarray, axis: int) -> np.ndarray:
    """Entries along an axis, those of all others at 0."""
    return table[tuple(slice(None) if a == axis else 0 for a in range(table.ndim))]


def _digits(
    axis: int, node: np.ndarray, column: np.ndarray, columns: int
) -> tuple[dict[int, Coordinate], list[Coordinate]] | None:
    """(coordinates by the columns below them, coordinates of ciphertexts) of one axis."""
    extent = len(node)
    on_slots: dict[int, Coordinate] = {}
    ciphers: list[Coordinate] = []
    stride = 1
    while stride < extent:
        step = int(column[stride]) - int(column[0])
        if node[stride] == node[0] and step == 0:
            return ({}, []) if stride == 1 else None  # constant along it, or a part of it
        size = 1
        if step == 0:
            while stride * size < extent and column[stride * size] == column[0]:
                size += 1
            ciphers.append(Coordinate(axis, size, stride))
        else:
            if step < 0 or step & (step - 1) or node[stride] != node[0]:
                return None
            while (
                stride * size < extent
                and step * size < columns
                and column[stride * size] == column[0] + step * size
                and node[stride * size] == node[0]
            ):
                size *= 2
            on_slots[step] = Coordinate(axis, size, stride)
        stride *= size
    return on_slots, ciphers


def _unused(low: int, high: int, repeats: int) -> list[Coordinate]:
    """Coordinates of columns `low` to `high` that no axis takes: repeated above the period."""
    middle = min(max(low, repeats), high)
    both = ((GAP, middle // low), (REPLICATED, high // middle))
    return [Coordinate(axis, size) for axis, size in both if size > 1]


def gathered_from(
    node: np.ndarray,
    column: np.ndarray,
    zero: np.ndarray,
    repeats: int,
    target: Layout,
    *,
    dirty: bool = False,
) -> Gathering | None:
    """How elements get from where tables say to a layout.

    Args:
      node, column: int of the tensor's shape; node -1: exactly zero.
      zero: bool (ciphertexts, columns): where the ciphertexts are exactly zero.
      repeats: columns after which all of them repeat.
      dirty: whether what is no element may be anything.

    Returns:
      None if there is no element, or there are too many, or the target has no place for them all.
    """
    count, columns = zero.shape
    if (count + target.ciphertexts) * columns > _LARGEST or not np.any(node >= 0):
        return None
    for axis in set(range(node.ndim)) - set(target.axes):
        if _varies(node, axis) or _varies(column, axis):
            return None
    target = target._replace(zeros=not dirty).canonical()
    key = np.where(node < 0, -1, node.astype(np.int64) * repeats + column % repeats)
    out_key = spread(target, key).astype(np.int64)
    in_key = np.full((count, columns), -1, np.int64)
    every = np.arange(count)[:, None] * repeats + (np.arange(columns) % repeats)[None, :]
    in_key = np.where(np.isin(every, key), every, -1)
    terms = terms_between(in_key, out_key, repeats)
    plan = planned(terms, target.ciphertexts, columns, repeats)
    whole = plan.moves and clean(plan, target, zero, out_key < 0)
    return Gathering(plan, target, in_key.astype(np.int32), out_key.astype(np.int32), not whole)


def _varies(table: np.ndarray, axis: int) -> bool:
    return bool(np.any(table != table.take([0], axis=axis)))


def numbered(node: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Nodes as their places among these, which ascend; -1 stays."""
    found = np.searchsorted(nodes, np.maximum(node, 0))
    return np.where(node < 0, -1, found)
