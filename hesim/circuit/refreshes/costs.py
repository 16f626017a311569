"""Levels and seconds of stages, for a planner that chooses which of them are refreshed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from hesim.circuit.circuit import Kind
from hesim.circuit.cost import instruction_seconds
from hesim.circuit.refresher import Refresher
from hesim.circuit.shape import StageShape
from hesim.params import CKKSParams

__all__ = ["NEVER", "Placed", "StageCosts"]

NEVER = 10**9
"""A level that no chain has: of a refresh whose result is wanted above what it reaches."""


class Placed(NamedTuple):
    """A plan: by place, levels of the stages and of their outputs; what is refreshed; seconds."""

    level: list[int]
    want: list[int]
    refreshed: set[int]
    seconds: float


class StageCosts:
    """Stages by their place in order, what they use, and what they cost at each level.

    Args:
      dear: by number of a stage, times the price that a refresh of its outputs counts, since they
        are not what the refresher is made for.

    Attributes:
      names: number of the stage at each place, ascending.
      shapes: of the stages.
      users, inputs: places of the stages that use its outputs, and whose outputs it uses.
      forced: places of those that are refreshed whatever it costs.
      free: by place, whether a stage may be refreshed or not; those without inputs are fresh.
      siblings: places of stages that the same stages use, more than one, by the first of them.
      floors: by place, level below which the outputs do not hold what is in them.
      carried: place of the stage that hands its outputs to the next run, by that of the input that
        they are there. It is refreshed itself, or takes them out of what is.
      top: levels of the chain. highest: level of what is refreshed, at most. lowest: level of what
        a refresh takes.
    """

    def __init__(
        self,
        shapes: Mapping[int, StageShape],
        params: CKKSParams,
        price: float | None,
        refresher: Refresher,
        floors: Mapping[int, int] | None = None,
        carried: Mapping[int, int] | None = None,
        dear: Mapping[int, float] | None = None,
    ):
        self.names = sorted(shapes)
        self.shapes = [shapes[s] for s in self.names]
        self.floors = [(floors or {}).get(s.source, 0) for s in self.shapes]
        self.top = params.levels
        self.highest = refresher.highest(params.levels)
        self.lowest = refresher.min_input_level
        self._log_n = params.log_n
        place = {s: k for k, s in enumerate(self.names)}
        pairs = (carried or {}).items()
        self.carried = {place[i]: place[o] for i, o in pairs if i in place}
        self.inputs = [[place[i] for i in s.inputs if i in place] for s in self.shapes]
        self.users: list[list[int]] = [[] for _ in self.names]
        self._exact: list[list[int]] = [[] for _ in self.names]  # those that need its exact scale
        for k, inputs in enumerate(self.inputs):
            for i in inputs:
                assert i < k, "stages use the outputs of earlier ones"
                self.users[i].append(k)
                if self.names[i] not in self.shapes[k].loose:
                    self._exact[i].append(k)
        self.forced = frozenset(k for k, s in enumerate(self.shapes) if s.refreshed)
        # Their levels are those that the next run starts from, and known with its inputs only.
        self._handed = frozenset(self.carried.values())
        self._taken_out = self._handed - self.forced
        self.free = [
            bool(s) and k not in self.forced | self._taken_out for k, s in enumerate(self.inputs)
        ]
        self.siblings = self._find_siblings()
        self._dear = [(dear or {}).get(s, 1.0) for s in self.names]
        self._drops = [s.drop for s in self.shapes]
        self._widths = [s.width for s in self.shapes]
        self._seconds: list[dict[int, float]] = [{} for _ in self.names]
        self._lowering: list[float] = []
        self._dropping = [
            instruction_seconds(Kind.DROP, level, 1, self._log_n) for level in range(self.top + 1)
        ]
        self._refreshing: list[float] = []
        for level in range(self.top + 1):
            each = instruction_seconds(Kind.DOT_PLAIN, level + 1, 1, self._log_n, scalar=True)
            each += instruction_seconds(Kind.RESCALE, level + 1, 1, self._log_n)
            self._lowering.append(each)
            each = refresher.seconds(self.lowest, level, self._log_n)
            self._refreshing.append(each if price is None else max(each, price))

    def _find_siblings(self) -> dict[int, list[int]]:
        groups: dict[tuple[int, ...], list[int]] = {}
        for k, users in enumerate(self.users):
            if users and self.free[k]:
                groups.setdefault(tuple(users), []).append(k)
        return {group[0]: group for group in groups.values() if len(group) > 1}

    def priced(self, factor: float) -> StageCosts:
        """The same with refreshes that cost so many times as much."""
        other = copy.copy(self)
        other._refreshing = [factor * each for each in self._refreshing]
        return other

    def at(
        self, k: int, level: Sequence[int] | Mapping[int, int], refreshed: bool
    ) -> tuple[int, int, float]:
        """The level at which a stage runs given the levels of its users, the level at which its
        outputs are wanted, and its seconds; those are 0 where the level is above the chain.
        """
        users = self.users[k]
        need = lowest = floor = self.floors[k]
        if users:
            need = lowest = level[users[0]]
            for u in users:
                use = level[u]
                if use > need:
                    need = use
                elif use < lowest:
                    lowest = use
            if floor > need:
                need = floor
        each = handed = 0.0
        if k in self.carried:  # the run before has refreshed it to this level
            out = self.carried[k]
            if need + (out in self._taken_out) * self._drops[out] > self.highest:
                return NEVER, need, 0.0
            if out in self._taken_out:
                handed = self._stage_seconds(out, need + self._drops[out])
            else:
                each = self._refreshing[need]
        if not refreshed:
            run = self._drops[k] + need
            if run > self.top:
                return run, need, 0.0
        elif need > self.highest:
            return NEVER, need, 0.0
        else:
            run = self._drops[k] + max(self.lowest, floor)
            # What is handed on pays for it where the next run takes it.
            each = 0.0 if k in self._handed else self._dear[k] * self._refreshing[need]
        if lowest < need:
            each += self._lowered(k, need, level)
        if k not in self._taken_out:
            handed += self._stage_seconds(k, run)
        return run, need, handed + self._widths[k] * each

    def _stage_seconds(self, k: int, run: int) -> float:
        seconds = self._seconds[k]
        if run not in seconds:
            seconds[run] = self.shapes[k].seconds(run, self._log_n)
        return seconds[run]

    def _lowered(self, k: int, need: int, level: Sequence[int] | Mapping[int, int]) -> float:
        """Seconds to bring one output from level `need` to all lower ones at which it is used."""
        exact = {level[u] for u in self._exact[k]}
        seconds = 0.0
        for use in {level[u] for u in self.users[k]}:
            if use in exact and use < need:
                seconds += self._lowering[use]
            if use + (use in exact) < need:
                seconds += self._dropping[need]
        return seconds

    def placed(self, refreshed: Collection[int], cap: int | None = None) -> Placed | int:
        """Levels for a set of refreshes; with `cap`, refreshes whatever would run above it.

        Returns the place of the stage at which levels run out, if they do.
        """
        count = len(self.names)
        found = Placed([-1] * count, [-1] * count, set(refreshed), 0.0)
        level, want, chosen, seconds = found
        for k in reversed(range(count)):
            run, want[k], cost = self.at(k, level, k in chosen)
            if cap is not None and run > cap and self.inputs[k]:
                chosen.add(k)
                run, want[k], cost = self.at(k, level, True)
            if run > self.top:
                return k
            level[k] = run
            seconds += cost
        for into, out in self.carried.items():
            want[out] = want[into]
            if out in self._taken_out:
                level[out] = want[out] + self._drops[out]
                for i in self.inputs[out]:
                    want[i] = max(want[i], level[out])
        return found._replace(seconds=seconds)

    def greedy(self) -> list[Placed]:
        """Plans that refresh whatever would run above some level, the cheapest first."""
        found: dict[frozenset[int], Placed] = {}
        for cap in range(min(1, self.top), self.top + 1):
            placed = self.placed(self.forced, cap)
            if isinstance(placed, Placed):
                found.setdefault(frozenset(placed.refreshed), placed)
        return sorted(found.values(), key=lambda placed: placed.seconds)

    def levels_needed(self) -> int:
        """Of a chain that has enough of them without more refreshes than are asked for; `NEVER` or
        more if none has.
        """
        level = [-1] * len(self.names)
        for k in reversed(range(len(level))):
            level[k] = self.at(k, level, k in self.forced)[0]
        return max(level, default=0)

    def critical(self) -> list[int]:
        """Places on a path that needs as many levels as `levels_needed` says, from its input on."""
        level = [-1] * len(self.names)
        for k in reversed(range(len(level))):
            level[k] = self.at(k, level, k in self.forced)[0]
        path = [max(range(len(level)), key=level.__getitem__)] if level else []
        while path and path[-1] not in self.forced:
            k = path[-1]
            after = level[k] - self._drops[k]
            following = [u for u in self.users[k] if level[u] == after]
            if not following:
                break
            path.append(following[0])
        return path

    def rounds(self, refreshed: Callable[[int], bool]) -> int:
        """Refreshes that wait for each other, at most; `refreshed`: of a place, whether it is."""
        after = [0] * len(self.names)
        for k in reversed(range(len(after))):
            users = self.users[k]
            after[k] = refreshed(k) + max([after[u] for u in users], default=0)
        return max(after, default=0)
