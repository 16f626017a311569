"""Shapes of stages: what levels, seconds and refreshes depend on, without the operations.

A shape is read from a stage of a Builder, or made by a compiler that compares plans before it emits
any of them; `levels` plans from shapes alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hesim.circuit.builder import Builder, Stage
from hesim.circuit.circuit import Kind
from hesim.circuit.cost import instruction_seconds

__all__ = ["Row", "StageShape", "held_to_scale", "stage_shape", "stage_shapes"]


class Row(NamedTuple):
    """Instructions that cost the same.

    Attributes:
      kind: of `hesim.circuit.circuit.Kind`.
      below: levels that their operands are under the start of the stage.
      terms: operands, or products, of each.
      scalar: whether plaintexts are numbers rather than vectors.
    """

    kind: int
    below: int = 0
    terms: int = 1
    scalar: bool = False


@dataclass(frozen=True, slots=True)
class StageShape:
    """Operations that start at one level.

    Attributes:
      rows: instructions and how often each is there.
      drop: levels between operands and outputs.
      width: ciphertexts that later stages use or that are results.
      inputs: numbers of the stages whose outputs it uses, all lower than its own.
      loose: those of `inputs` whose outputs meet nothing but plaintexts here, rotated first or not:
        they come to a lower level for nothing, by plaintexts that are encoded for it.
      source: index of the program operation it belongs to, -1 for inputs.
      refreshed: the outputs are refreshed whatever it costs.

    Examples:
      >>> rows = {Row(Kind.DOT): 1, Row(Kind.RELINEARIZE): 1, Row(Kind.RESCALE): 1}
      >>> product = StageShape(rows, drop=1, inputs=(0,), source=0)
      >>> product.seconds(level=1, log_n=14) < product.seconds(level=2, log_n=14)
      True
    """

    rows: Mapping[Row, int]
    drop: int = 0
    width: int = 1
    inputs: tuple[int, ...] = ()
    loose: frozenset[int] = frozenset()
    source: int = -1
    refreshed: bool = False

    def seconds(self, level: int, log_n: int) -> float:
        """Predicted seconds on one core of a stage that starts at `level`."""
        return sum(
            count * instruction_seconds(r.kind, level - r.below, r.terms, log_n, scalar=r.scalar)
            for r, count in self.rows.items()
        )


def stage_shape(b: Builder, stage: Stage, live: Collection[int]) -> StageShape:
    """Of what lives in a stage."""
    rows: dict[Row, int] = {}
    used: set[int] = set()
    nodes = b.nodes
    members = [n for n in stage.nodes if n in live]
    for n in members:
        node = nodes[n]
        used.update(node.first, node.second)
        below = node.below - (node.kind == Kind.RESCALE)
        scalar = node.kind == Kind.DOT_PLAIN and b.packs[node.terms[0][2][0]].scalar
        row = Row(node.kind, below, len(node.terms), scalar)
        rows[row] = rows.get(row, 0) + 1
    inputs = {nodes[n].stage for n in used} - {stage.id}
    exact = {nodes[n].stage for n in held_to_scale(b, stage, members)}
    return StageShape(
        rows,
        drop=stage.drop,
        width=sum(n in live for n in stage.outputs),
        inputs=tuple(sorted(inputs)),
        loose=frozenset(inputs - exact),
        source=stage.source,
        refreshed=stage.refreshed,
    )


def stage_shapes(b: Builder, live: Collection[int]) -> dict[int, StageShape]:
    """Of all stages in which something lives, by number."""
    used = {b.nodes[n].stage for n in live}
    return {s.id: stage_shape(b, s, live) for s in b.stages if s.id in used}


def held_to_scale(b: Builder, stage: Stage, members: Sequence[int]) -> set[int]:
    """Operands that go into more than plaintext products of a stage, rotated first or not.

    members: its nodes that live, in order.
    """
    found: set[int] = set()
    outputs = set(stage.outputs)
    for n in reversed(members):
        node = b.nodes[n]
        if node.kind == Kind.DOT_PLAIN:
            continue
        if node.kind != Kind.ROTATE or n in found or n in outputs:
            found.update(node.first, node.second)
    return found
