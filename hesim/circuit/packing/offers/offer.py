"""Offers: the ways in which an operation can be done, given where its operands lie.

An offer has no effect until it is emitted: it says where the results would lie and what it costs.
A rule that cannot serve some layouts makes no offer for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hesim.circuit.layout import stripped
from hesim.circuit.packing.emission import Emission, Packed
from hesim.circuit.packing.layout import Layout
from hesim.circuit.packing.operations import Operation
from hesim.circuit.publics import Publics
from hesim.circuit.shape import StageShape
from hesim.program import Equation, Literal, Program, Var

__all__ = ["Emit", "Offer", "Rule", "Setting", "of_one_member", "public_operand"]

Emit = Callable[[Emission, Operation, "tuple[Packed, ...]"], "list[Packed]"]


@dataclass(frozen=True, eq=False)
class Offer:
    """One way to do an operation.

    Attributes:
      outs: layouts of the results. works: stages, without those that move operands.
      emit: writes them, given the operands where `operands` says.
      operands: layout that each operand is brought to first; None for the one it has.
      encoded: vectors of public values that are encoded for it.
    """

    outs: tuple[Layout, ...]
    works: tuple[StageShape, ...]
    emit: Emit
    operands: tuple[Layout | None, ...] = ()
    encoded: int = 0

    def moves(self, layouts: tuple[Layout, ...]) -> list[tuple[Layout, Layout | None]]:
        """(where an operand lies, where it is brought to): as many as it is given. One value that
        is both operands is given twice if it is wanted in two layouts.
        """
        wanted = self.operands or (None,) * len(layouts)
        if len(layouts) == 1 and len(set(wanted)) == 1:
            wanted = wanted[:1]
        return [(layouts[min(k, len(layouts) - 1)], y) for k, y in enumerate(wanted)]


@dataclass(frozen=True, eq=False)
class Setting:
    """What rules may know.

    Attributes:
      program, publics: what is planned. axes: batch axis by value id. columns: of a ciphertext.
      factors: sizes into which later reshapes split an axis, by value id and axis.
      wishes: gains that public products are asked to give. gains: those that values will have.
      applied: by value id, the gain that a result is brought to at the price of a level.
    """

    program: Program
    publics: Publics
    axes: Mapping[int, int | None]
    columns: int
    factors: Mapping[tuple[int, int], tuple[int, ...]]
    wishes: Mapping[int, float]
    gains: Mapping[int, float]
    applied: Mapping[int, float] = field(default_factory=dict)

    def axis(self, value: Var | Literal) -> int | None:
        return self.axes.get(value.id) if isinstance(value, Var) else None

    def shape(self, value: Var | Literal) -> tuple[int, ...]:
        return stripped(value.shape, self.axis(value))

    def inner(self, var: Var | Literal, axis: int) -> int | None:
        """A full axis among those of one member; None for the batch."""
        batch = self.axis(var)
        if batch is None:
            return axis
        return None if axis == batch else axis - (axis > batch)


def of_one_member(
    s: Setting, op: Operation, layouts: Sequence[Layout]
) -> tuple[Layout, ...] | None:
    """Layouts of operands as one member of the batch sees them; None if it sees a part of one.

    What is alike in all members has an axis of size 1 where the result has the batch; without it
    axes are numbered as the result's are. Contractions name their axes themselves.
    """
    out = op.equations[0].outputs[0]
    batch = s.axis(out)
    if batch is None or op.kind == "dot_general":
        return tuple(layouts)
    found = []
    for v, x in zip(op.operands, layouts, strict=True):
        if s.axis(v) is None and len(v.shape) == len(out.shape):
            if v.shape[batch] != 1:
                return None
            names = {a: a - (a > batch) for a in range(len(v.shape)) if a != batch}
            x = x.renamed(stripped(v.shape, batch), names)
        found.append(x)
    return tuple(found)


Rule = Callable[[Setting, Operation, tuple[Layout, ...]], Iterator[Offer]]


def public_operand(eqn: Equation) -> Var | Literal:
    """The first operand in the clear."""
    return next(v for v in eqn.inputs if not v.encrypted)
