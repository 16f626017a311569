"""Levels, scales and refreshes of the stages of a Circuit.

A stage's outputs are wanted at the highest level at which a later stage uses them, so every stage
runs as low as it can: cost follows the level. A refreshed stage ends at the level from which the
refresher starts, 0 for the key holder, and its consumers start from whatever level they need that
it reaches. Which stages to refresh is found by local search from greedy starts, on predicted
seconds with the refresh at the price that the caller sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from hesim.circuit.builder import Builder
from hesim.circuit.refresher import KEY_HOLDER, Refresher
from hesim.circuit.refreshes.costs import NEVER, Placed, StageCosts
from hesim.circuit.refreshes.search import best_refreshes
from hesim.circuit.shape import StageShape, stage_shapes
from hesim.errors import LevelError
from hesim.params import CKKSParams

__all__ = ["LevelPlanner", "Schedule", "ShapePlanner"]


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
        self._refresher = refresher
        self._costs = StageCosts(shapes, params, refresh_price, refresher)
        self._forbidden = refresh_price is not None and math.isinf(refresh_price)

    def greedy(self) -> Schedule:
        """The best of the schedules that refresh whatever would run above some level.

        Raises:
          LevelError: levels run out, and refreshes are forbidden or there is no level at all.
        """
        if self._forbidden:
            found = self._costs.placed(self._costs.forced)
            if isinstance(found, int):
                raise LevelError(self._runs_out(found))
            return _schedule(self._costs, found)
        self._check_levels()
        return _schedule(self._costs, self._costs.greedy()[0])

    def improved(self, schedule: Schedule, sweeps: int = 3) -> Schedule:
        """Local search from `schedule`, and from greedy ones at the price and at higher ones:
        refreshes added, left out and moved, one by one and in groups.
        """
        if self._forbidden:
            return schedule
        number = {s: k for k, s in enumerate(self._costs.names)}
        start = {number[s] for s in schedule.refreshed}
        found = self._costs.placed(best_refreshes(self._costs, start, sweeps))
        assert isinstance(found, Placed), "a schedule of the search does not fit the levels"
        return _schedule(self._costs, found)

    def _runs_out(self, place: int) -> str:
        needed = self._costs.levels_needed()
        levels = needed if needed < NEVER else f"more than {self.top}"
        return (
            f"the computation needs {levels} levels but the parameters have {self.top}; levels run "
            f"out at {self._describe(self._costs.shapes[place].source)}. Use more levels (a larger "
            "ring), allow refreshes, or lower the degrees of the polynomials on that path."
        )

    def _check_levels(self) -> None:
        """LevelError if refreshes cannot make up for the levels of the chain."""
        shapes, top, refresher = self._costs.shapes, self.top, self._refresher
        deepest = next((s for s in shapes if s.drop > top), None)
        most = max((s.drop for s in shapes), default=0)
        highest, lowest = self._costs.highest, self._costs.lowest
        if deepest is not None:
            raise LevelError(
                f"the parameters have {top} levels, and {self._describe(deepest.source)} takes "
                f"{deepest.drop} at once, which no refresh can split. Use at least "
                f"levels={deepest.drop}."
            )
        if most and highest < most + lowest:
            raise LevelError(
                f"a refresh by the {refresher.name} ends at level {highest} at most and starts "
                f"from level {lowest} at least, which leaves no level in between to multiply in. "
                f"Use at least levels={top + most + lowest - highest}."
            )


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


def _schedule(costs: StageCosts, placed: Placed) -> Schedule:
    size = max(costs.names, default=-1) + 1
    level, want = [-1] * size, [-1] * size
    for k, s in enumerate(costs.names):
        level[s], want[s] = placed.level[k], placed.want[k]
    refreshed = frozenset(costs.names[k] for k in placed.refreshed)
    return Schedule(tuple(level), tuple(want), refreshed, placed.seconds)
