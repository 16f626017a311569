"""Families of plaintexts, and what gives them their rows: a table, masks, or a linear map's rule.

A row says, column by column, which element of a tensor a plaintext holds there: int32 (columns,),
negative where the plaintext is zero. A table needs 4 bytes a column and row; a layer of a large
model has a hundred thousand rows of thousands of columns, so a rule makes them when they are asked
for. Imports no JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from hesim.errors import ParameterError

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int, Int32, Shaped

__all__ = [
    "LiteralRows",
    "MapRows",
    "MaskRows",
    "PlaintextFamily",
    "Rows",
    "blocks",
    "entries",
    "from_arrays",
    "rows_of",
]

_BLOCK_CELLS = 2**20
"""Entries that are looked at in one go: 4 MB."""


class Rows(Protocol):
    """Rows of a family of plaintexts.

    Attributes:
      kind: name of the rule, in files.
      columns: entries of a row; 1 if every row is one entry for all columns.
    """

    kind: ClassVar[str]

    @property
    def columns(self) -> int: ...

    def __len__(self) -> int: ...

    def row(self, r: int) -> np.ndarray:
        """int32 (columns,): row r; not to be written to."""
        ...

    def block(self, rows: np.ndarray) -> np.ndarray:
        """int32 (len(rows), columns): several rows."""
        ...

    def entries_of(self, rows: np.ndarray, column: int) -> np.ndarray:
        """int32 (len(rows),): one column of several rows, which are not made for it."""
        ...

    @property
    def first(self) -> np.ndarray:
        """int32 (rows,): the first row that is known to be the same as each."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that `from_arrays` makes it from again."""
        ...

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Rows: ...


class LiteralRows:
    """Rows out of a table.

    Args:
      index: int32 (rows, columns), or (rows, 1).
    """

    kind: ClassVar[str] = "table"

    def __init__(self, index: np.ndarray):
        self.index = np.asarray(index)
        if self.index.ndim != 2:
            raise ParameterError(f"a table of rows has two axes, not shape {self.index.shape}")

    @property
    def columns(self) -> int:
        return self.index.shape[1]

    def __len__(self) -> int:
        return self.index.shape[0]

    def row(self, r: int) -> np.ndarray:
        return self.index[r]

    def block(self, rows: np.ndarray) -> np.ndarray:
        return self.index[rows]

    def entries_of(self, rows: np.ndarray, column: int) -> np.ndarray:
        return self.index[rows, column]

    @property
    def first(self) -> np.ndarray:
        """int32 (rows,): each row itself; rows of tables are not compared."""
        return np.arange(len(self), dtype=np.int32)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"index": self.index}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> LiteralRows:
        return cls(arrays["index"])


class MaskRows:
    """Masks: element 0 where a bit is set, zero elsewhere. One bit a column.

    Args:
      held: bool (rows, columns).
    """

    kind: ClassVar[str] = "mask"

    def __init__(self, held: np.ndarray):
        held = np.asarray(held, bool)
        if held.ndim != 2:
            raise ParameterError(f"masks have two axes, not shape {held.shape}")
        self._columns = held.shape[1]
        self.bits = np.packbits(held, axis=1)

    @property
    def columns(self) -> int:
        return self._columns

    def __len__(self) -> int:
        return len(self.bits)

    def row(self, r: int) -> np.ndarray:
        return np.unpackbits(self.bits[r], count=self._columns).astype(np.int32) - 1

    def block(self, rows: np.ndarray) -> np.ndarray:
        found = np.unpackbits(self.bits[rows], axis=1, count=self._columns)
        return found.astype(np.int32) - 1

    def entries_of(self, rows: np.ndarray, column: int) -> np.ndarray:
        bits = self.bits[rows, column // 8] >> (7 - column % 8) & 1
        return bits.astype(np.int32) - 1

    def arrays(self) -> dict[str, np.ndarray]:
        return {"bits": self.bits, "columns": np.array(self._columns, np.int64)}

    @property
    def first(self) -> np.ndarray:
        """int32 (masks,): the first mask that is the same."""
        return self._first

    @cached_property
    def _first(self) -> np.ndarray:
        known: dict[bytes, int] = {}
        return np.array(
            [known.setdefault(m.tobytes(), k) for k, m in enumerate(self.bits)], np.int32
        )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> MaskRows:
        found = cls(np.zeros((0, int(arrays["columns"])), bool))
        found.bits = arrays["bits"]
        return found


class MapRows:
    """Rows of a public linear map from one layout to another: its diagonals.

    A column of an operand's ciphertext meets a column of a result's where both have the same key
    (the coordinates that the map leaves alone); which coefficient they meet by is the sum of what
    the two places say of it. Column q of row r, with p = q - roll[r] modulo the columns, is

      out_part[out[r], p] + in_part[into[r], p + shift[r]]

    if the keys there are equal and not negative, else -1; `weight`, if given, has the entry under
    that number.

    Args:
      out_key, out_part: int32 (result's ciphertexts, columns); a negative key: nothing lies there.
      in_key, in_part: int32 (operand's ciphertexts, columns).
      out, into: int32 (rows,): ciphertext of the result and of the operand, from 0.
      shift: int32 (rows,): columns from the result's place to the operand's.
      roll: int32 (rows,): columns by which the row is moved up (what a giant step undoes).
      weight: int32, one axis, or None.

    Raises:
      ParameterError: shapes that do not belong together, or a ciphertext that is not there.
    """

    kind: ClassVar[str] = "map"

    def __init__(
        self,
        out_key: np.ndarray,
        out_part: np.ndarray,
        in_key: np.ndarray,
        in_part: np.ndarray,
        out: np.ndarray,
        into: np.ndarray,
        shift: np.ndarray,
        roll: np.ndarray,
        weight: np.ndarray | None = None,
    ):
        _check_pair("out", out_key, out_part)
        _check_pair("in", in_key, in_part)
        if out_key.shape[1] != in_key.shape[1]:
            raise ParameterError(
                f"results have {out_key.shape[1]} columns and operands {in_key.shape[1]}; one map "
                f"has as many of both"
            )
        self._columns = out_key.shape[1]
        self.out, self.into = _numbers(out), _numbers(into)
        self.shift = _numbers(np.asarray(shift) % self._columns)
        self.roll = _numbers(np.asarray(roll) % self._columns)
        if len({a.shape for a in (self.out, self.into, self.shift, self.roll)}) != 1:
            raise ParameterError("out, into, shift and roll have one entry a row each")
        for name, chosen, there in (("out", self.out, out_key), ("into", self.into, in_key)):
            if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(there):
                raise ParameterError(f"`{name}` names a ciphertext that is not one of {len(there)}")
        self.weight = None if weight is None else _numbers(weight)
        if self.weight is not None and not len(self.weight):
            raise ParameterError("weight has no entries; None means that there is no such table")
        # Keys of nothing differ between the two, so that one comparison tells. Twice side by side,
        # so that what is turned is a window.
        self._out_key = _twice(np.where(np.asarray(out_key) < 0, -1, out_key))
        self._in_key = _twice(np.where(np.asarray(in_key) < 0, -2, in_key))
        self._out_part, self._in_part = _twice(out_part), _twice(in_part)

    @property
    def columns(self) -> int:
        return self._columns

    def __len__(self) -> int:
        return len(self.out)

    def row(self, r: int) -> np.ndarray:
        o, i = self.out[r], self.into[r]
        at = slice(int(-self.roll[r] % self._columns), None)
        to = slice(int((self.shift[r] - self.roll[r]) % self._columns), None)
        part = slice(0, self._columns)
        return self._joined(
            self._out_key[o, at][part],
            self._in_key[i, to][part],
            self._out_part[o, at][part],
            self._in_part[i, to][part],
        )

    def block(self, rows: np.ndarray) -> np.ndarray:
        o, i = self.out[rows], self.into[rows]
        at = -self.roll[rows] % self._columns
        to = (self.shift[rows] - self.roll[rows]) % self._columns
        return self._joined(
            self._windows(self._out_key)[o, at],
            self._windows(self._in_key)[i, to],
            self._windows(self._out_part)[o, at],
            self._windows(self._in_part)[i, to],
        )

    def entries_of(self, rows: np.ndarray, column: int) -> np.ndarray:
        o, i = self.out[rows], self.into[rows]
        at = (column - self.roll[rows]) % self._columns
        to = at + self.shift[rows]
        return self._joined(
            self._out_key[o, at], self._in_key[i, to], self._out_part[o, at], self._in_part[i, to]
        )

    def rows_any(self) -> np.ndarray:
        """bool (rows,): which rows have any entry that is not negative."""
        first, place = _alike(self._pairs, self.shift)
        found = np.zeros(len(first), bool)
        step = max(1, _BLOCK_CELLS // max(self._columns, 1))
        for start in range(0, len(first), step):
            part = first[start : start + step]
            if self._shown_by_keys:
                o, i, shift = self.out[part], self.into[part], self.shift[part]
                same = self._out_key[o, : self._columns] == self._windows(self._in_key)[i, shift]
            else:
                same = self.block(part) >= 0
            found[start : start + step] = np.any(same, axis=1)
        return found[place]

    @property
    def first(self) -> np.ndarray:
        """int32 (rows,): the first row that says the same, of which one plaintext serves all.

        Rows of ciphertexts that hold other tokens, say, in the same places are the same: only the
        differences of keys count.
        """
        return self._first

    @cached_property
    def _first(self) -> np.ndarray:
        first, place = _alike(self._pairs, self.shift, self.roll)
        return first[place].astype(np.int32)

    @cached_property
    def _pairs(self) -> np.ndarray:
        """int64 (rows,): a number for all ciphertexts of result and operand between which diagonals
        of the same shift are the same.
        """
        columns = slice(0, self._columns)
        out, above = _kinds(self._out_key[:, columns], self._out_part[:, columns])
        into, below = _kinds(self._in_key[:, columns], self._in_part[:, columns])
        o, i = self.out, self.into
        return _alike(out[o], into[i], above[o] - below[i])[1]

    def arrays(self) -> dict[str, np.ndarray]:
        columns = slice(0, self._columns)
        found = {
            "out_key": self._out_key[:, columns],
            "out_part": self._out_part[:, columns],
            "in_key": self._in_key[:, columns],
            "in_part": self._in_part[:, columns],
            "out": self.out,
            "into": self.into,
            "shift": self.shift,
            "roll": self.roll,
        }
        return found if self.weight is None else {**found, "weight": self.weight}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> MapRows:
        return cls(**arrays)

    @cached_property
    def _shown_by_keys(self) -> bool:
        """Whether entries are not negative wherever the keys agree."""
        if self.weight is not None:
            return bool(np.all(self.weight >= 0))
        return bool(np.all(self._out_part >= 0) and np.all(self._in_part >= 0))

    def _windows(self, twice: np.ndarray) -> np.ndarray:
        return sliding_window_view(twice, self._columns, axis=1)

    def _joined(
        self, out_key: np.ndarray, in_key: np.ndarray, out_part: np.ndarray, in_part: np.ndarray
    ) -> np.ndarray:
        same = out_key == in_key
        found = out_part + in_part
        if self.weight is not None:
            found = self.weight[np.where(same, found, 0)]
        return np.where(same, found, np.int32(-1))


@dataclass(frozen=True, eq=False, init=False)
class PlaintextFamily:
    """A family of slot vectors cut out of one tensor.

    Slot `column * width + b` of row r holds `values[row(r)[column] + b * stride]` for the batch
    members b < batch, and zero where the row is negative. Slots beyond the batch repeat its first
    member, so that whatever runs on them stays inside the ranges of real data.

    Attributes:
      operand: index into the public operands (or the encrypted leaves, for inputs); -1: `literal`.
      rows: what gives the rows, or their table, int32 (rows, columns), which may also be named
        `index`; one column only means the same scalar in every slot.
      stride: elements between batch members in the flattened operand; 0: shared.
      batch: members of the batch.
      width: slots per column, a power of two, at least `batch`.
      columns: columns of a full vector; columns * width is the circuit's slot count.
      weight: factor on every value.
      literal: flat values where operand is -1.
    """

    operand: int
    rows: Rows
    stride: int
    batch: int
    width: int
    columns: int
    weight: float
    literal: Float[np.ndarray, " values"] | None

    def __init__(
        self,
        operand: int,
        rows: Rows | Int[np.ndarray, "rows columns"] | None = None,
        stride: int = 0,
        batch: int = 1,
        width: int = 1,
        columns: int = 1,
        weight: float = 1.0,
        literal: Float[np.ndarray, " values"] | None = None,
        *,
        index: Int[np.ndarray, "rows columns"] | None = None,
    ):
        given = index if rows is None else rows
        assert given is not None, "a family has rows"
        held = (operand, rows_of(given), stride, batch, width, columns, weight, literal)
        for f, value in zip(dataclasses.fields(self), held, strict=True):
            object.__setattr__(self, f.name, value)

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, r: int) -> Int32[np.ndarray, " columns"]:
        """(columns,), or (1,): the element in each column of row r, negative for zero."""
        return self.rows.row(r)

    @property
    def index(self) -> Int32[np.ndarray, "rows columns"]:
        """All rows, made anew unless they are a table: `row` gives one."""
        return self.rows.block(np.arange(len(self)))

    @property
    def scalar(self) -> bool:
        """Whether every row is one number in all slots."""
        return self.rows.columns == 1 and self.stride == 0

    def vector(
        self, row: int, values: Sequence[Shaped[np.ndarray, "..."]] | Shaped[np.ndarray, "..."]
    ) -> Float64[np.ndarray, " slots"] | float:
        """Slot values of one row.

        Args:
          row: its number.
          values: the public operands (arrays of any shape), indexed by `operand`.

        Returns:
          float64 array of columns * width slots, or a float for a scalar row.
        """
        flat = self._flat(values)
        line = self.row(row)
        if self.scalar:
            return float(flat[line[0]] * self.weight) if line[0] >= 0 else 0.0
        members = self.batch if self.stride else 1
        places = np.maximum(line, 0).astype(np.int64)[:, None] + self.stride * np.arange(members)
        taken = np.where(line[:, None] >= 0, flat[places], 0.0)
        out = np.empty((self.columns, self.width))
        out[:] = taken[:, :1]
        out[:, :members] = taken
        slots = out.reshape(-1)
        return slots if self.weight == 1.0 else slots * self.weight

    def numbers(
        self,
        rows: Int[np.ndarray, " rows"],
        values: Sequence[Shaped[np.ndarray, "..."]] | Shaped[np.ndarray, "..."],
    ) -> Float64[np.ndarray, " rows"]:
        """What `vector` returns for each of these rows of a scalar family."""
        return self.in_slot(rows, 0, values)

    def in_slot(
        self,
        rows: Int[np.ndarray, " rows"],
        slot: int,
        values: Sequence[Shaped[np.ndarray, "..."]] | Shaped[np.ndarray, "..."],
    ) -> Float64[np.ndarray, " rows"]:
        """What the vectors of these rows hold in one slot, which are not made for it.

        Args:
          rows: their numbers.
          slot: from 0 to below columns * width.
          values: the public operands (arrays of any shape), indexed by `operand`.
        """
        column, member = divmod(slot, self.width)
        line = self.rows.entries_of(rows, column % self.rows.columns)
        within = member < (self.batch if self.stride else 1)
        places = np.maximum(line, 0).astype(np.int64) + within * member * self.stride
        return np.where(line >= 0, self._flat(values)[places] * self.weight, 0.0)

    def _flat(self, values: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        if self.operand < 0:
            assert self.literal is not None
            return self.literal
        return np.asarray(values[self.operand], dtype=np.float64).reshape(-1)


def rows_of(rows: Rows | np.ndarray) -> Rows:
    """Rows as they are, or those of a table."""
    return LiteralRows(rows) if isinstance(rows, np.ndarray) else rows


def blocks(rows: Rows) -> Iterator[np.ndarray]:
    """All rows in order, int32 (some, columns) at a time: a few MB each."""
    step = max(1, _BLOCK_CELLS // max(rows.columns, 1))
    for start in range(0, len(rows), step):
        yield rows.block(np.arange(start, min(start + step, len(rows))))


def entries(rows: Rows) -> np.ndarray:
    """int32: the elements that occur in any row, each once, ascending."""
    found = np.zeros(0, np.int32)
    for block in blocks(rows):
        found = np.union1d(found, block[block >= 0])
    return found


def from_arrays(kind: str, arrays: Mapping[str, np.ndarray]) -> Rows:
    """The rows of this kind that `arrays` came from. ParameterError if there is no such kind."""
    for rule in (LiteralRows, MaskRows, MapRows):
        if rule.kind == kind:
            return rule.from_arrays(arrays)
    raise ParameterError(f"there are no rows of kind {kind!r}: a later version wrote them; update")


def _check_pair(name: str, key: np.ndarray, part: np.ndarray) -> None:
    if np.ndim(key) != 2 or np.shape(key) != np.shape(part):
        raise ParameterError(
            f"{name}_key and {name}_part have shape (ciphertexts, columns) both, not "
            f"{np.shape(key)} and {np.shape(part)}"
        )


def _numbers(values: np.ndarray) -> np.ndarray:
    found = np.ascontiguousarray(values, dtype=np.int32)
    if found.ndim != 1:
        raise ParameterError(f"one entry a row has one axis, not shape {found.shape}")
    return found


def _twice(table: np.ndarray) -> np.ndarray:
    single = np.asarray(table, np.int32)
    return np.concatenate([single, single], axis=1)


def _alike(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first place of each distinct row of columns of whole numbers, number of each row's)."""
    place = np.zeros(len(columns[0]), np.int64)
    first = place[:1]
    for column in columns:
        values, number = np.unique(column, return_inverse=True)
        both = place * max(len(values), 1) + number
        _, first, place = np.unique(both, return_index=True, return_inverse=True)
    return first, place


def _kinds(key: np.ndarray, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By ciphertext, which places it has, and the lowest key: keys are alike but for that."""
    held = key >= 0
    lowest = np.where(held, key, np.iinfo(np.int32).max).min(axis=1, initial=np.iinfo(np.int32).max)
    lowest = np.where(held.any(axis=1), lowest, 0).astype(np.int64)
    known: dict[bytes, int] = {}
    kinds = [
        known.setdefault(np.where(h, [k - low, p], -1).astype(np.int32).tobytes(), len(known))
        for h, k, p, low in zip(held, key, part, lowest, strict=True)
    ]
    return np.array(kinds, np.int64), lowest
