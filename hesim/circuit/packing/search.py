"""The search: which layout every value has, found operation by operation with a beam.

A state is the layouts of the values that are still needed. An operation takes each state to those
that its offers lead to; states that agree are merged into the cheapest.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hesim.circuit.aims.carried import Pair
from hesim.circuit.circuit import Kind
from hesim.circuit.packing.again import inputs_again
from hesim.circuit.packing.arrangement import relay, repeated
from hesim.circuit.packing.costs import Prices, counted, shaped
from hesim.circuit.packing.inputs import alike, digits, input_layouts, meeting, members_lowest
from hesim.circuit.packing.layout import Layout
from hesim.circuit.packing.offers.contraction import labels_of
from hesim.circuit.packing.offers.offer import Offer, Rule, Setting, of_one_member
from hesim.circuit.packing.offers.table import MASKED, OFFERS, OPAQUE, TIERS
from hesim.circuit.packing.operations import Operation
from hesim.program import Var
from hesim.progress import CompileWatch

__all__ = ["NoPlan", "Plan", "search"]

_FEW = 6
"""Layouts of an unused input that are tried beside the one in which it meets another operand."""

_FEW_STATES = 4
"""States for which later rules are looked at, the cheapest, since their work grows with elements;
only one of them where others have offers already.
"""

_LARGE = 2**13
"""Elements of an operation for which later rules are asked only if no state has an offer."""

_LATER = 12
"""Offers of a later rule whose moves are looked at: those with the cheapest work."""

_ORIGINS = 16
"""Ways to pack the largest input of which the best state is kept."""

_FAR = 4.0
"""Times the cheapest state's seconds beyond which it is not."""

_AGAIN = 2
"""Times that a plan is searched for with inputs where the one before wanted them, at most."""

_WORTH_AGAIN = 1.0
"""Seconds of a plan beyond which it is."""

_FREE = None
"""Layout of an input that nothing has used yet: the client packs it as it is wanted."""


@dataclass(frozen=True, eq=False)
class _State:
    seconds: float
    layouts: Mapping[int, Layout | None]
    choices: tuple | None  # linked: (operation, offer, layouts of the operands, earlier)
    copies: frozenset[tuple[int, Layout]] = frozenset()  # layouts to which values were brought
    origin: Layout | None = None  # of the largest input


@dataclass(frozen=True, eq=False)
class Plan:
    """A choice for every operation.

    Attributes:
      seconds: predicted, with every stage at the lowest level that it can run at.
      inputs: layout of every encrypted input, by value id.
      steps: (operation, offer, layouts of its operands) in order.
      carried: results that are brought to the layout of the argument that they are at the next run.
    """

    seconds: float
    inputs: Mapping[int, Layout]
    steps: tuple[tuple[Operation, Offer, tuple[Layout, ...]], ...]
    carried: tuple[Pair, ...] = ()


@dataclass(frozen=True, eq=False)
class _Way:
    """An offer with its price.

    Attributes:
      seconds: without moves. moves: (operand, layout that it is brought to, seconds).
    """

    seconds: float
    moves: tuple[tuple[int, Layout, float], ...]
    offer: Offer

    @property
    def whole(self) -> float:
        return self.seconds + sum(price for _, _, price in self.moves)

    def of_copy(self, k: int, copy: Layout, operands: int) -> _Way | None:
        """The way with operand k brought to a copy's layout, for which it was offered; None if it
        is brought on from there.

        operands: how many there are.
        """
        wanted = list(self.offer.operands or (None,) * operands)
        mine = range(len(wanted)) if operands == 1 else (k,)
        if any(wanted[i] not in (None, copy) for i in mine):
            return None
        for i in mine:
            wanted[i] = copy
        moves = *self.moves, (k, copy, 0.0)
        return _Way(self.seconds, moves, replace(self.offer, operands=tuple(wanted)))


class _Search:
    def __init__(
        self,
        setting: Setting,
        prices: Prices,
        beam: int,
        most: int,
        bound: float = math.inf,
        carried: Sequence[Pair] = (),
    ):
        self.setting, self.prices, self.beam, self.most = setting, prices, beam, most
        self.bound, self.carried = bound, tuple(carried)
        self.fixed: Mapping[int, Layout] = {}
        self._memo: dict[Any, list[_Way]] = {}
        self._inputs: dict[int, list[Layout]] = {}
        self.largest = -1

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
        for v in (*results, *(pair.argument for pair in self.carried)):
            last[v.id] = len(ops)  # what is carried meets its argument's layout in the end
        states = [_State(0.0, {v.id: _FREE for v in inputs}, None)]
        self.largest = max(inputs, key=lambda v: v.size).id if inputs else -1
        for k, op in enumerate(ops):
            if watch is not None:
                watch.operation(k, len(ops), op.equations[0])
            live = {v for v, until in last.items() if until > k}
            found = self._next(states, op, live)
            if not found:
                raise NoPlan(op, k)
            states = self._kept(found)
        stuck: list[Pair] = []
        ended = [self._handed_on(self._placed(state, results), stuck) for state in states]
        plans = [_plan(state, self.carried) for state in ended if state is not None]
        if not plans:
            raise NoPlan(stuck[0], len(ops))
        return sorted(plans, key=lambda plan: plan.seconds)

    def _kept(self, found: Sequence[_State]) -> list[_State]:
        """The cheapest states, and the cheapest of each way to pack the largest input: what a
        packing costs shows where operands meet, long after others were chosen.
        """
        found = sorted(found, key=lambda s: s.seconds)
        first: dict[Layout | None, _State] = {}
        for state in found:
            first.setdefault(state.origin, state)
        kept, most = found[: self.beam], _FAR * found[0].seconds
        # The others of `first` are dearer than the beam, and in order.
        return kept + [
            s for s in [*first.values()][:_ORIGINS] if s not in kept and s.seconds <= most
        ]

    def _placed(self, state: _State, results: Sequence[Var]) -> _State:
        """The state, with inputs that are results and nothing else in as few ciphertexts as can
        be.
        """
        layouts = dict(state.layouts)
        for v in results:
            if layouts.get(v.id, _FREE) is _FREE:
                layouts[v.id] = min(self._fresh(v), key=lambda x: x.ciphertexts)
        return _State(state.seconds, layouts, state.choices)

    def _handed_on(self, state: _State, stuck: list[Pair]) -> _State | None:
        """The state, with what is carried in the layouts of its arguments, each of its ciphertexts
        for a level's price; None if there is no way for a pair, which `stuck` gets.
        """
        layouts, seconds = dict(state.layouts), state.seconds
        for pair in self.carried:
            out = layouts[pair.result.id]
            into = layouts.get(pair.argument.id)
            if pair.result is pair.argument or out is None or into is None:
                continue  # as it is, or used by nothing
            relaid = relay(out, into)
            if relaid is None:
                stuck.append(pair)
                return None
            if out != into:
                seconds += self.prices.seconds(relaid.works) + self.prices.encoding(relaid.works)
            seconds += self.prices.level * into.ciphertexts
        return _State(seconds, layouts, state.choices)

    def _next(self, states: Sequence[_State], op: Operation, live: set[int]) -> list[_State]:
        """The states that an operation leads to: by later rules where earlier ones offer nothing,
        for the cheapest states, as long as they are cheaper than what others have come to.
        """
        found: dict[Any, _State] = {}
        for rules in TIERS:
            least = min((s.seconds for s in found.values()), default=math.inf)
            left = []
            for state in states:
                if state.seconds < least and not self._after(state, op, rules, live, found):
                    left.append(state)
            states = left[: 1 if found else _FEW_STATES]
            if found and (op.kind == "dot_general" or _size(op) > _LARGE):
                break  # contractions look for shears themselves, and tables would be large
        return list(found.values())

    def _after(
        self,
        state: _State,
        op: Operation,
        rules: Mapping[str, Rule],
        live: set[int],
        found: dict[Any, _State],
    ) -> bool:
        """Adds the states that an operation leads to, each once; whether there are any.

        live: values that are still needed.
        """
        offered = False
        for nxt in self._step(state, op, rules):
            offered = True
            if nxt.seconds > self.bound:
                continue
            layouts = {v: x for v, x in nxt.layouts.items() if v in live}
            key = tuple(sorted(layouts.items(), key=lambda item: item[0]))
            if key not in found or nxt.seconds < found[key].seconds:
                copies = frozenset(copy for copy in nxt.copies if copy[0] in live)
                found[key] = _State(nxt.seconds, layouts, nxt.choices, copies, nxt.origin)
        return offered

    def _step(self, state: _State, op: Operation, rules: Mapping[str, Rule]) -> Iterator[_State]:
        for layouts, extra in self._operands(state, op):
            for way in self._ways(state, op, layouts, rules):
                seconds, copies = way.seconds, state.copies
                for k, to, price in way.moves:
                    copy = op.operands[k].id, to
                    if copy not in copies:
                        seconds += price
                        copies |= {copy}
                offer = way.offer
                after = dict(state.layouts)
                for v, x in zip(op.operands, layouts, strict=True):
                    after[v.id] = x
                for v, x in zip(op.outputs, offer.outs, strict=True):
                    after[v.id] = x
                choices = op, offer, layouts, state.choices
                origin = state.origin or after.get(self.largest)
                yield _State(state.seconds + extra + seconds, after, choices, copies, origin)

    def _ways(
        self, state: _State, op: Operation, layouts: tuple[Layout, ...], rules: Mapping[str, Rule]
    ) -> Iterator[_Way]:
        """Offers for the operands where they lie, and where copies of them do."""
        yield from self._offers(op, layouts, rules)
        if rules is not OFFERS:
            return
        for k, (v, own) in enumerate(zip(op.operands, layouts, strict=True)):
            copies = sorted(x for of, x in state.copies if of == v.id and x.shape == own.shape)
            for copy in copies:
                there = (*layouts[:k], copy, *layouts[k + 1 :])
                for way in self._offers(op, there, rules):
                    taken = way.of_copy(k, copy, len(layouts))
                    if taken is not None:
                        yield taken

    def _operands(self, state: _State, op: Operation) -> Iterator[tuple[tuple[Layout, ...], float]]:
        """Layouts of the operands: those they have, or for unused inputs those they may have."""
        known = [state.layouts[v.id] for v in op.operands]
        ways: list[tuple[Layout, ...]] = [()]
        for k, x in enumerate(known):
            ways = [
                (*before, y)
                for before in ways
                for y in self._choices(op, k, x, known, before, state.layouts.values())
            ]
        for pick in ways:
            extra = sum(self._encrypting(x) for x, y in zip(pick, known, strict=True) if y is _FREE)
            yield pick, extra

    def _choices(
        self,
        op: Operation,
        k: int,
        layout: Layout | None,
        known: Sequence[Layout | None],
        before: Sequence[Layout],
        live: Collection[Layout | None],
    ) -> list[Layout]:
        """The layout of an operand, or those that an unused input may have: beside others, the ones
        in which it meets them, and a few more.

        live: layouts of the values that are still needed.
        """
        if layout is not None:
            return [layout]
        if op.operands[k].id in self.fixed:
            return [self.fixed[op.operands[k].id]]
        fresh = self._fresh(op.operands[k])
        others = [y for y in (*before, *known) if y is not None]
        if others:
            found = [*dict.fromkeys(self._meeting(op, k, others))]
        else:
            # It may meet any of the values of its shape later on.
            shape = self.setting.shape(op.operands[k])
            found = [*dict.fromkeys(x for x in live if x is not None and x.shape == shape)]
            if not found:
                return fresh
        return [*found, *(y for y in fresh if y not in found)][: len(found) + _FEW]

    def _meeting(self, op: Operation, k: int, others: Sequence[Layout]) -> Iterator[Layout]:
        """Layouts in which operand k meets others as they are."""
        v = op.operands[k]
        shape = self.setting.shape(v)
        if op.kind != "dot_general":
            yield from (y for x in others if (y := alike(x, shape)) is not None)
            return
        labels = labels_of(self.setting, op.equations[0])
        if labels is None:
            return
        own, other = (labels.left, labels.right) if k == 0 else (labels.right, labels.left)
        back = {label: axis for axis, label in enumerate(own)}
        sizes = tuple(e if label in back else 1 for label, e in enumerate(labels.sizes))
        new = [
            d
            for label in own
            if label not in other
            for d in digits(label, self.setting.factors.get((v.id, back[label]), (sizes[label],)))
        ]
        full = [y for x in others if (y := repeated(x)) is not None]
        for x in (*others, *full):
            for y in meeting(labels.labelled(x, other), new, sizes):
                if y.ciphertexts <= self.most:
                    yield y.renamed(shape, back).canonical()

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
            every = input_layouts(shape, split, self.setting.columns, self.most)
            self._inputs[v.id] = members_lowest(list(every))
        return list(self._inputs[v.id])

    def _offers(
        self, op: Operation, layouts: tuple[Layout, ...], rules: Mapping[str, Rule]
    ) -> list[_Way]:
        """For each layout of the results the cheapest offer, and those that would be cheaper if
        their operands had been brought where they want them before.
        """
        key = op.signature, layouts, id(rules)
        if key in self._memo:
            return self._memo[key]
        rule, seen = rules.get(op.kind), of_one_member(self.setting, op, layouts)
        if seen is None and rules is OPAQUE:
            seen = layouts
        found: dict[Any, list[_Way]] = {}
        offers = rule(self.setting, op, seen) if rule is not None and seen is not None else ()
        if rules is not OFFERS:
            offers = heapq.nsmallest(_LATER, offers, key=lambda o: self.prices.seconds(o.works))
        for offer in offers:
            way = self._way(op, offer, seen or layouts)
            if way is not None:
                found.setdefault(offer.outs, []).append(way)
        out: list[_Way] = []
        for ways in found.values():
            best = min(way.whole for way in ways)
            useful = {tuple(m[:2] for m in w.moves): w for w in reversed(ways) if w.seconds < best}
            out += useful.values() or [min(ways, key=lambda way: way.whole)]
            if all(w.whole > best for w in useful.values()) and useful:
                out.append(min(ways, key=lambda way: way.whole))
        self._memo[key] = out
        return out

    def _way(self, op: Operation, offer: Offer, seen: tuple[Layout, ...]) -> _Way | None:
        moves = []
        for k, (x, y) in enumerate(offer.moves(seen)):
            if y is None or x == y:
                continue
            relaid = relay(x, y)
            if relaid is None:
                return None
            price = self.prices.seconds(relaid.works) + self.prices.encoding(relaid.works)
            moves.append((min(k, len(op.operands) - 1), y, price))
        seconds = self.prices.seconds(offer.works) + self.prices.vector * offer.encoded
        if op.kind in MASKED:
            seconds += self.prices.encoding(offer.works)
        return _Way(seconds, tuple(moves), offer)


def _size(op: Operation) -> int:
    return max(v.size for v in (*op.operands, *op.outputs))


class NoPlan(Exception):
    """No offer serves an operation, or a carried result does not get back to its argument.

    Attributes:
      of: the operation, or the pair. reached: operations before it.
    """

    def __init__(self, of: Operation | Pair, reached: int):
        super().__init__(of, reached)
        self.of, self.reached = of, reached


def _plan(state: _State, carried: Sequence[Pair] = ()) -> Plan:
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
    pairs = tuple(pair for pair in carried if pair.argument.id in inputs)
    return Plan(state.seconds, inputs, tuple(reversed(steps)), pairs)


def search(
    setting: Setting,
    ops: Sequence[Operation],
    prices: Prices,
    *,
    beam: int = 32,
    most: int = 20_000,
    bound: float = math.inf,
    watch: CompileWatch | None = None,
    carried: Sequence[Pair] = (),
) -> list[Plan]:
    """The cheapest plans found, best first.

    bound: seconds beyond which a plan is not followed. carried: see `Plan`.

    Raises:
      NoPlan: an operation has no offer in any layout that was reached, or what is carried cannot be
      brought to where its argument lies.
    """
    program = setting.program
    inputs = [v for v in program.inputs if v.encrypted]
    results = [v for v in program.outputs if isinstance(v, Var) and v.encrypted]
    searching = _Search(setting, prices, beam, most, bound, carried)
    plans = searching.run(ops, inputs, results, watch)
    for _ in range(_AGAIN if plans[0].seconds > _WORTH_AGAIN else 0):
        searching.fixed, searching.bound = inputs_again(plans[0], setting, prices), plans[0].seconds
        if searching.fixed == plans[0].inputs:
            break
        try:
            found = searching.run(ops, inputs, results)
        except NoPlan:  # none that is cheaper
            break
        plans = sorted((*found, *plans), key=lambda plan: plan.seconds)
    return plans
