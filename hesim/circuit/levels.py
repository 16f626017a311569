"""Levels, scales and refreshes: from stages to the instructions of a Circuit.

A stage's outputs are wanted at the highest level at which a later stage uses them, so every stage
runs as low as it can: cost follows the level. A refreshed stage ends at the level from which the
refresher starts, 0 for the key holder, and its consumers start from whatever level they need that
it reaches. Which stages to refresh is found by local search from greedy starts, on predicted
seconds with the refresh at the price that the caller sets.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hesim.circuit.builder import Builder, Node, Stage
from hesim.circuit.circuit import Kind
from hesim.circuit.cost import instruction_seconds
from hesim.circuit.refresher import KEY_HOLDER, Refresher
from hesim.errors import LevelError
from hesim.params import CKKSParams

__all__ = ["Emitted", "LevelPlanner", "Schedule", "arrays", "emit"]

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
        b: Builder,
        params: CKKSParams,
        live: set[int],
        price: float | None,
        refresher: Refresher,
    ):
        self.refresher = refresher
        self.highest = refresher.highest(params.levels)
        self.stages = [s for s in b.stages if any(n in live for n in s.nodes)]
        self.order = [s.id for s in self.stages]
        self.params = params
        self.log_n = params.log_n
        self.price = price
        self.width: dict[int, int] = {}
        self._shape: dict[int, list[tuple[tuple[int, int, int, bool], int]]] = {}
        self.users: dict[int, list[int]] = {s.id: [] for s in self.stages}
        self.inputs: dict[int, list[int]] = {}
        self._memo: dict[tuple[int, int], float] = {}
        for s in self.stages:
            rows: dict[tuple[int, int, int, bool], int] = {}
            for n in s.nodes:
                if n not in live:
                    continue
                node = b.nodes[n]
                below = node.below - (node.kind == Kind.RESCALE)
                key = (node.kind, len(node.terms), below, _scalar(b, node))
                rows[key] = rows.get(key, 0) + 1
            self._shape[s.id] = list(rows.items())
            self.width[s.id] = sum(n in live for n in s.outputs)
            self.inputs[s.id] = [i for i in sorted(s.inputs) if i in self.users]
            for i in self.inputs[s.id]:
                self.users[i].append(s.id)

    def stage(self, stage: int, level: int) -> float:
        key = (stage, level)
        if key not in self._memo:
            self._memo[key] = sum(
                count * instruction_seconds(kind, level - below, terms, self.log_n, scalar=scalar)
                for (kind, terms, below, scalar), count in self._shape[stage]
            )
        return self._memo[key]

    def whole(self, stage: int, run: int, need: int, uses: set[int], refreshed: bool) -> float:
        """Of a stage at level `run` whose outputs are wanted at `need` and lower by `uses`."""
        seconds = self.refresh(stage, need) if refreshed else 0.0
        seconds += self.stage(stage, run)
        return seconds + sum(self.drop(stage, u) for u in uses if u < need)

    def drop(self, stage: int, level: int) -> float:
        at = level + 1
        each = instruction_seconds(Kind.DOT_PLAIN, at, 1, self.log_n)
        each += instruction_seconds(Kind.RESCALE, at, 1, self.log_n)
        return self.width[stage] * each

    def refresh(self, stage: int, level: int) -> float:
        each = self.refresher.seconds(self.refresher.min_input_level, level, self.log_n)
        if self.price is not None:
            each = max(each, self.price)
        return self.width[stage] * each


def _scalar(b: Builder, node: Node) -> bool:
    """Whether a plaintext product takes numbers rather than vectors."""
    if node.kind != Kind.DOT_PLAIN:
        return False
    second = node.terms[0][2]
    assert isinstance(second, tuple)
    return b.packs[second[0]].scalar


class LevelPlanner:
    """Chooses the levels and refreshes of one builder's stages.

    Args:
      outputs: nodes that are decrypted at the end.
      describe: names a source operation, for errors.
      refresh_price: seconds per refreshed ciphertext; None for the refresher's own; infinity
        forbids refreshes.
      refresher: who refreshes, from which level and to which.

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
        self.top = params.levels
        self._describe = describe
        self._costs = _Costs(b, params, self.live, refresh_price, refresher)
        self._stages = {s.id: s for s in self._costs.stages}
        self._forced = frozenset(s.id for s in self._costs.stages if s.refreshed)
        self._forbidden = refresh_price is not None and math.isinf(refresh_price)

    def greedy(self) -> Schedule:
        """The best of the schedules that refresh whatever would run above some level.

        Raises:
          LevelError: levels run out, and refreshes are forbidden or there is no level at all.
        """
        costs, stages, forced = self._costs, self._stages, self._forced
        if self._forbidden:
            found = _levels(costs, stages, forced, self.top, cap=None)
            if isinstance(found, Schedule):
                return found
            need = _levels(costs, stages, forced, _NEVER - 1, cap=None)
            levels = max(need.level) if isinstance(need, Schedule) else f"more than {self.top}"
            raise LevelError(
                f"the computation needs {levels} levels but the parameters have "
                f"{self.top}; levels run out at {self._describe(stages[found].source)}. Use more "
                "levels (a larger ring), allow refreshes, or lower the degrees of the polynomials "
                "on that path."
            )
        lowest = costs.refresher.min_input_level
        deepest = next((s for s in costs.stages if s.drop > self.top), None)
        most = max((s.drop for s in costs.stages), default=0)
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
            if isinstance(found := _levels(costs, stages, forced, self.top, cap=cap), Schedule)
        ]
        return min(schedules, key=lambda schedule: schedule.seconds)

    def improved(self, schedule: Schedule, sweeps: int = 3) -> Schedule:
        """Local search from `schedule`: refreshes added, left out, and moved by one stage."""
        if self._forbidden:
            return schedule
        return _improve(self._costs, self._stages, self._forced, self.top, schedule, sweeps)


def _live(b: Builder, outputs: list[int]) -> set[int]:
    live = set(outputs)
    for n in range(len(b.nodes) - 1, -1, -1):
        if n in live:
            node = b.nodes[n]
            for _, first, second in node.terms:
                live.add(first)
                if node.kind == Kind.DOT:
                    assert isinstance(second, int)
                    live.add(second)
    return live


def _levels(
    costs: _Costs, stages: dict[int, Stage], refreshed: frozenset[int], top: int, cap: int | None
) -> Schedule | int:
    """Levels for a set of refreshes; with `cap`, refreshes whatever would run above it.

    Returns the Schedule, or the stage at which levels run out.
    """
    want: dict[int, int] = {}
    level: dict[int, int] = {}
    chosen = set(refreshed)
    seconds = 0.0
    for s in reversed(costs.order):
        run, need, uses = _run(costs, stages, s, level, s in chosen)
        if cap is not None and run > cap and costs.inputs[s]:
            chosen.add(s)
            run, need, uses = _run(costs, stages, s, level, True)
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
    costs: _Costs, stages: dict[int, Stage], s: int, level: Mapping[int, int], refreshed: bool
) -> tuple[int, int, set[int]]:
    """The level at which a stage runs, that of its outputs, and those of its users."""
    uses = {level[u] for u in costs.users[s]}
    need = max(uses, default=0)
    if not refreshed:
        return stages[s].drop + need, need, uses
    run = stages[s].drop + costs.refresher.min_input_level
    return run if need <= costs.highest else _NEVER, need, uses


def _improve(
    costs: _Costs,
    stages: dict[int, Stage],
    forced: Collection[int],
    top: int,
    start: Schedule,
    sweeps: int,
) -> Schedule:
    search = _Search(costs, stages, start, top)
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
    found = _levels(costs, stages, frozenset(search.refreshed), top, cap=None)
    assert isinstance(found, Schedule), "a schedule of the search does not fit the levels"
    return found


class _Search:
    """A schedule under local search: only stages whose users' levels change are looked at again.

    Attributes:
      refreshed: stages. seconds: of the whole schedule, refreshes at the planning price.
    """

    def __init__(self, costs: _Costs, stages: dict[int, Stage], start: Schedule, top: int):
        self.refreshed = set(start.refreshed)
        self.seconds = start.seconds
        self._costs, self._stages, self._top = costs, stages, top
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
        run, need, uses = _run(self._costs, self._stages, s, self._level, refreshed)
        return run, self._costs.whole(s, run, need, uses, refreshed)


# --- emission -------------------------------------------------------------------------------------


class Emitted:
    """Instruction arrays under construction, and where each node ended up."""

    def __init__(self, params: CKKSParams, width: int):
        self.params = params
        self.step = width
        self.kind: list[int] = []
        self.level: list[int] = []
        self.scale: list[float] = []
        self.arg_ptr: list[int] = [0]
        self.arg: list[int] = []
        self.arg2: list[int] = []
        self.factor: list[int] = []
        self.param: list[int] = []
        self.source: list[int] = []
        self.plains: dict[tuple[int, int, int, float], int] = {}
        self.made: dict[int, int] = {}
        self.fresh: dict[int, int] = {}
        self._versions: dict[tuple[int, int, bool], int] = {}
        self._rotations: dict[tuple[int, int], int] = {}

    def push(
        self,
        kind: int,
        level: int,
        scale: float,
        terms: Sequence[tuple[int, int, int]],
        param: int,
        source: int,
    ) -> int:
        self.kind.append(kind)
        self.level.append(level)
        self.scale.append(scale)
        for factor, first, second in terms:
            self.factor.append(factor)
            self.arg.append(first)
            self.arg2.append(second)
        self.arg_ptr.append(len(self.arg))
        self.param.append(param)
        self.source.append(source)
        return len(self.kind) - 1

    def plain(self, pack: int, row: int, level: int, scale: float) -> int:
        return self.plains.setdefault((pack, row, level, scale), len(self.plains))


def emit(
    b: Builder, params: CKKSParams, schedule: Schedule, live: set[int], unit_pack: int
) -> Emitted:
    """Writes the instructions: every operand at the level of its stage, at exact scales.

    A ciphertext k levels too high is dropped k - 1 levels and multiplied by 1 at the correcting
    scale; where it only meets plaintexts it is dropped k levels, and they are encoded to correct
    it.
    """
    out = Emitted(params, b.width)
    for stage in b.stages:
        if stage.id >= len(schedule.level) or schedule.level[stage.id] < 0:
            continue
        _emit_stage(b, out, params, stage, schedule, live, unit_pack)
    return out


def _emit_stage(
    b: Builder,
    out: Emitted,
    params: CKKSParams,
    stage: Stage,
    schedule: Schedule,
    live: Collection[int],
    unit_pack: int,
) -> None:
    level = schedule.level[stage.id]
    local: dict[int, int] = {}
    members = [n for n in stage.nodes if n in live]
    loose = _only_meets_plaintexts(b, stage, members)

    def use(n: int, at: int) -> int:
        if n in local:
            return local[n]
        return _version(out, params, n, at, n in loose, stage.source, unit_pack)

    for n in members:
        node = b.nodes[n]
        at = level - node.below + (node.kind == Kind.RESCALE)
        scale = _scale(params, level - node.below, node.power, n in stage.unscaled)
        source = stage.source
        if node.kind == Kind.INPUT:
            at = schedule.want[stage.id]
            local[n] = out.push(Kind.INPUT, at, params.scale(at), (), node.param, source)
            continue
        if node.kind == Kind.DOT:
            terms = [(f, use(a, at), use(c, at)) for f, a, c in node.terms]
            local[n] = out.push(Kind.DOT, at, scale, terms, 0, source)
        elif node.kind == Kind.DOT_PLAIN:
            terms = []
            for _, a, (pack, row) in node.terms:
                cipher = use(a, at)
                plain = out.plain(pack, row, at, scale / out.scale[cipher])
                terms.append((1, cipher, plain))
            local[n] = out.push(Kind.DOT_PLAIN, at, scale, terms, 0, source)
        elif node.kind == Kind.ADD_PLAIN:
            ((_, a, (pack, row)),) = node.terms
            cipher = use(a, at)
            plain = out.plain(pack, row, at, out.scale[cipher])
            local[n] = out.push(
                Kind.ADD_PLAIN, at, out.scale[cipher], [(1, cipher, plain)], 0, source
            )
        elif node.kind == Kind.RESCALE:
            cipher = use(node.terms[0][1], at)
            local[n] = out.push(Kind.RESCALE, at - 1, scale, [(1, cipher, -1)], at - 1, source)
        elif node.kind == Kind.ROTATE:
            cipher = use(node.terms[0][1], at)
            step = node.param * out.step
            key = (cipher, step)
            if key not in out._rotations:
                out._rotations[key] = out.push(
                    Kind.ROTATE, at, out.scale[cipher], [(1, cipher, -1)], step, source
                )
            local[n] = out._rotations[key]
        else:
            terms = [(f, use(a, at), -1) for f, a, _ in node.terms]
            scale = out.scale[terms[0][1]]
            local[n] = out.push(node.kind, at, scale, terms, 0, source)
    for n in stage.outputs:
        if n not in live:
            continue
        out.made[n] = out.fresh[n] = local[n]
        if stage.id in schedule.refreshed:
            want = schedule.want[stage.id]
            out.fresh[n] = out.push(
                Kind.REFRESH, want, params.scale(want), [(1, local[n], -1)], want, stage.source
            )


def _scale(params: CKKSParams, level: int, power: int, unscaled: bool) -> float:
    """The exact scale from which the rescales that are left end at the canonical one.

    unscaled: a ciphertext at the canonical scale is multiplied in first.
    """
    scale = params.scale(level)
    if power == 1:
        return scale
    if power == 2:
        return scale * params.scale(level - 1) if unscaled else scale**2
    return scale**2 * params.scale(level - 1)


def _only_meets_plaintexts(b: Builder, stage: Stage, members: list[int]) -> set[int]:
    """Operands from other stages that go into plaintext products only (rotated first, or not)."""
    inside = set(members)
    strict: set[int] = set()
    for n in reversed(members):
        node = b.nodes[n]
        if node.kind == Kind.DOT_PLAIN or node.kind == Kind.ROTATE and n not in strict:
            if node.kind == Kind.ROTATE and n in stage.outputs:
                strict.update(a for _, a, _ in node.terms)
            continue
        strict.update(a for _, a, _ in node.terms)
        if node.kind == Kind.DOT:
            strict.update(c for _, _, c in node.terms if isinstance(c, int))
    operands = {a for n in members for _, a, _ in b.nodes[n].terms if a not in inside}
    return operands - strict


def _version(
    out: Emitted, params: CKKSParams, n: int, level: int, loose: bool, source: int, unit_pack: int
) -> int:
    cipher = out.fresh[n]
    have = out.level[cipher]
    if have == level:
        return cipher
    assert have > level, "operands are wanted at the highest level of their uses"
    key = (n, level, loose)
    if key in out._versions:
        return out._versions[key]
    target = level if loose else level + 1
    scale = out.scale[cipher]
    if have > target:
        shared = (n, target, True)
        if shared not in out._versions:
            out._versions[shared] = out.push(
                Kind.DROP, target, scale, [(1, cipher, -1)], target, source
            )
        cipher = out._versions[shared]
    if not loose:
        correcting = params.scale(level) * params.primes[target] / scale
        plain = out.plain(unit_pack, 0, target, correcting)
        product = out.push(
            Kind.DOT_PLAIN, target, scale * correcting, [(1, cipher, plain)], 0, source
        )
        cipher = out.push(
            Kind.RESCALE, level, params.scale(level), [(1, product, -1)], level, source
        )
        out._versions[key] = cipher
    return out._versions.get(key, cipher)


def arrays(out: Emitted) -> dict[str, np.ndarray]:
    """The instruction arrays of a Circuit."""
    plains = np.array(
        [(p, r, level, scale) for p, r, level, scale in out.plains], dtype=np.float64
    ).reshape(-1, 4)
    return {
        "kind": np.asarray(out.kind, np.uint8),
        "level": np.asarray(out.level, np.int16),
        "scale": np.asarray(out.scale, np.float64),
        "arg_ptr": np.asarray(out.arg_ptr, np.int64),
        "arg": np.asarray(out.arg, np.int32),
        "arg2": np.asarray(out.arg2, np.int32),
        "factor": np.asarray(out.factor, np.int32),
        "param": np.asarray(out.param, np.int32),
        "source": np.asarray(out.source, np.int32),
        "plain_pack": plains[:, 0].astype(np.int32),
        "plain_row": plains[:, 1].astype(np.int32),
        "plain_level": plains[:, 2].astype(np.int16),
        "plain_scale": plains[:, 3].copy(),
    }
