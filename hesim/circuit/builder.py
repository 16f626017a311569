"""The builder: ciphertext operations in stages, before levels and scales are decided.

A stage is a set of operations that start at one level: it takes canonical ciphertexts, may
multiply, and then rescales all its results (or none). Between a mask and the product of what it
leaves no rescale is needed: such products are summed at three times the bits of one scale, and
then rescaled twice. Levels, drops and refreshes between stages are decided afterwards (`levels`),
so a kernel says only what happens to the data.
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
from hesim.circuit.nodes import Supports, Term, Terms, compact
from hesim.circuit.plain_rows import LiteralRows, MapRows

__all__ = ["Builder", "Node", "Overspent", "Plain", "Stage"]

_NODE_BYTES = 1000
"""Of one node, or one plaintext, beside its columns."""

_TERM_BYTES = 60
"""Of one term of a node, as built and as emitted."""

_CELL_BYTES = 10
"""Of one column of one plaintext: its coefficient, as found and as encoded."""

_STEP_BYTES = 2**26
"""Bytes of nodes after which memory is looked at again."""

Plain = tuple[int, int]
"""A plaintext: (pack, row)."""


@dataclass(slots=True)
class Node:
    """One ciphertext-to-be. `terms` are (factor, node, second): a node, a Plain or None.

    `size` is its components, `power` how many canonical scales are multiplied in its own (1 to 3),
    `below` how many levels under the start of its stage it is.
    """

    kind: int
    terms: Sequence[Term]
    param: int
    stage: int
    size: int = 2
    power: int = 1
    below: int = 0

    @property
    def first(self) -> list[int]:
        """The node of each term; the first one of a product."""
        terms = self.terms
        return terms.first if isinstance(terms, Terms) else [node for _, node, _ in terms]

    @property
    def second(self) -> list[int]:
        """The second node of each product of two; none of other kinds."""
        return [node for _, _, node in self.terms] if self.kind == Kind.DOT else []


@dataclass
class Stage:
    """Operations at one level.

    Attributes:
      source: index of the program operation it belongs to, -1 for inputs.
      nodes: its nodes in order. outputs: those that later stages may use.
      inputs: stages whose outputs it uses.
      drop: levels between its operands and its outputs, 0 to 2 by one product or a masked one.
      unscaled: nodes at double scale that are multiplied by ciphertexts; their plaintexts bring the
        scale that makes the product's rescales end at the canonical one.
      refreshed: the outputs are refreshed because the user asked for it.
    """

    id: int
    source: int
    nodes: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    inputs: set[int] = field(default_factory=set)
    drop: int = 0
    refreshed: bool = False
    unscaled: frozenset[int] = frozenset()


class Overspent(Exception):
    """The operations so far cost more at level 1 than the whole budget."""


class Builder:
    """Collects stages. Columns are slots divided by the batch width.

    Attributes:
      columns: columns of every ciphertext; rotations are cyclic modulo it.
      support: per node, bool (columns,): where the content may differ from zero; not to be written
        to, since nodes share it.
      supports: what the operations make these sets by.
      period: per node, the period of its content in columns (`columns` if it has none).
      growth: per node, how many times larger than its operands sums alone have made it, at most;
        products start anew.
      operation: name and place of the operation that is being lowered, for errors.
      sizes: by stage, largest absolute slot of its outputs, where that is known: inside
        polynomials, over their domains.
      scalings: by stage whose outputs are those of another one times a number, where a gain is
        applied: that stage, and the size of the number.
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
        self.supports = Supports(columns)
        self.period: list[int] = []
        self.growth: list[float] = []
        self.operation: Callable[[], str] = lambda: "the inputs"
        self.sizes: dict[int, float] = {}
        self.scalings: dict[int, tuple[int, float]] = {}
        self._rotated: dict[tuple[int, int], int] = {}
        self._held_by: dict[Plain, np.ndarray] = {}  # columns of plaintexts
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
        for n in stage.outputs:
            node = self.nodes[n]
            assert node.stage == stage.id, "a stage's output is made in it"
            assert node.power == 1 and node.size == 2, "a stage's outputs are rescaled"
        dropped = {self.nodes[n].below for n in stage.outputs}
        assert len(dropped) <= 1, "outputs of one stage share a level"
        stage.drop = dropped.pop() if dropped else 0
        stage.refreshed = refreshed
        stage.unscaled = self._find_unscaled(stage)
        self.stages.append(stage)
        self._open = None
        return outputs

    def _find_unscaled(self, stage: Stage) -> frozenset[int]:
        """See `Stage`; empty where no product is at triple scale."""
        if not any(self.nodes[n].power == 3 for n in stage.nodes):
            return frozenset()
        found: set[int] = set()
        scaled: set[int] = set()
        for n in reversed(stage.nodes):
            node = self.nodes[n]
            used = {*node.first, *node.second}
            fixed = node.kind in (Kind.DOT, Kind.RESCALE)
            assert not (fixed and n in found), "only masked nodes are multiplied once more"
            double = {a for a in used if self.nodes[a].power == 2}
            if node.kind == Kind.DOT or node.kind != Kind.DOT_PLAIN and n in found:
                found |= double
            elif node.kind == Kind.RESCALE or n in scaled:
                scaled |= double
        assert not found & scaled, "a node is multiplied by ciphertexts or rescaled, not both"
        return frozenset(found)

    def _add(
        self,
        kind: int,
        terms: Sequence[Any],
        param: int = 0,
        *,
        size: int = 2,
        power: int = 1,
        support: np.ndarray,
        period: int,
    ) -> int:
        stage = self._open
        assert stage is not None
        self._spent += instruction_seconds(kind, 1, len(terms), self._log_n)
        if self._spent > self._budget:
            raise Overspent
        node = Node(kind, compact(kind, terms), param, stage.id, size, power)
        node.below = self._below(node, stage)
        self._held += _NODE_BYTES + _TERM_BYTES * len(terms)
        held = self._held + self.supports.size
        if held > self._asked:
            sizes.reserve(self.operation, 2 * _STEP_BYTES, held)
            self._asked = held + _STEP_BYTES
        self.nodes.append(node)
        self.support.append(self.supports.shared(support))
        self.period.append(period)
        self.growth.append(self._grown(kind, terms))
        stage.nodes.append(len(self.nodes) - 1)
        return stage.nodes[-1]

    def _below(self, made: Node, stage: Stage) -> int:
        """How far under the start of the stage a result is; notes the stages of operands."""
        nodes, own = self.nodes, set()
        for used in {*made.first, *made.second}:
            node = nodes[used]
            if node.stage == stage.id:
                own.add(node.below)
            else:
                stage.inputs.add(node.stage)
        assert len(own) <= 1, "operands made in one stage have as many rescales behind them"
        return (own.pop() if own else 0) + (made.kind == Kind.RESCALE)

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

    def add(self, terms: Sequence[tuple[int, int]], *, support: np.ndarray | None = None) -> int:
        """Sum of factor * node, all at one scale.

        Args:
          support: here and below, where the result may differ from zero, if the caller knows it
            better than what it is made of tells, or without a look at every term.
        """
        return self._add(
            Kind.ADD,
            [(f, n, None) for f, n in terms],
            size=max(self.nodes[n].size for _, n in terms),
            power=self._power(n for _, n in terms),
            support=self._joined(support, (self.support[n] for _, n in terms)),
            period=max(self.period[n] for _, n in terms),
        )

    def dot(
        self, terms: Sequence[tuple[int, int, int]], *, support: np.ndarray | None = None
    ) -> int:
        """Sum of factor * node * node, three components, at the product of the scales.

        One factor may be at double scale, by a product with plaintexts. Then the sum is at triple
        scale, and what it holds must be smaller: see `CKKSParams.capacity`.
        """
        power = self._power(a for _, a, _ in terms) + self._power(b for _, _, b in terms)
        assert power <= 3, "a product is at triple scale at most"
        assert all(self.nodes[n].size == 2 for _, a, b in terms for n in (a, b)), "relinearize"
        return self._add(
            Kind.DOT,
            terms,
            size=3,
            power=power,
            support=self._joined(
                support,
                (self.supports.common(self.support[a], self.support[b]) for _, a, b in terms),
            ),
            period=max(max(self.period[a], self.period[b]) for _, a, b in terms),
        )

    def dot_plain(
        self, terms: Sequence[tuple[int, Plain]], *, support: np.ndarray | None = None
    ) -> int:
        """Sum of node * plaintext, at double scale; at triple scale if the nodes are at double.

        Rows of a map are taken to be nowhere zero: to find out costs as much as to make them.
        """
        power = self._power(n for n, _ in terms) + 1
        assert power <= 3, "a product is at triple scale at most"
        scalar = all(self.packs[pack].scalar for _, (pack, _) in terms)
        return self._add(
            Kind.DOT_PLAIN,
            [(1, n, self._first(plain)) for n, plain in terms],
            size=max(self.nodes[n].size for n, _ in terms),
            power=power,
            support=self._joined(
                support,
                (self.supports.common(self.support[n], self._where(p)) for n, p in terms),
            ),
            period=max(self.period[n] for n, _ in terms) if scalar else self.columns,
        )

    def add_plain(self, node: int, plain: Plain, *, support: np.ndarray | None = None) -> int:
        data = self.packs[plain[0]]
        return self._add(
            Kind.ADD_PLAIN,
            [(1, node, self._first(plain))],
            size=self.nodes[node].size,
            power=self.nodes[node].power,
            support=self._joined(support, [self.support[node], self._where(plain)]),
            period=self.period[node] if data.scalar else self.columns,
        )

    def rotate(self, node: int, step: int) -> int:
        """out[s] = in[s + step], in columns; the same rotation twice in a stage is one."""
        step %= self.period[node]
        if step == 0:
            return node
        assert self.nodes[node].size == 2, "relinearize before a rotation"
        key = (node, step)
        if key not in self._rotated:
            self._rotated[key] = self._add(
                Kind.ROTATE,
                [(1, node, None)],
                step,
                power=self.nodes[node].power,
                support=self.supports.rotated(self.support[node], step),
                period=self.period[node],
            )
        return self._rotated[key]

    def relinearize(self, node: int) -> int:
        return self._unary(Kind.RELINEARIZE, node, power=self.nodes[node].power)

    def rescale(self, node: int) -> int:
        """Brings a node to the canonical scale, and to two components, by as many rescales as it
        needs.

        Relinearizes before the last of them: rescaled to its final scale first, a ciphertext of 3
        components is a hundred times noisier. Not earlier, since cost follows the level.
        """
        while (power := self.nodes[node].power) > 1:
            if self.nodes[node].size == 3 and power == 2:
                node = self.relinearize(node)
            node = self._unary(Kind.RESCALE, node, size=self.nodes[node].size, power=power - 1)
        return node

    def refresh(self, node: int) -> int:
        """The identity; the stage that holds it is marked as refreshed."""
        return self._unary(Kind.ADD, node)

    def _unary(self, kind: int, node: int, *, size: int = 2, power: int = 1) -> int:
        return self._add(
            kind,
            [(1, node, None)],
            size=size,
            power=power,
            support=self.support[node],
            period=self.period[node],
        )

    def dot_rows(
        self,
        nodes: np.ndarray,
        pack: int,
        rows: np.ndarray,
        *,
        support: np.ndarray | None = None,
    ) -> int:
        """`dot_plain` of nodes[k] with row rows[k] of one pack, for sums of many terms.

        Args:
          nodes, rows: int (terms,), at least one.
          support: as in `add`; without it every term is looked at, unless the rows are numbers.
        """
        data, distinct = self.packs[pack], np.unique(nodes).tolist()
        power = self._power(distinct) + 1
        assert power <= 3, "a product is at triple scale at most"
        if support is None and data.scalar:
            support = self.supports.joined(self.support[n] for n in distinct)
        elif support is None:
            each = zip(np.asarray(nodes).tolist(), np.asarray(rows).tolist(), strict=True)
            support = self.supports.joined(
                self.supports.common(self.support[n], self._where((pack, r))) for n, r in each
            )
        table = np.empty((3, len(nodes)), np.int32)
        table[0], table[1], table[2] = nodes, pack, rows
        if not isinstance(data.rows, LiteralRows):
            table[2] = data.rows.first[table[2]]
        return self._add(
            Kind.DOT_PLAIN,
            Terms(table, plain=True),
            size=max(self.nodes[n].size for n in distinct),
            power=power,
            support=support,
            period=max(self.period[n] for n in distinct) if data.scalar else self.columns,
        )

    def _first(self, plain: Plain) -> Plain:
        """The plaintext that stands for all rows of its pack that are known to be the same."""
        rows = self.packs[plain[0]].rows
        return plain if isinstance(rows, LiteralRows) else (plain[0], int(rows.first[plain[1]]))

    def _where(self, plain: Plain) -> np.ndarray:
        """Columns in which a plaintext may differ from zero."""
        data = self.packs[plain[0]]
        if data.scalar or isinstance(data.rows, MapRows):
            return self.supports.everywhere
        if plain not in self._held_by:
            held = np.broadcast_to(data.row(plain[1]) >= 0, self.columns)
            self._held_by[plain] = self.supports.shared(held)
        return self._held_by[plain]

    def _joined(self, known: np.ndarray | None, parts: Iterable[np.ndarray]) -> np.ndarray:
        return self.supports.joined(parts) if known is None else known

    def _power(self, nodes: Iterable[int]) -> int:
        powers = {self.nodes[n].power for n in nodes}
        assert len(powers) == 1, "operands have different scales"
        return powers.pop()
