"""A Program lowered and scheduled, and the Circuit that it becomes."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from hesim.circuit import emission, levels
from hesim.circuit.aims.aim import SPARE, Aim
from hesim.circuit.aims.carried import HandedOn, Pair
from hesim.circuit.builder import Builder
from hesim.circuit.circuit import Circuit, Kind, PlaintextFamily, TensorLocation
from hesim.circuit.cost import KEY_RUNS, key_seconds
from hesim.circuit.ledger import ledger
from hesim.circuit.limits.budget import within
from hesim.circuit.publics import Publics
from hesim.circuit.refresher import Refresher
from hesim.errors import LevelError, ParameterError, ValueOverflowError
from hesim.params import CKKSParams, larger_capacity
from hesim.program import Program, Var

__all__ = ["Candidate", "Lowered"]

_SLOWER = 1e-6
"""Part of its seconds by which a plan may be slower for gains that fit better."""

_SCALINGS = 4
"""Times that values are scaled for a refresh, at most, since others are refreshed then."""

_SMALL = 0.01
"""What a refresh counts more for each bit by which a value is below a quarter of the range: its
error is the same, and so a larger part."""

_FAR = 64.0
"""Times the range from which on what a gain was applied to counts as too large for a refresh: less
is bent by less than more refreshes would cost."""

_RESULT_SECONDS = 0.003
"""What a ciphertext more among the results may cost: it is sent, decrypted and decoded."""


class Lowered(Protocol):
    """A Program as stages, however its layouts were chosen."""

    program: Program
    publics: Publics
    builder: Builder
    inputs: tuple[PlaintextFamily, ...]

    @property
    def carried(self) -> Mapping[Pair, HandedOn]: ...

    def nodes(self, var: Var) -> Iterable[int]: ...

    def gain(self, var: Var) -> float: ...

    def layout(self, var: Var) -> str: ...

    def location(self, var: Var, op: int, where: np.ndarray) -> TensorLocation | None: ...


@runtime_checkable
class Refittable(Protocol):
    """What can be lowered again with other gains."""

    def refitted(
        self, values: Mapping[int, float], most: float, refreshed: Collection[int]
    ) -> Lowered | None: ...

    def scaled(
        self, values: Mapping[int, float], most: float, refreshed: Collection[int]
    ) -> Lowered | None: ...


class Candidate:
    """A lowered Program with levels.

    Args:
      lowered: stages. params: ring and levels.
      aim: what it is planned for; a price alone stands for plans of the key holder.

    Attributes:
      lowered, builder, params: what it consists of. schedule: levels of a first plan.
      results: nodes that are decrypted or handed on at the end.

    Raises:
      LevelError: levels run out. ValueOverflowError: no level holds the values of the aim.
    """

    def __init__(self, lowered: Lowered, params: CKKSParams, aim: Aim | float | None):
        self.aim = aim if isinstance(aim, Aim) else Aim(aim)
        self.lowered, self.params = lowered, params
        self.program, self.builder = lowered.program, lowered.builder
        b = self.builder
        one = np.zeros((1, 1), np.int32)
        self.unit = b.pack(
            PlaintextFamily(-1, one, 0, b.batch, b.width, b.columns, 1.0, np.ones(1))
        )
        results = [v for v in self.program.outputs if isinstance(v, Var) and v.encrypted]
        self.results = {int(n) for v in results for n in lowered.nodes(v)}
        self.results |= {n for given in lowered.carried.values() for n in given.nodes}
        self.planner = levels.LevelPlanner(
            b,
            params,
            self.results,
            self._describe,
            self.aim.price,
            self.refresher,
            rounds=self.aim.rounds,
            floors=self._floors(),
            carried=self._stages_carried(),
            dear=self._dear(),
        )
        self.schedule = self.planner.greedy()
        self._key_seconds = key_seconds(params)

    def _stages_carried(self) -> dict[int, int]:
        """By stage of a carried argument, that of the result that it is at the next run."""
        stage = [node.stage for node in self.builder.nodes]
        found: dict[int, int] = {}
        for pair, given in self.lowered.carried.items():
            for i, o in zip(self.lowered.nodes(pair.argument), given.nodes, strict=True):
                if i != o:
                    found[stage[i]] = stage[o]
        return found

    def _describe(self, source: int) -> str:
        if source < 0:
            return "an input"
        op = self.program.ops[source]
        return f"{op.name} at {op.source}" if op.source else op.name

    def _floors(self) -> dict[int, int]:
        """By source of the stages, the lowest level at which their outputs hold their values."""
        wanted = dict(self.aim.contents)
        first = {eqn.outputs[0].id: k for k, eqn in enumerate(self.program.ops)}
        first |= {v.id: -1 for v in self.program.inputs if v.encrypted}
        known = [*self.program.inputs, *(eqn.outputs[0] for eqn in self.program.ops)]
        for v in known if self.aim.values else ():
            value = self.aim.values.get(first.get(v.id, -2), 0.0)
            held = value / abs(self.lowered.gain(v))
            for n in self.lowered.nodes(v) if value else ():
                source = self.builder.stages[self.builder.nodes[n].stage].source
                wanted[source] = max(wanted.get(source, 0.0), held)
        return {source: self._floor(source, held) for source, held in wanted.items()}

    def _dear(self) -> dict[int, float]:
        """By stage whose outputs are not of the size that a refresh is made for, times what it
        counts: once more for each bit that they are larger, hardly more where a value is small.
        """
        if not self.aim.fitted:
            return {}
        most, inside = self.aim.refresher.value_range, self.builder.sizes
        held: dict[int, float] = {}
        for k, eqn in enumerate(self.program.ops):
            value = SPARE * self.aim.values.get(k, 0.0)
            for v in eqn.outputs if value else ():
                for n in self.lowered.nodes(v):
                    stage = self.builder.nodes[n].stage
                    held[stage] = max(held.get(stage, 0.0), value / abs(self.lowered.gain(v)))
        for stage, (given, factor) in self.builder.scalings.items():
            applied = factor * held.get(given, 0.0)
            if applied > _FAR * most:
                held[stage] = max(held.get(stage, 0.0), applied)
        found = {s: 1.0 + _SMALL * max(-2.0 - math.log2(x / most), 0.0) for s, x in held.items()}
        over = {s: x / most for s, x in {**inside, **held}.items() if x > most}
        return found | {s: 1.0 + math.ceil(math.log2(x)) for s, x in over.items()}

    def _floor(self, source: int, held: float) -> int:
        params = self.params
        for level in range(params.levels + 1):
            if params.capacity(level) >= SPARE * held:
                return level
        top = params.levels
        bits = math.log2(SPARE * held / params.capacity(top))
        raise ValueOverflowError(
            f"{self._describe(source)} holds {held:.4g} in a slot, and even level {top}, the "
            f"highest, wraps above {params.capacity(top):.4g}: use more levels, or "
            + larger_capacity(params, bits, top, params.scale(top))
        )

    @property
    def cost(self) -> tuple[float, float]:
        """What is compared with other plans: rounds, if these count, and seconds, with a share of
        those of making keys, and those that results take afterwards.
        """
        seconds = self.schedule.seconds + self._key_seconds / KEY_RUNS * self.rotation_keys
        seconds += _RESULT_SECONDS * len(self.results)
        return (self.schedule.rounds if self.aim.rounds else 0, seconds)

    @functools.cached_property
    def rotation_keys(self) -> int:
        """How many different steps it rotates by."""
        nodes = self.builder.nodes
        return len({nodes[n].param for n in self.planner.live if nodes[n].kind == Kind.ROTATE})

    @functools.cached_property
    def settled(self) -> levels.Schedule:
        """Levels after a search from the first plan."""
        return self.planner.improved(self.schedule)

    def refitted(self) -> Candidate:
        """The same plan with gains by which what is refreshed has the size that the refresher is
        made for, where the values are known: those that take no longer, then those that cost less
        than a refresh of what is too large counts.
        """
        lowered, most = self.lowered, self.aim.refresher.value_range
        if not (isinstance(lowered, Refittable) and self.aim.fitted):
            return self
        found = self._better(lowered.refitted(self.aim.values, most, self._refreshed), _SLOWER)
        for _ in range(_SCALINGS):
            lowered = found.lowered
            assert isinstance(lowered, Refittable)
            other = found._better(lowered.scaled(self.aim.values, most, found._refreshed), 0.0)
            if other is found:
                break
            found = other
        return found

    @property
    def _refreshed(self) -> list[int]:
        """Ids of the values of which ciphertexts are refreshed: of `refresh`, what it is given."""
        stage, refreshed = [node.stage for node in self.builder.nodes], self.settled.refreshed
        found: dict[int, None] = {}
        for eqn in self.program.ops:
            for v in eqn.outputs:
                if any(stage[n] in refreshed for n in self.lowered.nodes(v)):
                    given = eqn.inputs[0] if eqn.name == "refresh" else v
                    found[given.id if isinstance(given, Var) else v.id] = None
        return list(found)

    def _better(self, lowered: Lowered | None, slower: float) -> Candidate:
        """The plan lowered otherwise, unless it is slower by more than that part."""
        other = None if lowered is None else self.on(lowered)
        if other is None:
            return self
        most = self.settled.seconds * (1 + slower)
        return other if other.settled.seconds < most else self

    def on(self, lowered: Lowered) -> Candidate | None:
        """The Program lowered otherwise, for the same aim; None if levels run out."""
        try:
            return Candidate(lowered, self.params, self.aim)
        except (LevelError, ValueOverflowError):
            return None

    def _layouts(self) -> list[tuple[int, str]]:
        """Of the inputs together and of each operation's result, as the ledger tells them."""

        def lying(var: Var) -> tuple[int, str]:
            return len(list(self.lowered.nodes(var))), self.lowered.layout(var)

        inputs = [lying(v) for v in self.program.inputs if v.encrypted]
        texts = dict.fromkeys(text for _, text in inputs if text)
        first = sum(count for count, _ in inputs), " ".join(texts)
        return [first, *(lying(eqn.outputs[0]) for eqn in self.program.ops)]

    @property
    def slots(self) -> int:
        """Effective slots."""
        return self.builder.columns * self.builder.width

    @property
    def refresher(self) -> Refresher:
        """Who refreshes, where so many slots are in use."""
        return self.aim.refresher.in_slots(self.slots)

    def fits(self, params: CKKSParams) -> bool:
        """Whether these parameters have the ring and the levels that it was made for."""
        own = self.params
        return (own.log_n, own.levels) == (params.log_n, params.levels)

    def circuit(self, params: CKKSParams) -> Circuit:
        """Settles the levels and emits the instructions, for parameters that it `fits`.

        Raises:
          OverBudgetError: they do not run within the memory of the aim.
        """
        if not self.fits(params):
            raise ParameterError(
                f"planned for {self.params}, not for the ring or levels of {params}: plan again"
            )
        b, program = self.builder, self.program
        emitted = emission.emit(b, params, self.settled, self.planner.live, self.unit)
        data = emission.arrays(emitted)
        packs, data = _used_packs(tuple(b.packs), data)
        number = np.arange(len(data["kind"]))
        if self.aim.memory is not None:
            budget = self.aim.memory, program.name, self.aim.refresher
            data, number = within(params, data, packs, self.slots, *budget)
        where = np.full(len(b.nodes) + 1, -2, np.int32)  # not computed
        where[-1] = -1
        for node, cipher in emitted.made.items():
            where[node] = number[cipher]
        ops = program.ops
        producers = {v.id: k for k, eqn in enumerate(ops) for v in eqn.outputs}

        def tap(var: Var) -> TensorLocation | None:
            return self.lowered.location(var, producers.get(var.id, -1), where)

        found = [tap(eqn.outputs[0]) for eqn in ops]
        taps = [t for t in found if t is not None and np.any(t.cipher != -2)]
        outputs = [tap(v) if isinstance(v, Var) and v.encrypted else None for v in program.outputs]
        carried: list[tuple[int, int]] = []
        fresh = where.copy()
        for node, cipher in emitted.fresh.items():
            fresh[node] = number[cipher]
        for pair, given in self.lowered.carried.items():
            outputs[pair.output] = given.location(producers.get(pair.result.id, -1), fresh)
            ends = zip(given.nodes, self.lowered.nodes(pair.argument), strict=True)
            carried += [(int(fresh[o]), int(where[i])) for o, i in ends if where[i] >= 0]
        decrypted = {int(c) for t in outputs if t is not None for c in t.ciphers}
        decrypted -= {c for c, _ in carried}
        labels = [
            label for v, label in zip(program.inputs, program.labels, strict=True) if v.encrypted
        ]
        names = tuple(eqn.name for eqn in ops)
        sources = tuple(str(eqn.source) for eqn in ops)
        return Circuit(
            params=params,
            slots=self.slots,
            packs=packs,
            inputs=self.lowered.inputs,
            operand_count=len(self.lowered.publics),
            op_names=names,
            op_sources=sources,
            outputs=tuple(outputs),
            carried=tuple(carried),
            carries=self.aim.carries,
            taps=tuple(taps),
            input_labels=tuple(labels),
            ledger=ledger(
                params,
                data,
                packs,
                len(decrypted),
                self.aim.price,
                names,
                sources,
                self.refresher,
                self._layouts(),
                len(carried),
                self.slots,
            ),
            refresher=self.aim.refresher,
            memory=self.aim.memory,
            program=program,
            publics=self.lowered.publics,
            origin=None,
            **data,
        )


def _used_packs(packs: tuple[PlaintextFamily, ...], data: dict[str, np.ndarray]):
    """Leaves out packs that no plaintext uses (of dead stages), renumbering the rest."""
    used = np.unique(data["plain_pack"])
    number = np.full(len(packs) + 1, -1, np.int32)
    number[used] = np.arange(len(used))
    return tuple(packs[k] for k in used), {**data, "plain_pack": number[data["plain_pack"]]}
