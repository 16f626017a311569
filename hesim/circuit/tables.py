"""Layouts by tables: one choice of axes for the inputs, from which everything else follows.

Every element of a tensor has an entry that says where it lies, so that anything can be laid out;
compiling takes time and memory by elements. `hesim.circuit.packing` does the same by symbols.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hesim.circuit import sizes
from hesim.circuit.aims.carried import HandedOn, Pair
from hesim.circuit.batching.axes import batch_axes, candidates
from hesim.circuit.builder import Builder
from hesim.circuit.circuit import PlaintextFamily, TensorLocation
from hesim.circuit.context import Context
from hesim.circuit.layout import Tensor, described, input_count, input_tables, stripped
from hesim.circuit.publics import Publics
from hesim.circuit.rules.walk import lower
from hesim.errors import LayoutError
from hesim.params import CKKSParams
from hesim.program import Program, Var
from hesim.progress import CompileWatch

__all__ = ["MOST_INPUTS", "Choice", "TableLowering", "choices", "terms"]

MOST_INPUTS = 20_000
"""Input ciphertexts beyond which a layout is not tried."""


@dataclass(frozen=True)
class Choice:
    """A layout of the inputs: columns in use, and per encrypted input the axes on columns."""

    axes: dict[int, int | None]
    batch: int
    width: int
    columns: int
    slot_axes: tuple[tuple[int, ...], ...]
    ciphers: int


def terms(program: Program) -> int:
    """Entries that tables of all operations have: elements, or products of elements that are
    summed.
    """
    total = 0
    for eqn in program.ops:
        size = max(math.prod(v.shape) for v in (*eqn.inputs, *eqn.outputs))
        if eqn.name == "dot_general":
            ((contracted, _), _) = eqn.params["dimension_numbers"]
            summed = math.prod(eqn.inputs[0].shape[a] for a in contracted)
            size = max(size, summed * math.prod(eqn.outputs[0].shape))
        total += size
    return total


class TableLowering:
    """A Program lowered from one choice.

    Attributes:
      builder: its stages. publics: its public operands. inputs: its encrypted inputs.
      carried: nothing; tables bring no result to where an argument lies.
    """

    carried: Mapping[Pair, HandedOn] = {}

    def __init__(
        self,
        program: Program,
        log_n: int,
        choice: Choice,
        budget: float = math.inf,
        watch: CompileWatch | None = None,
    ):
        self.program, self.choice = program, choice
        self.publics = Publics(program)
        self.builder = Builder(
            choice.columns, choice.width, choice.batch, log_n=log_n, budget=budget
        )
        self.context = Context(program, self.publics, self.builder, choice.axes)
        self.inputs = self._place_inputs()
        lower(self.context, watch)

    def nodes(self, var: Var) -> np.ndarray:
        """Nodes that hold a value; none if it has no place of its own."""
        found = self.context.values.get(var.id)
        return np.zeros(0, np.int64) if found is None else found.nodes

    def gain(self, var: Var) -> float:
        """A value is its gain times what slots hold; 1 if it has no place of its own."""
        found = self.context.values.get(var.id)
        return 1.0 if found is None else found.gain

    def layout(self, var: Var) -> str:
        """Where a value lies in its ciphertexts; empty if it has no place of its own."""
        found = self.context.values.get(var.id)
        return "" if found is None else described(found)

    def location(self, var: Var, op: int, where: np.ndarray) -> TensorLocation | None:
        """Where a value lies, None if it has no place of its own.

        Args:
          op: number of its operation.
          where: the ciphertext of each node, -2 if it is not computed.
        """
        x = self.context.values.get(var.id)
        if x is None:
            return None
        return TensorLocation(
            op,
            var.shape,
            -1 if x.batch_axis is None else x.batch_axis,
            where[x.node].reshape(-1),
            x.column.reshape(-1).astype(np.int32),
            x.gain,
            self.choice.batch,
            self.choice.width,
        )

    def _place_inputs(self) -> tuple[PlaintextFamily, ...]:
        b, choice = self.builder, self.choice
        packs = []
        row = 0
        secret = [v for v in self.program.inputs if v.encrypted]
        for number, (var, slot_axes) in enumerate(zip(secret, choice.slot_axes, strict=True)):
            axis = choice.axes[var.id]
            shape = stripped(var.shape, axis)
            b.reserve(sizes.INDEX_BYTES * (var.size + math.prod(shape)))
            cipher, column, count = input_tables(shape, slot_axes, choice.columns)
            if not count and var is secret[-1] and not b.nodes:
                count = 1  # nothing is encrypted but zeros, of which all results are made
            flat = np.arange(var.size).reshape(var.shape)
            first = flat if axis is None else flat.take(0, axis=axis)
            stride = 0 if axis is None else int(np.prod(var.shape[axis + 1 :], dtype=np.int64))
            table = np.full((count, choice.columns), -1, np.int32)
            table[cipher.reshape(-1), column.reshape(-1)] = first.reshape(-1)
            if choice.columns == 1 and axis is None:
                stride = 0
            packs.append(
                PlaintextFamily(number, table, stride, choice.batch, choice.width, choice.columns)
            )
            b.begin(-1)
            nodes = b.end([b.input(row + k, table[k] >= 0) for k in range(count)])
            row += count
            self.context.values[var.id] = Tensor(
                np.asarray(nodes, np.int32)[cipher], column, 1.0, axis, var.shape
            )
        return tuple(packs)


def choices(
    program: Program, params: CKKSParams, batch: bool, layouts: Sequence[Sequence[int]] | None
) -> Iterator[Choice]:
    secret = [v for v in program.inputs if v.encrypted]
    if not secret:
        return
    found = False
    if batch:
        for start in candidates(program):
            size = next(v.shape[0] for v in secret if start[v.id] == 0)
            if size > params.slots:
                continue
            axes = batch_axes(program, start, size)
            if axes is not None:
                found = True
                yield from _layouts(secret, params, axes, size, layouts)
                break
    if not found:
        yield from _layouts(secret, params, {v.id: None for v in secret}, 1, layouts)


def _layouts(
    secret: list[Var],
    params: CKKSParams,
    axes: dict[int, int | None],
    size: int,
    layouts: Sequence[Sequence[int]] | None,
) -> Iterator[Choice]:
    width = 1 << (size - 1).bit_length()
    room = params.slots // width
    shapes = [stripped(v.shape, axes[v.id]) for v in secret]
    if layouts is not None:
        chosen = [_checked(layouts, shapes)]
    else:
        chosen = list(
            dict.fromkeys(tuple(policy(s) for s in shapes) for policy in _policies(shapes))
        )
    seen: set[tuple] = set()
    for slot_axes in chosen:
        # Axes of one element lie nowhere in particular.
        useful = tuple(
            tuple(a for a in on_slots if shape[a] > 1)
            for shape, on_slots in zip(shapes, slot_axes, strict=True)
        )
        extents = [
            math.prod(1 << (shape[a] - 1).bit_length() for a in on_slots)
            for shape, on_slots in zip(shapes, useful, strict=True)
        ]
        columns = min(room, max(extents))
        ciphers = sum(
            input_count(shape, on_slots, columns)
            for shape, on_slots in zip(shapes, useful, strict=True)
        )
        if ciphers > MOST_INPUTS or (columns, useful) in seen:
            continue
        seen.add((columns, useful))
        yield Choice(axes, size, width, columns, useful, ciphers)


def _checked(
    layouts: Sequence[Sequence[int]], shapes: list[tuple[int, ...]]
) -> tuple[tuple[int, ...], ...]:
    chosen = tuple(tuple(int(a) for a in axes) for axes in layouts)
    if len(chosen) != len(shapes):
        raise LayoutError(
            f"layouts has {len(chosen)} entries, but {len(shapes)} inputs are encrypted."
        )
    for axes, shape in zip(chosen, shapes, strict=True):
        if len(set(axes)) != len(axes) or not all(0 <= a < len(shape) for a in axes):
            raise LayoutError(
                f"layouts names axes {axes} of an encrypted input whose shape, without a batch "
                f"axis, is {shape}; name each axis once, from 0 to {len(shape) - 1}."
            )
    return chosen


def _policies(shapes: list[tuple[int, ...]]):
    """Ways to pick slot axes, the same for every input: subsets of axes counted from either end."""
    rank = max((len(s) for s in shapes), default=0)

    def policy(axes: tuple[int, ...]):
        def of(shape: tuple[int, ...]) -> tuple[int, ...]:
            offset = len(shape) - rank  # align trailing axes, as broadcasting does
            return tuple(a + offset for a in axes if a + offset >= 0)

        return of

    for count in range(min(rank, 3) + 1):
        for axes in itertools.permutations(range(rank), count):
            yield policy(axes)
