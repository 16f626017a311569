"""What a choice costs, before anything is emitted: rows of instructions, and their seconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from hesim.circuit.circuit import Kind
from hesim.circuit.cost import instruction_seconds
from hesim.circuit.packing.contractions import Contraction
from hesim.circuit.packing.maps import MapPlan

__all__ = ["Prices", "Row", "Work", "contraction_work", "map_work"]

_NOMINAL = 1
"""Level at which a stage is taken to end: levels are decided afterwards."""


class Row(NamedTuple):
    """`number` instructions of one kind, `below` levels under the start of their stage."""

    kind: int
    number: int
    terms: int = 1
    below: int = 0
    scalar: bool = False


class Work(NamedTuple):
    """A stage by its shape: its instructions, the levels it drops, and its results."""

    rows: tuple[Row, ...]
    drop: int
    width: int


@dataclass(frozen=True)
class Prices:
    """Seconds of stages.

    Attributes:
      log_n: of the ring. level: seconds that a level of one ciphertext costs, as a share of the
        refresh that gives it back.
    """

    log_n: int
    level: float

    def seconds(self, works: Iterable[Work]) -> float:
        """Of stages that end one level above the lowest."""
        total = 0.0
        for work in works:
            at = work.drop + _NOMINAL
            for row in work.rows:
                if row.number:
                    total += row.number * instruction_seconds(
                        row.kind, at - row.below, row.terms, self.log_n, scalar=row.scalar
                    )
            total += work.drop * work.width * self.level
        return total


def map_work(plan: MapPlan, *, masked: bool = True, scalar: bool = False, maps: int = 1) -> Work:
    """Of a public linear map; not `masked`: rotations and additions only.

    maps: how many maps of this form share the operand and its baby steps.
    """
    outs = plan.outs * maps
    rotations = plan.rotations + plan.turned * (maps - 1)
    if not masked:
        return Work((Row(Kind.ROTATE, rotations),), 0, outs)
    groups: dict[int, int] = {}
    for terms in plan.groups.tolist():
        groups[terms] = groups.get(terms, 0) + maps
    sums: dict[int, int] = {}
    for partials in plan.partials.tolist():
        sums[partials] = sums.get(partials, 0) + maps
    return Work(
        (
            Row(Kind.ROTATE, rotations),
            *(Row(Kind.DOT_PLAIN, n, terms, scalar=scalar) for terms, n in groups.items()),
            *(Row(Kind.ADD, n, terms) for terms, n in sums.items() if terms > 1),
            Row(Kind.RESCALE, outs),
        ),
        1,
        outs,
    )


def contraction_work(plan: Contraction) -> Work:
    """Of an encrypted contraction."""
    accumulators = sum(count for _, count in plan.accumulators)
    outs = plan.layout.ciphertexts
    turned = plan.turned
    lower = 2 if plan.masked else 1
    rows = [Row(Kind.ROTATE, plan.rotations - turned)]
    if plan.masked:
        rows += [Row(Kind.DOT_PLAIN, count, terms) for terms, count in plan.maskings]
    rows += [Row(Kind.DOT, count, terms) for terms, count in plan.accumulators]
    if plan.masked:
        rows.append(Row(Kind.RESCALE, accumulators))
    rows += [
        Row(Kind.RELINEARIZE, accumulators, below=lower - 1),
        Row(Kind.RESCALE, accumulators, below=lower - 1),
        Row(Kind.ROTATE, turned, below=lower),
        Row(Kind.ADD, outs, max(accumulators // outs, 1), below=lower),
    ]
    return Work(tuple(rows), lower, outs)
