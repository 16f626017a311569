"""What a choice costs, before anything is emitted: rows of instructions, and their seconds."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

from hesim.circuit.circuit import Kind
from hesim.circuit.cost import encoding_seconds
from hesim.circuit.packing.contractions import Contraction
from hesim.circuit.packing.maps import MapCount, MapPlan
from hesim.circuit.shape import Row, StageShape

__all__ = ["Counted", "Prices", "contraction_work", "counted", "map_work", "shaped"]

Counted = tuple[Row, int]
"""Instructions that cost the same, and how many of them."""


def counted(
    kind: int, number: int, terms: int = 1, below: int = 0, scalar: bool = False
) -> Counted:
    """`number` instructions of one kind, `below` levels under the start of their stage."""
    return Row(kind, below, terms, scalar), number


def shaped(rows: Iterable[Counted], drop: int, width: int) -> StageShape:
    """A stage by its instructions, the levels it drops, and its results."""
    out: dict[Row, int] = {}
    for row, number in rows:
        if number:
            out[row] = out.get(row, 0) + number
    return StageShape(out, drop, width)


@dataclass(frozen=True)
class Prices:
    """Seconds of stages.

    Attributes:
      log_n: of the ring. level: seconds that a level of one ciphertext costs, as a share of the
        refresh that gives it back. nominal: level at which a stage is taken to end: levels are
        decided afterwards.
    """

    log_n: int
    level: float
    nominal: int = 1

    def seconds(self, works: Iterable[StageShape]) -> float:
        """Of stages that end at the nominal level."""
        return sum(
            work.seconds(work.drop + self.nominal, self.log_n) + work.drop * work.width * self.level
            for work in works
        )

    def encoding(self, works: Iterable[StageShape]) -> float:
        """Of encoding the vectors that stages multiply by, where nothing else uses them."""
        terms = sum(
            row.terms * number
            for work in works
            for row, number in work.rows.items()
            if row.kind == Kind.DOT_PLAIN and not row.scalar
        )
        return terms * self.vector

    @functools.cached_property
    def vector(self) -> float:
        """Of encoding one."""
        return encoding_seconds(self.nominal, self.log_n)


def map_work(plan: MapPlan | MapCount, *, masked: bool = True, scalar: bool = False) -> StageShape:
    """Of a public linear map; not `masked`: rotations and additions only."""
    plan = plan.count if isinstance(plan, MapPlan) else plan
    if not masked:
        return shaped([counted(Kind.ROTATE, plan.rotations)], 0, plan.outs)
    rows = [
        counted(Kind.ROTATE, plan.rotations),
        *(counted(Kind.DOT_PLAIN, sums, terms, scalar=scalar) for terms, sums in plan.groups),
        *(counted(Kind.ADD, sums, terms) for terms, sums in plan.partials if terms > 1),
        counted(Kind.RESCALE, plan.outs),
    ]
    return shaped(rows, 1, plan.outs)


def contraction_work(plan: Contraction) -> StageShape:
    """Of an encrypted contraction."""
    accumulators = sum(count for _, count in plan.accumulators)
    outs = plan.layout.ciphertexts
    turned = plan.turned
    lower = 2 if plan.masked else 1
    rows = [counted(Kind.ROTATE, plan.rotations - turned)]
    if plan.masked:
        rows += [counted(Kind.DOT_PLAIN, count, terms) for terms, count in plan.maskings]
    rows += [counted(Kind.DOT, count, terms) for terms, count in plan.accumulators]
    if plan.masked:
        rows.append(counted(Kind.RESCALE, accumulators))
    rows += [
        counted(Kind.RELINEARIZE, accumulators, below=lower - 1),
        counted(Kind.RESCALE, accumulators, below=lower - 1),
        counted(Kind.ROTATE, turned, below=lower),
        counted(Kind.ADD, outs, max(accumulators // outs, 1), below=lower),
    ]
    return shaped(rows, lower, outs)
