"""Local search for the stages to refresh.

A change of the refreshes concerns the stages before it, up to the next refresh, and only these are
looked at again. One refresh is added, left out or moved to a neighbour at a time; then all inputs
of a stage at once, or all stages with the same users, since a cut through several ciphertexts is
worth nothing until it is whole.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Sequence

from hesim.circuit.refreshes.costs import Placed, StageCosts

__all__ = ["Search", "best_refreshes"]

_ENOUGH = 1e-3
"""Part of its seconds that a sweep must save to be followed by another."""


_RESTARTS = ((1.0, 2), (1.5, 1), (3.0, 1))
"""Times the price of a refresh at which other plans are made, to be compared at the true one, and
from how many greedy ones. Where refreshes only together cost more than they save, none is left out
by itself; planned at a higher price they are not there to begin with."""

_SAME = 0.012
"""Part of the seconds within which two plans cost the same: predictions are not as good, and a
refresh is a round trip to somebody else."""

_ROUNDS = 4
"""Times that every refresh is forced, at most, as long as that finds something."""

_AROUND = 12
"""Stages around one whose refresh is forced, at which others are tried."""

_MOST_TRIED = 300_000
"""Looks at a stage, about half a second of them, after which nothing new is begun."""


def best_refreshes(
    costs: StageCosts, start: Collection[int], sweeps: int, rounds: int | None = None
) -> set[int]:
    """Places to refresh: the best found from `start` and from greedy plans at several prices.

    Args:
      sweeps: through all stages, at most, in one search.
      rounds: refreshes that wait for each other, at most, as in `start`; None for any number.
    """
    if rounds is not None:
        search = Search(costs, start, rounds)
        search.sweep(sweeps, whole=False)
        search.sweep(sweeps, whole=True)
        search.force(_MOST_TRIED)
        return search.places
    best = Search(costs, start)
    best.sweep(sweeps, whole=False)
    best.sweep(sweeps, whole=True)
    if best.places == costs.forced:
        return best.places
    found = [best]
    tried, known = best.tried, {frozenset(start)}
    for price, starts in _RESTARTS:
        dear = costs.priced(price)
        for placed in dear.greedy()[:starts]:
            if tried > _MOST_TRIED:
                return _fewest(costs, found)
            begin = Search(dear, placed.refreshed)
            if price != 1.0:
                begin.sweep(sweeps, whole=True)
            if frozenset(begin.places) in known:
                continue
            known.add(frozenset(begin.places))
            search = Search(costs, begin.places)
            search.sweep(sweeps, whole=True)
            tried += begin.tried + search.tried
            found.append(search)
            if price != 1.0:
                found.append(Search(costs, begin.places))
            if search.seconds < best.seconds * (1 - 1e-9):
                best = search
    best.tried = tried
    for _ in range(_ROUNDS):
        before = best.seconds
        best.force(_MOST_TRIED)
        if best.seconds >= before:
            break
    return _fewest(costs, [best, *found])


def _fewest(costs: StageCosts, found: Sequence[Search]) -> set[int]:
    """Of plans that cost almost the same, the one that refreshes the fewest ciphertexts."""
    least = min(search.seconds for search in found)
    near = [search for search in found if search.seconds <= least * (1 + _SAME)]
    widths = [shape.width for shape in costs.shapes]
    return min(near, key=lambda s: (sum(widths[k] for k in s.places), s.seconds)).places


class Search:
    """A plan under local search.

    Args:
      costs: of the stages.
      start: places of the stages that are refreshed at first; levels must suffice.
      rounds: refreshes that wait for each other, at most; None for any number.

    Attributes:
      refreshed: by place, whether a stage is.
      seconds: of the whole plan.
      tried: stages looked at so far, each as often as it was.
    """

    def __init__(self, costs: StageCosts, start: Collection[int], rounds: int | None = None):
        placed = costs.placed(start)
        assert isinstance(placed, Placed), "a plan to begin with does not fit the levels"
        count = len(placed.level)
        self._costs, self._rounds = costs, rounds
        self._level = placed.level
        self.refreshed = [k in placed.refreshed for k in range(count)]
        self._cost = [costs.at(k, placed.level, r)[2] for k, r in enumerate(self.refreshed)]
        self.seconds = sum(self._cost)
        self.tried = count
        self._taken = 1
        self._tried_at, self._tried_around = [0] * count, [0] * count

    @property
    def places(self) -> set[int]:
        """Of the stages that are refreshed."""
        return {k for k, chosen in enumerate(self.refreshed) if chosen}

    def sweep(self, sweeps: int, *, whole: bool) -> None:
        """Tries changes at every stage, so often at most, as long as it pays; `whole`: those of
        all inputs or siblings too.
        """
        stages = [k for k, free in enumerate(self._costs.free) if free]
        for _ in range(sweeps):
            before = self.seconds
            for k in stages:
                # As long as nothing is taken, what was tried stays in vain.
                if self._tried_at[k] < self._taken:
                    self._try_at(k)
                    self._tried_at[k] = self._taken
                if whole and self._tried_around[k] < self._taken:
                    self._try_around(k)
                    self._tried_around[k] = self._taken
            if self.seconds > before * (1 - _ENOUGH):
                break

    def force(self, most: int) -> None:
        """Toggles each refresh by itself, whatever it costs, and searches around it for what makes
        up for it, until `most` stages were looked at.
        """
        for k, free in enumerate(self._costs.free):
            if not free or self.tried > most:
                continue
            before = self.seconds, self.refreshed[:], self._level[:], self._cost[:]
            self.tried += len(self._level) // 100  # for the copies
            if self.attempt((k,), math.inf):
                self._settle(self._near(k))
            if self.seconds >= before[0] * (1 - 1e-9):
                self.seconds, self.refreshed, self._level, self._cost = before

    def _settle(self, stages: Sequence[int]) -> None:
        for _ in range(2):
            taken = self._taken
            for k in stages:
                self._try_at(k)
            if taken == self._taken:
                break

    def _near(self, k: int) -> list[int]:
        """Free stages around one, the nearest first, without it."""
        costs, found, edge = self._costs, {k}, [k]
        order: list[int] = []
        while edge and len(order) < _AROUND:
            step = [n for e in edge for n in (*costs.users[e], *costs.inputs[e]) if n not in found]
            edge = list(dict.fromkeys(step))
            found.update(edge)
            order += [n for n in edge if costs.free[n]]
        return order[:_AROUND]

    def _try_at(self, k: int) -> None:
        costs, refreshed = self._costs, self.refreshed
        if not refreshed[k]:
            self.attempt((k,))
            return
        # Moving a refresh one stage up or down is two toggles at once.
        near = [*costs.users[k], *(i for i in costs.inputs[k] if costs.inputs[i])]
        trials = [{k}, *({k, u} for u in near if not refreshed[u])]
        taken: set[int] = set()
        for toggled in trials:
            if self.attempt(tuple(toggled ^ taken)):
                taken = toggled

    def _try_around(self, k: int) -> None:
        refreshed, costs = self.refreshed, self._costs
        inputs = [i for i in costs.inputs[k] if costs.free[i]]
        for group in (inputs, costs.siblings.get(k, ())):
            if len(group) > 1:
                there = [i for i in group if refreshed[i]]
                if len(there) > 1 and self.attempt(there):
                    continue
                if len(there) < len(group) - 1:
                    self.attempt([i for i in group if not refreshed[i]])
        if len(inputs) > 1:
            there = [i for i in inputs if refreshed[i]]
            if not refreshed[k] and len(there) > 1:
                self.attempt([k, *there])
            elif refreshed[k] and not there:
                self.attempt([k, *inputs])
        if refreshed[k] and len(costs.users[k]) > 1:
            self._try_after(k)

    def _try_after(self, k: int) -> None:
        """A refresh behind all users instead, and with it what it saves behind those."""
        refreshed, costs = self.refreshed, self._costs
        users = [u for u in costs.users[k] if not refreshed[u]]
        later = {v for u in users for v in costs.users[u] if refreshed[v] and costs.free[v]}
        if not self.attempt([k, *users]) and later:
            self.attempt([k, *users, *later])

    def attempt(self, toggled: Sequence[int], most: float | None = None) -> bool:
        """Takes or leaves out these refreshes if the plan is cheaper then, or takes less than
        `most` seconds, and levels suffice.
        """
        refreshed = self.refreshed
        for k in toggled:
            refreshed[k] = not refreshed[k]
        levels: dict[int, int] = {}
        costs: dict[int, float] = {}
        seconds = self._follow(toggled, levels, costs)
        cheaper = seconds < (self.seconds * (1 - 1e-9) if most is None else most)
        if cheaper and (
            self._rounds is None or self._costs.rounds(refreshed.__getitem__) <= self._rounds
        ):
            for k, cost in costs.items():
                self._cost[k] = cost
            self.seconds = seconds
            self._taken += 1
            return True
        for k, level in levels.items():
            self._level[k] = level
        for k in toggled:
            refreshed[k] = not refreshed[k]
        return False

    def _follow(
        self, toggled: Sequence[int], before: dict[int, int], found: dict[int, float]
    ) -> float:
        """Sets the levels of all stages that a change concerns, noting those `before` and the
        seconds `found`. Returns the seconds of the plan, infinite where levels run out.
        """
        level, refreshed, cost = self._level, self.refreshed, self._cost
        at, inputs, top = self._costs.at, self._costs.inputs, self._costs.top
        waiting = [-k for k in toggled]
        if len(waiting) > 1:
            heapq.heapify(waiting)
        pop, push = heapq.heappop, heapq.heappush
        seen = set(toggled)
        seconds = self.seconds
        while waiting:
            k = -pop(waiting)
            run, _, now = at(k, level, refreshed[k])
            if run > top:
                return math.inf
            found[k] = now
            seconds += now - cost[k]
            if run != level[k]:
                before[k], level[k] = level[k], run
                for i in inputs[k]:
                    if i not in seen:
                        seen.add(i)
                        push(waiting, -i)
        self.tried += len(found)
        return seconds
