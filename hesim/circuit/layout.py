"""Layouts: which ciphertext and which column holds each element of a tensor.

A layout is a pair of integer tables of the tensor's own shape. Whatever only moves elements
(transpose, reshape, slice, concatenate, broadcast, ...) is then indexing of the tables and costs
nothing; costs arise where two operands must meet in one slot.

The batch axis, where a program has one that is never mixed, is not in the tables: its members lie
side by side in each column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "Tensor",
    "described",
    "input_count",
    "input_tables",
    "linear_index",
    "ranks",
    "stripped",
    "unique_rows",
]


@dataclass(frozen=True, eq=False)
class Tensor:
    """An encrypted tensor on the builder's nodes.

    Attributes:
      node: int32, of the shape without the batch axis: which node; -1: exactly zero.
      column: int32, same shape: which column.
      gain: the tensor's value is gain times what the slots hold.
      batch_axis: position of the batch axis in the full shape, None if every member is alike.
      shape: the full shape.
    """

    node: np.ndarray
    column: np.ndarray
    gain: float
    batch_axis: int | None
    shape: tuple[int, ...]

    @property
    def nodes(self) -> np.ndarray:
        """Nodes in use, each once."""
        found = np.unique(self.node)
        return found[found >= 0]

    def referenced(self, columns: int) -> dict[int, np.ndarray]:
        """Per node, the columns that hold elements: bool (columns,)."""
        out = {int(n): np.zeros(columns, bool) for n in self.nodes}
        node, column = self.node.reshape(-1), self.column.reshape(-1)
        pairs = unique_rows(np.stack([node, column], 1))[0]
        for n, c in pairs:
            if n >= 0:
                out[int(n)][c] = True
        return out


def described(x: Tensor) -> str:
    """Which axes of one member lie on ciphertexts and which on columns, as docs/layouts.md writes
    it; "table" where elements lie otherwise.
    """
    if not x.node.size:
        return "table"
    origin = (0,) * x.node.ndim
    column = np.full(x.node.shape, x.column[origin], np.int64)
    on_columns: list[tuple[int, str]] = []
    on_ciphers: list[str] = []
    for axis, extent in enumerate(x.node.shape):
        line = tuple(slice(None) if k == axis else 0 for k in range(x.node.ndim))
        name = f"{chr(ord('a') + axis)}{extent}"
        if extent == 1:
            continue
        if np.all(x.node[line] == x.node[origin]):
            step = int(x.column[line][1]) - int(x.column[origin])
            shape = [extent if k == axis else 1 for k in range(x.node.ndim)]
            column += step * np.arange(extent).reshape(shape)
            if step:
                on_columns.append((abs(step), name))
        else:
            on_ciphers.append(name)
    if len(origin) > 26 or not np.array_equal(column, x.column):
        return "table"
    inner = " ".join(name for _, name in sorted(on_columns, reverse=True))
    return f"[{' '.join(on_ciphers)} | {inner}]"


def stripped(shape: Sequence[int], axis: int | None) -> tuple[int, ...]:
    """`shape` without the batch axis."""
    return tuple(d for k, d in enumerate(shape) if k != axis)


def input_tables(
    shape: tuple[int, ...], slot_axes: tuple[int, ...], columns: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """A layout with some axes on columns and the others across ciphertexts.

    Args:
      shape: tensor shape without the batch axis.
      slot_axes: axes on columns, outermost first, each padded to a power of two; what does not fit
        into `columns` spills over to ciphertexts, outermost first.
      columns: a power of two.

    Returns:
      (cipher, column, ciphertexts): tables of `shape`, ciphertexts numbered from 0.
    """
    column = np.zeros(shape, np.int64)
    cipher = np.zeros(shape, np.int64)
    count = 1
    stride = 1
    for axis in reversed(slot_axes):
        extent = shape[axis]
        padded = 1 << max(extent - 1, 0).bit_length()
        fits = max(min(padded, columns // stride), 1)
        index = _along(shape, axis)
        column += (index % fits) * stride
        if fits < padded:
            cipher += (index // fits) * count
            count *= -(-extent // fits)
        stride *= fits
    for axis in reversed(range(len(shape))):
        if axis not in slot_axes:
            cipher += _along(shape, axis) * count
            count *= shape[axis]
    return cipher.astype(np.int32), column.astype(np.int32), count


def input_count(shape: tuple[int, ...], slot_axes: tuple[int, ...], columns: int) -> int:
    """Ciphertexts of `input_tables`, without the tables."""
    count = stride = 1
    for axis in reversed(slot_axes):
        padded = 1 << max(shape[axis] - 1, 0).bit_length()
        fits = max(min(padded, columns // stride), 1)
        count *= -(-shape[axis] // fits) if fits < padded else 1
        stride *= fits
    return count * math.prod(d for k, d in enumerate(shape) if k not in slot_axes)


def _along(shape: tuple[int, ...], axis: int) -> np.ndarray:
    view = [1] * len(shape)
    view[axis] = shape[axis]
    return np.arange(shape[axis]).reshape(view)


def unique_rows(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows of an integer (n, k) table, lexicographic, and the index of each row's class.

    Rows are packed into one int64 where that fits, which is far faster than a structured sort.
    """
    if len(table) == 0:
        return table, np.zeros(0, np.int64)
    low = table.min(axis=0)
    span = (table.max(axis=0) - low + 1).astype(object)
    total = 1
    for s in span:
        total *= int(s)
    if total >= 2**62:
        rows, inverse = np.unique(table, axis=0, return_inverse=True)
        return rows, inverse.reshape(-1)
    key = np.zeros(len(table), np.int64)
    for k in range(table.shape[1]):
        key = key * int(span[k]) + (table[:, k] - low[k])
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return table[first], inverse.reshape(-1)


def ranks(classes: np.ndarray) -> np.ndarray:
    """Position of each entry among the entries of its class, in order of appearance."""
    order = np.argsort(classes, kind="stable")
    ordered = classes[order]
    starts = (
        np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        if len(ordered)
        else np.zeros(0, int)
    )
    lengths = np.diff(np.r_[starts, len(ordered)])
    out = np.empty(len(classes), np.int64)
    out[order] = np.arange(len(classes)) - np.repeat(starts, lengths)
    return out


def linear_index(index: np.ndarray, axis: int | None) -> tuple[np.ndarray, int] | None:
    """Splits flat indices into those of the first member and a constant stride per member.

    Args:
      index: integers of the full shape, -1 where there is no element (in every member alike).
      axis: the batch axis, None if there is none.

    Returns:
      (index of the first member, stride), or None if the members differ otherwise.
    """
    if axis is None:
        return index, 0
    first = index.take(0, axis=axis)
    if index.shape[axis] == 1:
        return first, 0
    live = first >= 0
    every = np.expand_dims(live, axis)
    stride = (index.take(1, axis=axis).astype(np.int64) - first)[live]
    if np.any((index >= 0) != every):
        return None
    step = int(stride.flat[0]) if stride.size else 0
    view = [1] * index.ndim
    view[axis] = index.shape[axis]
    along = np.arange(index.shape[axis]).reshape(view) * step
    if np.any((index != np.expand_dims(first, axis) + along) & every):
        return None
    return first, step
