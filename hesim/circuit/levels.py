"""Levels, scales and refreshes of the stages of a Circuit.

A stage's outputs are wanted at the highest level at which a later stage uses them, so every stage
runs as low as it can: cost follows the level. A refreshed stage ends at the level from which the
refresher starts, 0 for the key holder, and its consumers start from whatever level they need that
it reaches. Which stages to refresh is found by local search from greedy starts, on predicted
seconds with the refresh at the price that the caller sets; or with as few rounds as can be, of
which the cheapest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hesim.circuit.builder import Builder
from hesim.circuit.refresher import KEY_HOLDER, Refresher
from hesim.circuit.refreshes.costs import NEVER, Placed, StageCosts
from hesim.circuit.refreshes.rounds import fewest_rounds
from hesim.circuit.refreshes.search import best_refreshes
from hesim.circuit.shape import StageShape, stage_shapes
from hesim.errors import LevelError
from hesim.params import CKKSParams, smallest_ring

__all__ = ["LevelPlanner", "Schedule", "ShapePlanner"]


@dataclass(frozen=True)
class Schedule:
    """Levels of a plan.

    Attributes:
      level: per stage, the level at which it runs (-1: dead).
      want: per stage, the level at which its outputs are wanted.
      refreshed: stages whose outputs are refreshed.
      seconds: predicted, refreshes at the planning price.
      rounds: refreshes of stages that wait for each other, at most.
    """

    level: tuple[int, ...]
    want: tuple[int, ...]
    refreshed: frozenset[int]
    seconds: float
    rounds: int = 0


class ShapePlanner:
    """Chooses the levels and refreshes of stages from their shapes.

    Args:
      shapes: by number of the stage; what no other stage uses is a result.
      describe: names a source operation, for errors.
      refresh_price: seconds per refreshed ciphertext; None for the refresher's own; infinity
        forbids refreshes.
      refresher: who refreshes, from which level and to which.
      rounds: whether as few rounds as can be are wanted, whatever they cost.
      floors: by source, the level below which outputs do not hold their values.
      carried: number of the stage whose outputs, refreshed, are those of an input at the next run,
        by number of that input's stage.
      dear: by number of a stage, times the price that a refresh of its outputs counts.
    """

    def __init__(
        self,
        shapes: Mapping[int, StageShape],
        params: CKKSParams,
        describe: Callable[[int], str],
        refresh_price: float | None,
        refresher: Refresher = KEY_HOLDER,
        *,
        rounds: bool = False,
        floors: Mapping[int, int] | None = None,
        carried: Mapping[int, int] | None = None,
        dear: Mapping[int, float] | None = None,
    ):
        self.top = params.levels
        self._params = params
        self._describe = describe
        self._refresher = refresher
        self._costs = StageCosts(*(shapes, params, refresh_price, refresher), floors, carried, dear)
        self._forbidden = refresh_price is not None and math.isinf(refresh_price)
        self._few = rounds

    def greedy(self) -> Schedule:
        """The best of the schedules that refresh whatever would run above some level.

        Raises:
          LevelError: levels run out, and refreshes are forbidden or there is no level at all.
        """
        if self._forbidden:
            found = self._costs.placed(self._costs.forced)
            if isinstance(found, int):
                raise self._runs_out(found)
            return _schedule(self._costs, found)
        self._check_levels()
        plans = self._costs.greedy()
        best = fewest_rounds(self._costs) if self._few else next(iter(plans), None)
        if best is None:
            found = self._costs.placed(self._costs.forced)
            raise self._runs_out(found if isinstance(found, int) else 0)
        return _schedule(self._costs, best)

    def improved(self, schedule: Schedule, sweeps: int = 3) -> Schedule:
        """Local search from `schedule`, and from greedy ones at the price and at higher ones:
        refreshes added, left out and moved, one by one and in groups.
        """
        if self._forbidden:
            return schedule
        number = {s: k for k, s in enumerate(self._costs.names)}
        start = {number[s] for s in schedule.refreshed}
        most = schedule.rounds if self._few else None
        found = self._costs.placed(best_refreshes(self._costs, start, sweeps, most))
        assert isinstance(found, Placed), "a schedule of the search does not fit the levels"
        return _schedule(self._costs, found)

    def _runs_out(self, place: int) -> LevelError:
        """Levels do not suffice without refreshes: how many would, and what takes most of them."""
        costs = self._costs
        needed = costs.levels_needed()
        known = needed if needed < NEVER else None
        return LevelError(
            f"the computation needs {known or f'more than {self.top}'} levels but the parameters "
            f"have {self.top}; levels run out at {self._describe(costs.shapes[place].source)}."
            + self._most_of(costs.critical() if known else [])
            + self._ring_for(known),
            needed=known,
        )

    def _most_of(self, path: Sequence[int]) -> str:
        """Which operation on a path drops the most levels."""
        taken: dict[int, int] = {}
        for k in path:
            shape = self._costs.shapes[k]
            taken[shape.source] = taken.get(shape.source, 0) + shape.drop
        if not taken:
            return ""
        source = max(taken, key=taken.__getitem__)
        text = f" {self._describe(source)} takes most of them on that path, {taken[source]}."
        held = max(path, key=lambda k: self._costs.floors[k])
        if self._costs.floors[held]:
            text += (
                f" {self._describe(self._costs.shapes[held].source)} needs level "
                f"{self._costs.floors[held]} for the values that it holds."
            )
        return text

    def _ring_for(self, levels: int | None) -> str:
        """What would carry these levels, or do without them."""
        p = self._params
        others = "allow refreshes, or lower the degrees of the polynomials on that path."
        if levels is None:
            return f" Use more levels (a larger ring), {others}"
        sizes = p.scale_bits, p.first_bits, p.special_bits, p.security or 128
        bits = p.first_bits + p.special_bits + levels * p.scale_bits
        ring = smallest_ring(levels, *sizes)
        where = (
            f"N = 2^{max(ring, p.log_n)} at {p.security or 128}-bit security"
            if ring is not None
            else f"a ring above N = 2^17, the largest here, at {p.security or 128}-bit security"
        )
        return (
            f" levels={levels} is a modulus of {bits} bits, which takes {where}: use that, {others}"
        )

    def _check_levels(self) -> None:
        """LevelError if refreshes cannot make up for the levels of the chain."""
        shapes, top, refresher = self._costs.shapes, self.top, self._refresher
        floors = self._costs.floors
        needed = [s.drop + floor for s, floor in zip(shapes, floors, strict=True)]
        deepest = next((k for k, levels in enumerate(needed) if levels > top), None)
        highest, lowest = self._costs.highest, self._costs.lowest
        most = max(
            [s.drop + max(f - lowest, 0) for s, f in zip(shapes, floors, strict=True) if s.inputs],
            default=0,
        )
        if deepest is not None:
            held = (
                f" above level {floors[deepest]}, which its values need" if floors[deepest] else ""
            )
            raise LevelError(
                f"the parameters have {top} levels, and {self._describe(shapes[deepest].source)} "
                f"takes {shapes[deepest].drop} at once{held}, which no refresh can split. Use at "
                f"least levels={needed[deepest]}.",
                needed=needed[deepest],
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
      describe, refresh_price, refresher, rounds, floors, carried, dear: as for `ShapePlanner`.

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
        *,
        rounds: bool = False,
        floors: Mapping[int, int] | None = None,
        carried: Mapping[int, int] | None = None,
        dear: Mapping[int, float] | None = None,
    ):
        self.live = _live(b, [int(n) for n in outputs])
        shapes = stage_shapes(b, self.live)
        super().__init__(
            *(shapes, params, describe, refresh_price, refresher),
            rounds=rounds,
            floors=floors,
            carried=carried,
            dear=dear,
        )


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
    rounds = costs.rounds(placed.refreshed.__contains__)
    return Schedule(tuple(level), tuple(want), refreshed, placed.seconds, rounds)
