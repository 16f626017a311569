"""A Builder whose stages are refreshed together: those stages, and two more around one refresh.

The first takes what of several ciphertexts counts into few and is refreshed; behind it, each stage
that was refreshed by itself has one that takes its own out again, which later stages use in the
place of its outputs. Values are brought to the size that the refresher is made for by the masks,
there and back.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hesim.circuit.aims.carried import HandedOn, Pair
from hesim.circuit.builder import Builder, Node, Plain, Stage
from hesim.circuit.circuit import Kind, PlaintextFamily, TensorLocation
from hesim.circuit.nodes import Terms
from hesim.circuit.plain_rows import MaskRows
from hesim.circuit.refreshes.joint import Member

if TYPE_CHECKING:
    from hesim.circuit.candidate import Lowered
    from hesim.circuit.publics import Publics
    from hesim.program import Program, Var

__all__ = ["Joining", "Rewritten", "rewritten"]


@dataclass(frozen=True, eq=False)
class Joining:
    """Ciphertexts that go through a refresh together.

    Attributes:
      stages: that they are outputs of, none of which depends on another.
      members: their places. factors: by node, what each is multiplied by on its way there.
    """

    stages: tuple[int, ...]
    members: tuple[Member, ...]
    factors: Mapping[int, float]

    @property
    def ciphers(self) -> int:
        """How many they become."""
        return 1 + max(m.cipher for m in self.members)


class Rewritten:
    """A lowered Program on the stages of `rewritten`; see `hesim.circuit.candidate.Lowered`.

    Attributes:
      number: int64, the new number of each node of the stages before.
      taken_out: by an old node, the new one that later stages use in its place.
    """

    def __init__(self, lowered: Lowered, joining: Joining):
        self.program: Program = lowered.program
        self.publics: Publics = lowered.publics
        self.inputs: tuple[PlaintextFamily, ...] = lowered.inputs
        self._before = lowered
        self.builder, self.number, self.taken_out = rewritten(lowered.builder, joining)

    @property
    def carried(self) -> Mapping[Pair, HandedOn]:
        """As before, but for nodes."""
        found: dict[Pair, HandedOn] = {}
        for pair, given in self._before.carried.items():
            nodes = tuple(self.taken_out.get(n, int(self.number[n])) for n in given.nodes)
            found[pair] = HandedOn(nodes, _Moved(given, nodes))
        return found

    def nodes(self, var: Var) -> Iterable[int]:
        """New numbers."""
        return tuple(int(self.number[n]) for n in self._before.nodes(var))

    def gain(self, var: Var) -> float:
        """As before."""
        return self._before.gain(var)

    def layout(self, var: Var) -> str:
        """As before."""
        return self._before.layout(var)

    def location(self, var: Var, op: int, where: np.ndarray) -> TensorLocation | None:
        """As before, from the ciphertexts of new nodes."""
        return self._before.location(var, op, np.append(where[self.number], where[-1:]))


@dataclass(frozen=True, eq=False)
class _Moved:
    """Where what is handed on lies, on other nodes."""

    given: HandedOn
    nodes: tuple[int, ...]

    def __call__(self, op: int, where: np.ndarray) -> TensorLocation:
        before = np.full(max(self.given.nodes, default=0) + 2, -1, where.dtype)
        before[list(self.given.nodes)] = where[list(self.nodes)]
        return self.given.location(op, before)


def rewritten(b: Builder, joining: Joining) -> tuple[Builder, np.ndarray, dict[int, int]]:
    """The stages with one refresh for all members.

    Returns:
      (builder, int64: new number of each node, by node of a member the one that is used for it).
    """
    made = Builder(b.columns, b.width, b.batch)
    made.packs, made.operation = list(b.packs), b.operation
    writer = _Writer(b, made, joining)
    for stage in _ordered(b, joining):
        if stage is None:
            writer.join()
        else:
            writer.copy(b.stages[stage])
    return made, writer.number, writer.taken_out


def _ordered(b: Builder, joining: Joining) -> Iterable[int | None]:
    """Numbers of stages such that each comes after those that it uses, as they were otherwise; None
    for those that are new.
    """
    joint, count = frozenset(joining.stages), len(b.stages)
    after = max(joint)
    waits: list[set[int]] = []
    for stage in b.stages:
        own = set(stage.inputs)
        waits.append(own - joint | {count} if own & joint else own)
    waits.append(set(joint))
    users: list[list[int]] = [[] for _ in waits]
    left = [len(w) for w in waits]
    for k, own in enumerate(waits):
        for i in own:
            users[i].append(k)
    # The new stages right after the last of those that they need.
    ready = [((after, 1) if k == count else (k, 0), k) for k, n in enumerate(left) if not n]
    heapq.heapify(ready)
    while ready:
        _, k = heapq.heappop(ready)
        yield None if k == count else k
        for u in users[k]:
            left[u] -= 1
            if not left[u]:
                heapq.heappush(ready, ((after, 1) if u == count else (u, 0), u))


class _Writer:
    def __init__(self, b: Builder, made: Builder, joining: Joining):
        self.b, self.made, self.joining = b, made, joining
        self.number = np.full(len(b.nodes), -1, np.int64)
        self.taken_out: dict[int, int] = {}
        self._stages: dict[int, int] = {}

    def copy(self, stage: Stage) -> None:
        """A stage as it was, but for what it uses and whether it is refreshed."""
        b, made = self.b, self.made
        copied = Stage(
            len(made.stages),
            stage.source,
            drop=stage.drop,
            refreshed=stage.refreshed and stage.id not in self.joining.stages,
        )
        for n in stage.nodes:
            node = b.nodes[n]
            self.number[n] = len(made.nodes)
            made.nodes.append(replace(node, terms=self._terms(node, stage.id), stage=copied.id))
            made.support.append(made.supports.shared(b.support[n]))
            made.period.append(b.period[n])
            made.growth.append(b.growth[n])
            copied.nodes.append(int(self.number[n]))
            used = {made.nodes[a].stage for a in {*made.nodes[-1].first, *made.nodes[-1].second}}
            copied.inputs |= used - {copied.id}
        copied.outputs = [int(self.number[n]) for n in stage.outputs]
        copied.unscaled = frozenset(int(self.number[n]) for n in stage.unscaled)
        made.stages.append(copied)
        self._stages[stage.id] = copied.id
        if stage.id in b.sizes:
            made.sizes[copied.id] = b.sizes[stage.id]
        if stage.id in b.scalings and b.scalings[stage.id][0] in self._stages:
            given, factor = b.scalings[stage.id]
            made.scalings[copied.id] = self._stages[given], factor

    def _terms(self, node: Node, stage: int) -> Sequence[Any]:
        def name(a: int) -> int:
            if self.b.nodes[a].stage != stage and a in self.taken_out:
                return self.taken_out[a]
            return int(self.number[a])

        second = node.kind == Kind.DOT
        if isinstance(node.terms, Terms):
            table = node.terms.table.copy()
            for row in (0, 2) if second else (0,):
                distinct, place = np.unique(table[row], return_inverse=True)
                table[row] = np.array([name(a) for a in distinct.tolist()], np.int32)[place]
            return Terms(table, plain=node.terms.plain)
        return tuple((f, name(a), name(c) if second else c) for f, a, c in node.terms)

    def join(self) -> None:
        """The stages that are new."""
        made, joining = self.made, self.joining
        source = self.b.stages[max(joining.stages)].source
        made.begin(source)
        sums: list[list[tuple[int, Plain]]] = [[] for _ in range(joining.ciphers)]
        for m in joining.members:
            node = made.rotate(int(self.number[m.source]), -m.turned)
            mask = self._mask(m.place, m.factor * joining.factors[m.node])
            sums[m.cipher].append((node, mask))
        parts = made.end([made.rescale(made.dot_plain(terms)) for terms in sums], refreshed=True)
        for stage in joining.stages:
            self._take_out(stage, parts)

    def _take_out(self, stage: int, parts: Sequence[int]) -> None:
        made, joining = self.made, self.joining
        made.begin(self.b.stages[stage].source)
        nodes: list[int] = []
        own = [m for m in joining.members if self.b.nodes[m.node].stage == stage]
        for m in own:
            mask = self._mask(m.place, 1.0 / joining.factors[m.node])
            node = made.rescale(made.dot_plain([(parts[m.cipher], mask)]))
            node = made.rotate(node, m.shift)
            for step in m.back:
                node = made.add([(1, node), (1, made.rotate(node, step))])
            nodes.append(node)
        made.end(nodes)
        self.taken_out.update((m.node, node) for m, node in zip(own, nodes, strict=True))

    def _mask(self, held: np.ndarray, value: float) -> Plain:
        b = self.made
        rows, number = MaskRows(held[None, :]), np.array([value])
        family = PlaintextFamily(-1, rows, 0, b.batch, b.width, b.columns, 1.0, number)
        return b.pack(family), 0
