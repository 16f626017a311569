"""Levels, scales and refreshes of the stages of a Circuit.

A stage's outputs are wanted at the highest level at which a later stage uses them, so every stage
runs as low as it can: cost follows the level. A refreshed stage ends at the level from which the
refresher starts, 0 for the key holder, and its consumers start from whatever level they need that
it reaches. Which stages to refresh is found by local search from greedy starts, on predicted
seconds with the refresh at the price that the caller sets.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from hesim.circuit.builder import Builder
from hesim.circuit.circuit import Kind
from hesim.circuit.cost import instruction_seconds
from hesim.circuit.refresher import KEY_HOLDER, Refresher
from hesim.circuit.shape import StageShape, stage_shapes
from hesim.errors import LevelError
from hesim.params import CKKSParams

__all__ = ["LevelPlanner", "Schedule", "ShapePlanner"]

_NEVER = 10**9
"""A level that no chain has: of a refresh whose result is wanted above what it reaches."""


@dataclass(frozen=True)
class Schedule:
    """Levels of a plan.

    Attributes:
      level: per stage, the level at which it runs (-1: dead).
      want: per stage, the level at which its outputs are wanted.
      refreshed: stages whose outputs are refreshed.
      seconds: predicted, refreshes at the planning price.
    """

    level: tuple[int, ...]
    want: tuple[int, ...]
    refreshed: frozenset[int]
    seconds: float


class _Costs:
    """Seconds of each stage at each level, of dropping its outputs, and of refreshing them."""

    def __init__(
        self,
        shapes: Mapping[int, StageShape],
        params: CKKSParams,
        price: float | None,
        refresher: Refresher,
    ):
        self.refresher = refresher
        self.highest = refresher.highest(params.levels)
        self.shapes = shapes
        self.order = sorted(shapes)
        self.log_n = params.log_n
        self.price = price
        self.users: dict[int, list[int]] = {s: [] for s in self.order}
        self.inputs: dict[int, list[int]] = {}
        for s in self.order:
            self.inputs[s] = [i for i in shapes[s].inputs if i in shapes]
            for i in self.inputs[s]:
                assert i < s, "stages use the outputs of earlier ones"
                self.users[i].append(s)
        self._stage: dict[tuple[int, int], float] = {}
        self._drop: dict[int, float] = {}
        self._refresh: dict[int, float] = {}

    def stage(self, stage: int, level: int) -> float:
        key = (stage, level)
        if key not in self._stage:
            self._stage[key] = self.shapes[stage].seconds(level, self.log_n)
        return self._stage[key]

    def whole(self, stage: int, run: int, need: int, uses: set[int], refreshed: bool) -> float:
        """Of a stage at level `run` whose outputs are wanted at `need` and lower by `uses`."""
        seconds = self.refresh(stage, need) if refreshed else 0.0
        seconds += self.stage(stage, run)
        return seconds + sum(self.drop(stage, u) for u in uses if u < need)

    def drop(self, stage: int, level: int) -> float:
        if level not in self._drop:
            each = instruction_seconds(Kind.DOT_PLAIN, level + 1, 1, self.log_n)
            each += instruction_seconds(Kind.RESCALE, level + 1, 1, self.log_n)
            self._drop[level] = each
        return self.shapes[stage].width * self._drop[level]

    def refresh(self, stage: int, level: int) -> float:
        if level not in self._refresh:
            each = self.refresher.seconds(self.refresher.min_input_level, level, self.log_n)
            self._refresh[level] = each if self.price is None else max(each, self.price)
        return self.shapes[stage].width * self._refresh[level]


class ShapePlanner:
    """Chooses the levels and refreshes of stages from their shapes.

    Args:
      shapes: by number of the stage; what no other stage uses is a result.
      describe: names a source operation, for errors.
      refresh_price: seconds per refreshed ciphertext; None for the refresher's own; infinity
        forbids refreshes.
      refresher: who refreshes, from which level and to which.
    """

    def __init__(
        self,
        shapes: Mapping[int, StageShape],
        params: CKKSParams,
        describe: Callable[[int], str],
        refresh_price: float | None,
        refresher: Refresher = KEY_HOLDER,
    ):
        self.top = params.levels
        self._describe = describe
        self._costs = _Costs(shapes, params, refresh_price, refresher)
        self._forced = frozenset(s for s, shape in shapes.items() if shape.refreshed)
        self._forbidden = refresh_price is not None and math.isinf(refresh_price)

    def greedy(self) -> Schedule:
        """The best of the schedules that refresh whatever would run above some level.

        Raises:
          LevelError: levels run out, and refreshes are forbidden or there is no level at all.
        """
        costs, shapes, forced = self._costs, self._costs.shapes, self._forced
        if self._forbidden:
            found = _levels(costs, forced, self.top, cap=None)
            if isinstance(found, Schedule):
                return found
            need = _levels(costs, forced, _NEVER - 1, cap=None)
            levels = max(need.level) if isinstance(need, Schedule) else f"more than {self.top}"
            raise LevelError(
                f"the computation needs {levels} levels but the parameters have "
                f"{self.top}; levels run out at {self._describe(shapes[found].source)}. Use more "
                "levels (a larger ring), allow refreshes, or lower the degrees of the polynomials "
                "on that path."
            )
        lowest = costs.refresher.min_input_level
        deepest = next((s for s in shapes.values() if s.drop > self.top), None)
        most = max((s.drop for s in shapes.values()), default=0)
        if deepest is None and most and costs.highest < most + lowest:
            raise LevelError(
                f"a refresh by the {costs.refresher.name} ends at level {costs.highest} at most "
                f"and starts from level {lowest} at least, which leaves no level in between to "
                f"multiply in. Use at least levels={self.top + most + lowest - costs.highest}."
            )
        if deepest is not None:
            raise LevelError(
                f"the parameters have {self.top} levels, and {self._describe(deepest.source)} "
                f"takes {deepest.drop} at once, which no refresh can split. Use at least "
                f"levels={deepest.drop}."
            )
        schedules = [
            found
            for cap in range(min(1, self.top), self.top + 1)
            if isinstance(found := _levels(costs, forced, self.top, cap=cap), Schedule)
        ]
        return min(schedules, key=lambda schedule: schedule.seconds)

    def improved(self, schedule: Schedule, sweeps: int = 3) -> Schedule:
        """Local search from `schedule`: refreshes added, left out, and moved by one stage."""
        if self._forbidden:
            return schedule
        return _improve(self._costs, self._forced, self.top, schedule, sweeps)


class LevelPlanner(ShapePlanner):
    """Chooses the levels and refreshes of one builder's stages.

    Args:
      outputs: nodes that are decrypted at the end.
      describe, refresh_price, refresher: as for `ShapePlanner`.

    Attributes:
      live: nodes that the outputs depend on.
    """

    def __init__(
        self,
        b: Builder,
        params: CKKSParams,
        outputs: Iterable[int],
        describe: Callable[[int], str],
        refresh_price: float | None,
        refresher: Refresher = KEY_HOLDER,
    ):
        self.live = _live(b, [int(n) for n in outputs])
        shapes = stage_shapes(b, self.live)
        super().__init__(shapes, params, describe, refresh_price, refresher)


def _live(b: Builder, outputs: list[int]) -> set[int]:
    live = set(outputs)
    for n in range(len(b.nodes) - 1, -1, -1):
        if n in live:
            node = b.nodes[n]
            live.update(node.first, node.second)
    return live


def _levels(costs: _Costs, refreshed: frozenset[int], top: int, cap: int | None) -> Schedule | int:
    """Levels for a set of refreshes; with `cap`, refreshes whatever would run above it.

    Returns the Schedule, or the stage at which levels run out.
    """
    want: dict[int, int] = {}
    level: dict[int, int] = {}
    chosen = set(refreshed)
    seconds = 0.0
    for s in reversed(costs.order):
        run, need, uses = _run(costs, s, level, s in chosen)
        if cap is not None and run > cap and costs.inputs[s]:
            chosen.add(s)
            run, need, uses = _run(costs, s, level, True)
        if run > top:
            return s
        want[s], level[s] = need, run
        seconds += costs.whole(s, run, need, uses, s in chosen)
    size = max(costs.order, default=-1) + 1
    return Schedule(
        tuple(level.get(s, -1) for s in range(size)),
        tuple(want.get(s, -1) for s in range(size)),
        frozenset(chosen),
        seconds,
    )


def _run(
    costs: _Costs, s: int, level: Mapping[int, int], refreshed: bool
) -> tuple[int, int, set[int]]:
    """The level at which a stage runs, that of its outputs, and those of its users."""
    uses = {level[u] for u in costs.users[s]}
    need = max(uses, default=0)
    if not refreshed:
        return costs.shapes[s].drop + need, need, uses
    run = costs.shapes[s].drop + costs.refresher.min_input_level
    return run if need <= costs.highest else _NEVER, need, uses


def _improve(
    costs: _Costs,
    forced: Collection[int],
    top: int,
    start: Schedule,
    sweeps: int,
) -> Schedule:
    search = _Search(costs, start, top)
    candidates = [s for s in costs.order if costs.inputs[s] and s not in forced]
    for _ in range(sweeps):
        before = search.seconds
        for s in candidates:
            trials = [{s}]
            if s in search.refreshed:
                # Moving a refresh one stage up or down is two toggles at once.
                near = [*costs.users[s], *(i for i in costs.inputs[s] if costs.inputs[i])]
                trials += [{s, u} for u in near if u not in search.refreshed]
            taken: set[int] = set()
            for toggled in trials:
                if search.attempt(toggled ^ taken):
                    taken = toggled
        if search.seconds > before * 0.999:
            break
    found = _levels(costs, frozenset(search.refreshed), top, cap=None)
    assert isinstance(found, Schedule), "a schedule of the search does not fit the levels"
    return found


class _Search:
    """A schedule under local search: only stages whose users' levels change are looked at again.

    Attributes:
      refreshed: stages. seconds: of the whole schedule, refreshes at the planning price.
    """

    def __init__(self, costs: _Costs, start: Schedule, top: int):
        self.refreshed = set(start.refreshed)
        self.seconds = start.seconds
        self._costs, self._top = costs, top
        self._level = {s: start.level[s] for s in costs.order}
        self._place = {s: k for k, s in enumerate(costs.order)}
        self._cost = {s: self._at(s, s in self.refreshed)[1] for s in costs.order}

    def attempt(self, toggled: set[int]) -> bool:
        """Takes or leaves out these refreshes if that is cheaper and levels suffice."""
        chosen = self.refreshed ^ toggled
        before: dict[int, int] = {}
        cost = self._follow(chosen, toggled, before)
        if cost is not None:
            seconds = self.seconds + sum(c - self._cost[s] for s, c in cost.items())
            if seconds < self.seconds * (1 - 1e-9):
                self.refreshed, self.seconds = chosen, seconds
                self._cost.update(cost)
                return True
        self._level.update(before)
        return False

    def _follow(
        self, chosen: set[int], toggled: set[int], before: dict[int, int]
    ) -> dict[int, float] | None:
        """Sets the levels of all stages that a change concerns, noting those `before`; their
        seconds, None where levels run out.
        """
        costs, place = self._costs, self._place
        cost: dict[int, float] = {}
        waiting = [-place[s] for s in toggled]
        heapq.heapify(waiting)
        seen = set(toggled)
        while waiting:
            s = costs.order[-heapq.heappop(waiting)]
            run, cost[s] = self._at(s, s in chosen)
            if run > self._top:
                return None
            if run == self._level[s]:
                continue
            before[s], self._level[s] = self._level[s], run
            for i in costs.inputs[s]:
                if i not in seen:
                    seen.add(i)
                    heapq.heappush(waiting, -place[i])
        return cost

    def _at(self, s: int, refreshed: bool) -> tuple[int, float]:
        """Level at which a stage runs, and its seconds, given the levels of its users."""
        run, need, uses = _run(self._costs, s, self._level, refreshed)
        return run, self._costs.whole(s, run, need, uses, refreshed)
