"""The search: which layout every value has, found operation by operation with a beam.

A state is the layouts of the values that are still needed. An operation takes each state to those
that its offers lead to; states that agree are merged into the cheapest.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hesim.circuit.circuit import Kind
from hesim.circuit.packing.arrangement import like, relay
from hesim.circuit.packing.costs import Prices, counted, shaped
from hesim.circuit.packing.layout import REPLICATED, Coordinate, Layout
from hesim.circuit.packing.offers.offer import Offer, Rule, Setting, of_one_member
from hesim.circuit.packing.offers.table import LAST, OFFERS
from hesim.circuit.packing.operations import Operation
from hesim.program import Program, Var
from hesim.progress import CompileWatch

__all__ = ["Plan", "factors", "input_layouts", "search"]

_FEW = 6
"""Layouts of an unused input that are tried beside the one in which it meets another operand."""

_FREE = None
"""Layout of an input that nothing has used yet: the client packs it as it is wanted."""


@dataclass(frozen=True, eq=False)
class _State:
    seconds: float
    layouts: Mapping[int, Layout | None]
    choices: tuple | None  # linked: (operation, offer, layouts of the operands, earlier)


@dataclass(frozen=True, eq=False)
class Plan:
    """A choice for every operation.

    Attributes:
      seconds: predicted, with every stage at the lowest level that it can run at.
      inputs: layout of every encrypted input, by value id.
      steps: (operation, offer, layouts of its operands) in order.
    """

    seconds: float
    inputs: Mapping[int, Layout]
    steps: tuple[tuple[Operation, Offer, tuple[Layout, ...]], ...]


def factors(
    program: Program, axes: Mapping[int, int | None], inner: Callable[[Var, int], int | None]
) -> dict[tuple[int, int], tuple[int, ...]]:
    """Per value id and axis of one member, the sizes into which later reshapes split it, lowest
    first.

    Follows reshapes backwards through operations that keep axes where they are.
    """
    out: dict[tuple[int, int], tuple[int, ...]] = {}
    for eqn in reversed(program.ops):
        if eqn.name in ("reshape", "squeeze", "expand_dims"):
            _split_by_reshape(eqn, out, inner)
            continue
        x, y = eqn.inputs[0], eqn.outputs[0]
        if eqn.name == "transpose":
            pairs = list(enumerate(eqn.params["permutation"]))
            moves = [(a, b) for b, a in pairs]
        elif eqn.name == "broadcast_in_dim":
            moves = list(enumerate(eqn.params["broadcast_dimensions"]))
        elif all(v.shape in (y.shape, ()) for v in eqn.inputs):
            moves = [(k, k) for k in range(len(y.shape))]
        else:
            continue
        for v in eqn.inputs:
            if not isinstance(v, Var) or not v.encrypted or len(v.shape) != len(x.shape):
                continue
            for a, b in moves:
                i, j = inner(v, a), inner(y, b)
                if i is not None and j is not None and (y.id, j) in out:
                    if v.shape[a] == y.shape[b]:
                        out.setdefault((v.id, i), out[y.id, j])
    return out


def _split_by_reshape(eqn: Any, out: dict, inner: Callable) -> None:
    x, y = eqn.inputs[0], eqn.outputs[0]
    before = [math.prod(x.shape[k + 1 :]) for k in range(len(x.shape))]
    after = [math.prod(y.shape[k + 1 :]) for k in range(len(y.shape))]
    for a, extent in enumerate(x.shape):
        i = inner(x, a)
        if i is None or extent == 1:
            continue
        sizes: list[int] = []
        for b in reversed(range(len(y.shape))):
            low, high = after[b], after[b] * y.shape[b]
            if low >= before[a] and high <= before[a] * extent and y.shape[b] > 1:
                j = inner(y, b)
                sizes += out.get((y.id, j), (y.shape[b],)) if j is not None else (y.shape[b],)
        if math.prod(sizes) == extent and len(sizes) > 1:
            out[x.id, i] = tuple(sizes)


def input_layouts(
    shape: Sequence[int], split: Mapping[int, Sequence[int]], columns: int, most: int
) -> Iterator[Layout]:
    """Layouts of a fresh tensor: every order of a subset of its digits on columns, the rest on
    ciphertexts, with what is left of the columns replicated on top.
    """
    digits = []
    for axis, extent in enumerate(shape):
        stride = 1
        for size in split.get(axis, (extent,)):
            if size > 1:
                digits.append(Coordinate(axis, size, stride))
            stride *= size
    seen = set()
    whole = math.prod(shape)
    for count in range(len(digits) + 1):
        for order in itertools.permutations(digits, count):
            slots: list[Coordinate] = []
            rest = [d for d in digits if d not in order]
            room = columns
            fits = True
            for d in order:
                padded = 1 << (d.size - 1).bit_length()
                highest = not any(e.axis == d.axis and e.stride > d.stride for e in digits)
                if padded != d.size and not highest:
                    fits = False
                taken = min(padded, room)
                if taken > 1:
                    slots.append(Coordinate(d.axis, taken, d.stride))
                if taken < padded:
                    if d.size % taken and not highest:
                        fits = False
                    rest.append(Coordinate(d.axis, -(-d.size // taken), d.stride * taken))
                room //= taken
            if not fits:
                continue
            if room > 1:
                slots.append(Coordinate(REPLICATED, room))
            layout = Layout(tuple(shape), tuple(slots), tuple(rest), (), True).canonical()
            if layout in seen or layout.ciphertexts > most:
                continue
            if layout.ciphertexts > 1 and whole < layout.ciphertexts * columns / 128:
                continue
            seen.add(layout)
            yield layout


class _Search:
    def __init__(
        self, setting: Setting, prices: Prices, beam: int, most: int, bound: float = math.inf
    ):
        self.setting, self.prices, self.beam, self.most = setting, prices, beam, most
        self.bound = bound
        self._memo: dict[Any, list[tuple[float, Offer]]] = {}
        self._inputs: dict[int, list[Layout]] = {}

    def run(
        self,
        ops: Sequence[Operation],
        inputs: Sequence[Var],
        results: Sequence[Var],
        watch: CompileWatch | None = None,
    ) -> list[Plan]:
        last: dict[int, int] = {}
        for k, op in enumerate(ops):
            for v in op.operands:
                last[v.id] = k
        for v in results:
            last[v.id] = len(ops)
        states = [_State(0.0, {v.id: _FREE for v in inputs}, None)]
        for k, op in enumerate(ops):
            if watch is not None:
                watch.operation(k, len(ops), op.equations[0])
            live = {v for v, until in last.items() if until > k}
            found = self._after(states, op, OFFERS, live) or self._after(states, op, LAST, live)
            if not found:
                raise NoPlan(op)
            states = heapq.nsmallest(self.beam, found, key=lambda s: s.seconds)
        return [_plan(self._placed(state, results)) for state in states]

    def _placed(self, state: _State, results: Sequence[Var]) -> _State:
        """The state, with inputs that are results and nothing else in as few ciphertexts as can
        be.
        """
        layouts = dict(state.layouts)
        for v in results:
            if layouts.get(v.id, _FREE) is _FREE:
                layouts[v.id] = min(self._fresh(v), key=lambda x: x.ciphertexts)
        return _State(state.seconds, layouts, state.choices)

    def _after(
        self, states: Sequence[_State], op: Operation, rules: Mapping[str, Rule], live: set[int]
    ) -> list[_State]:
        """The states that an operation leads to, each once; live: values that are still needed."""
        found: dict[Any, _State] = {}
        for state in states:
            for nxt in self._step(state, op, rules):
                if nxt.seconds > self.bound:
                    continue
                layouts = {v: x for v, x in nxt.layouts.items() if v in live}
                key = tuple(sorted(layouts.items(), key=lambda item: item[0]))
                if key not in found or nxt.seconds < found[key].seconds:
                    found[key] = _State(nxt.seconds, layouts, nxt.choices)
        return list(found.values())

    def _step(self, state: _State, op: Operation, rules: Mapping[str, Rule]) -> Iterator[_State]:
        for layouts, extra in self._operands(state, op):
            for seconds, offer in self._offers(op, layouts, rules):
                after = dict(state.layouts)
                for v, x in zip(op.operands, layouts, strict=True):
                    after[v.id] = x
                for v, x in zip(op.outputs, offer.outs, strict=True):
                    after[v.id] = x
                yield _State(
                    state.seconds + extra + seconds, after, (op, offer, layouts, state.choices)
                )

    def _operands(self, state: _State, op: Operation) -> Iterator[tuple[tuple[Layout, ...], float]]:
        """Layouts of the operands: those they have, or for unused inputs those they may have."""
        known = [state.layouts[v.id] for v in op.operands]
        ways: list[tuple[Layout, ...]] = [()]
        for v, x in zip(op.operands, known, strict=True):
            ways = [(*before, y) for before in ways for y in self._choices(v, x, known, before)]
        for pick in ways:
            extra = sum(self._encrypting(x) for x, y in zip(pick, known, strict=True) if y is _FREE)
            yield pick, extra

    def _choices(
        self,
        v: Var,
        layout: Layout | None,
        known: Sequence[Layout | None],
        before: Sequence[Layout],
    ) -> list[Layout]:
        """The layout of an operand, or those that an unused input may have: beside others, the one
        in which it meets them, and a few more.
        """
        if layout is not None:
            return [layout]
        fresh = self._fresh(v)
        others = [y for y in (*before, *known) if y is not None]
        if not others:
            return fresh
        alike = [_alike(y, self.setting.shape(v)) for y in others]
        found = [y for y in dict.fromkeys(alike) if y is not None]
        return [*found, *(y for y in fresh if y not in found)][: len(found) + _FEW]

    def _encrypting(self, layout: Layout) -> float:
        return self.prices.seconds(
            [shaped((counted(Kind.INPUT, layout.ciphertexts),), 0, layout.ciphertexts)]
        )

    def _fresh(self, v: Var) -> list[Layout]:
        if v.id not in self._inputs:
            shape = self.setting.shape(v)
            split = {
                a: self.setting.factors[v.id, a]
                for a in range(len(shape))
                if (v.id, a) in self.setting.factors
            }
            self._inputs[v.id] = list(input_layouts(shape, split, self.setting.columns, self.most))
        return list(self._inputs[v.id])

    def _offers(
        self, op: Operation, layouts: tuple[Layout, ...], rules: Mapping[str, Rule]
    ) -> list[tuple[float, Offer]]:
        """(seconds, offer) of the cheapest offer for each layout of the results."""
        key = op.signature, layouts, rules is LAST
        if key in self._memo:
            return self._memo[key]
        rule, seen = rules.get(op.kind), of_one_member(self.setting, op, layouts)
        found: dict[Any, tuple[float, Offer]] = {}
        offers = rule(self.setting, op, seen) if rule is not None and seen is not None else ()
        for offer in offers:
            seconds = self.prices.seconds(offer.works)
            for x, y in offer.moves(seen or layouts):
                if y is not None:
                    way = relay(x, y)
                    if way is None:
                        break
                    seconds += self.prices.seconds(way.works)
            else:
                if offer.outs not in found or seconds < found[offer.outs][0]:
                    found[offer.outs] = seconds, offer
        self._memo[key] = list(found.values())
        return self._memo[key]


def _alike(model: Layout, shape: tuple[int, ...]) -> Layout | None:
    """The layout in which a tensor of this shape meets the model as it is, if all of it has a place
    there.
    """
    if len(model.shape) != len(shape):
        return None
    axes = [a for a in model.axes if shape[a] == model.shape[a]]
    found = like(model, axes, shape)
    if found is None or any(d > 1 and not found.pieces(a) for a, d in enumerate(shape)):
        return None
    return found


class NoPlan(Exception):
    """No offer serves an operation."""

    def __init__(self, op: Operation):
        super().__init__(f"{op.kind} at {op.equations[0].source}")
        self.operation = op


def _plan(state: _State) -> Plan:
    steps = []
    inputs: dict[int, Layout] = {}
    choices = state.choices
    while choices is not None:
        op, offer, layouts, choices = choices
        steps.append((op, offer, layouts))
    made = {v.id for op, _, _ in steps for v in op.outputs}
    for op, _, layouts in reversed(steps):
        for v, x in zip(op.operands, layouts, strict=True):
            if v.id not in made:
                inputs.setdefault(v.id, x)
    for v, x in state.layouts.items():
        if v not in made and x is not None:
            inputs.setdefault(v, x)
    return Plan(state.seconds, inputs, tuple(reversed(steps)))


def search(
    setting: Setting,
    ops: Sequence[Operation],
    prices: Prices,
    *,
    beam: int = 32,
    most: int = 20_000,
    bound: float = math.inf,
    watch: CompileWatch | None = None,
) -> list[Plan]:
    """The cheapest plans found, best first.

    bound: seconds beyond which a plan is not followed.

    Raises:
      NoPlan: an operation has no offer in any layout that was reached.
    """
    program = setting.program
    inputs = [v for v in program.inputs if v.encrypted]
    results = [v for v in program.outputs if isinstance(v, Var) and v.encrypted]
    return _Search(setting, prices, beam, most, bound).run(ops, inputs, results, watch)
