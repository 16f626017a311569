"""The builder: ciphertext operations in stages, before levels and scales are decided.

A stage is a set of operations that run at one level: it takes canonical ciphertexts, may multiply
once, and then rescales all its results (or none). Levels, drops and refreshes between stages are
decided afterwards (`levels`), so a kernel says only what happens to the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hesim.circuit import sizes
from hesim.circuit.circuit import Kind, PlaintextFamily
from hesim.circuit.cost import instruction_seconds

__all__ = ["Builder", "Node", "Overspent", "Plain", "Stage"]

_NODE_BYTES = 1000
"""Of one node, or one plaintext, beside its columns."""

_CELL_BYTES = 10
"""Of one column of one plaintext: its coefficient, as found and as encoded."""

_STEP_BYTES = 2**26
"""Bytes of nodes after which memory is looked at again."""

Plain = tuple[int, int]
"""A plaintext: (pack, row)."""


@dataclass(slots=True)
class Node:
    """One ciphertext-to-be. `terms` are (factor, node, second): a node, a Plain or None."""

    kind: int
    terms: tuple[tuple[int, int, Any], ...]  # the third by kind: a node, a Plain, nothing
    param: int
    stage: int
    size: int = 2
    double: bool = False


@dataclass
class Stage:
    """Operations at one level.

    Attributes:
      source: index of the program operation it belongs to, -1 for inputs.
      nodes: its nodes in order. outputs: those that later stages may use.
      inputs: stages whose outputs it uses.
      drop: levels between its operands and its outputs, 0 or 1.
      refreshed: the outputs are refreshed because the user asked for it.
    """

    id: int
    source: int
    nodes: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    inputs: set[int] = field(default_factory=set)
    drop: int = 0
    refreshed: bool = False


class Overspent(Exception):
    """The operations so far cost more at level 1 than the whole budget."""


class Builder:
    """Collects stages. Columns are slots divided by the batch width.

    Attributes:
      columns: columns of every ciphertext; rotations are cyclic modulo it.
      support: per node, bool (columns,): where the content may differ from zero.
      period: per node, the period of its content in columns (`columns` if it has none).
      growth: per node, how many times larger than its operands sums alone have made it, at most;
        products start anew.
      operation: name and place of the operation that is being lowered, for errors.
    """

    def __init__(
        self, columns: int, width: int, batch: int, *, log_n: int = 14, budget: float = math.inf
    ):
        self.columns = columns
        self.width = width
        self.batch = batch
        self.nodes: list[Node] = []
        self.stages: list[Stage] = []
        self.packs: list[PlaintextFamily] = []
        self.support: list[np.ndarray] = []
        self.period: list[int] = []
        self.growth: list[float] = []
        self.operation: Callable[[], str] = lambda: "the inputs"
        self._rotated: dict[tuple[int, int], int] = {}
        self._open: Stage | None = None
        self._log_n = log_n
        self._budget = budget
        self._spent = 0.0
        self._held = 0
        self._asked = _STEP_BYTES

    def reserve(self, size: int) -> None:
        """TooLargeError if tables of `size` bytes do not fit into memory."""
        sizes.reserve(self.operation, size)

    def reserve_nodes(self, count: int, plains: int = 0) -> None:
        """TooLargeError if so many nodes, and rows of plaintext tables, do not fit into memory."""
        each = _CELL_BYTES * self.columns + _NODE_BYTES
        self.reserve(count * (self.columns + _NODE_BYTES) + plains * each)

    # --- stages -------------------------------------------------------------------------------

    def begin(self, source: int) -> Stage:
        """Opens a stage; operations go into it until `end`."""
        assert self._open is None, "stages do not nest"
        self._open = Stage(len(self.stages), source)
        self._rotated = {}
        return self._open

    def end(self, outputs: Iterable[int], refreshed: bool = False) -> list[int]:
        """Closes the stage; `outputs` become visible to later stages, and are returned."""
        stage = self._open
        assert stage is not None
        outputs = list(outputs)
        stage.outputs = sorted(set(outputs))
        dropped = {self._levels_below(n, stage.id) for n in stage.outputs}
        assert len(dropped) <= 1, "outputs of one stage share a level"
        stage.drop = dropped.pop() if dropped else 0
        stage.refreshed = refreshed
        self.stages.append(stage)
        self._open = None
        return outputs

    def _levels_below(self, node: int, stage: int) -> int:
        n = self.nodes[node]
        assert n.stage == stage, "a stage's output is made in it"
        if n.kind == Kind.RESCALE:
            return 1
        below = {
            self._levels_below(a, stage) for _, a, _ in n.terms if self.nodes[a].stage == stage
        }
        return max(below, default=0)

    def _add(
        self,
        kind: int,
        terms: Sequence[Any],
        param: int = 0,
        *,
        size: int = 2,
        double: bool = False,
        support: np.ndarray,
        period: int,
    ) -> int:
        stage = self._open
        assert stage is not None
        self._spent += instruction_seconds(kind, 1, len(terms), self._log_n)
        if self._spent > self._budget:
            raise Overspent
        self._held += self.columns + _NODE_BYTES
        if self._held > self._asked:
            sizes.reserve(self.operation, 2 * _STEP_BYTES, self._held)
            self._asked = self._held + _STEP_BYTES
        node = len(self.nodes)
        self.nodes.append(Node(kind, tuple(terms), param, stage.id, size, double))
        self.support.append(support)
        self.period.append(period)
        self.growth.append(self._grown(kind, terms))
        stage.nodes.append(node)
        for _, first, second in terms:
            for used in (first, second if kind == Kind.DOT else None):
                if used is not None and used >= 0 and self.nodes[used].stage != stage.id:
                    stage.inputs.add(self.nodes[used].stage)
        return node

    def _grown(self, kind: int, terms: Sequence[tuple]) -> float:
        if kind in (Kind.ADD, Kind.ADD_PLAIN, Kind.ROTATE):
            return sum(abs(factor) * self.growth[first] for factor, first, _ in terms)
        return 1.0

    def pack(self, pack: PlaintextFamily) -> int:
        """Registers a family of plaintexts; returns its number."""
        self.packs.append(pack)
        return len(self.packs) - 1

    # --- operations ---------------------------------------------------------------------------

    def input(self, row: int, support: np.ndarray) -> int:
        return self._add(Kind.INPUT, (), row, support=support, period=self.columns)

    def add(self, terms: Sequence[tuple[int, int]]) -> int:
        """Sum of factor * node."""
        first = self.nodes[terms[0][1]]
        return self._add(
            Kind.ADD,
            [(f, n, None) for f, n in terms],
            size=max(self.nodes[n].size for _, n in terms),
            double=first.double,
            support=_union(self.support[n] for _, n in terms),
            period=max(self.period[n] for _, n in terms),
        )

    def dot(self, terms: Sequence[tuple[int, int, int]]) -> int:
        """Sum of factor * node * node, three components, at double scale."""
        return self._add(
            Kind.DOT,
            terms,
            size=3,
            double=True,
            support=_union(self.support[a] & self.support[b] for _, a, b in terms),
            period=max(max(self.period[a], self.period[b]) for _, a, b in terms),
        )

    def dot_plain(self, terms: Sequence[tuple[int, Plain]]) -> int:
        """Sum of node * plaintext, at double scale."""
        supports, period = [], 1
        for n, (pack, row) in terms:
            data = self.packs[pack]
            if data.scalar:
                supports.append(self.support[n])
                period = max(period, self.period[n])
            else:
                supports.append(self.support[n] & (data.row(row) >= 0))
                period = self.columns
        return self._add(
            Kind.DOT_PLAIN,
            [(1, n, plain) for n, plain in terms],
            double=True,
            support=_union(supports),
            period=period,
        )

    def add_plain(self, node: int, plain: Plain) -> int:
        data = self.packs[plain[0]]
        where = np.ones(self.columns, bool) if data.scalar else data.row(plain[1]) >= 0
        return self._add(
            Kind.ADD_PLAIN,
            [(1, node, plain)],
            size=self.nodes[node].size,
            double=self.nodes[node].double,
            support=self.support[node] | where,
            period=self.period[node] if data.scalar else self.columns,
        )

    def rotate(self, node: int, step: int) -> int:
        """out[s] = in[s + step], in columns; the same rotation twice in a stage is one."""
        step %= self.period[node]
        if step == 0:
            return node
        key = (node, step)
        if key not in self._rotated:
            self._rotated[key] = self._add(
                Kind.ROTATE,
                [(1, node, None)],
                step,
                double=self.nodes[node].double,
                support=np.roll(self.support[node], -step),
                period=self.period[node],
            )
        return self._rotated[key]

    def relinearize(self, node: int) -> int:
        return self._unary(Kind.RELINEARIZE, node, double=True)

    def rescale(self, node: int) -> int:
        """Relinearizes first if needed: a 3-component rescale is a hundred times noisier."""
        if self.nodes[node].size == 3:
            node = self.relinearize(node)
        return self._unary(Kind.RESCALE, node, double=False)

    def refresh(self, node: int) -> int:
        """The identity; the stage that holds it is marked as refreshed."""
        return self._unary(Kind.ADD, node, double=False)

    def _unary(self, kind: int, node: int, *, double: bool) -> int:
        return self._add(
            kind,
            [(1, node, None)],
            double=double,
            support=self.support[node],
            period=self.period[node],
        )


def _union(arrays: Iterable[np.ndarray]) -> np.ndarray:
    out: np.ndarray | None = None
    for array in arrays:
        out = array if out is None else out | array
    assert out is not None
    return out
