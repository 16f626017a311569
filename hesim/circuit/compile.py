"""`compile`: chooses layouts, levels, refreshes and keys, and writes the Circuit."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hesim.circuit import sizes, tables
from hesim.circuit.aims.aim import Aim
from hesim.circuit.builder import Overspent
from hesim.circuit.candidate import Candidate
from hesim.circuit.circuit import Circuit
from hesim.circuit.costs.table import suited
from hesim.circuit.limits.remarks import expected, unfilled
from hesim.circuit.packing.lowering import PackedLowering, lowerings
from hesim.circuit.packing.operations import Operation
from hesim.circuit.packing.search import NoPlan
from hesim.circuit.refresher import BOOTSTRAP_SECONDS, KEY_HOLDER, Refresher
from hesim.circuit.refreshes.joining import with_joint_refreshes
from hesim.errors import (
    ArgumentError,
    EmptySlotsWarning,
    LayoutError,
    LevelError,
    OverBudgetError,
    TraceError,
)
from hesim.params import CKKSParams
from hesim.program import Program
from hesim.progress import CompileProgress, CompileWatch, Reporter, watching

if TYPE_CHECKING:
    from hesim.calibrate import Calibration

__all__ = ["Candidate", "compile", "planned", "planned_for"]

_WORTH_TABLES = 50_000
"""Terms of a Program, one for each product of elements, beyond which the search comes first, and
tables only where it has no plan.
"""

_WORTH_SEARCH = 0.2
"""Seconds of a run beyond which a better plan is searched for: of a small program, a search takes
about as long.
"""

_FEW_KEYS = 16
"""Rotation keys beyond which a better plan is searched for, too: one takes as long to make as a
dozen rotations, and megabytes.
"""

_SEARCHES = 2
"""Searches for layouts: with the batch below the columns, and with it as an axis like others."""

_WORTH_FILLING = 1.0
"""Seconds of a run beyond which slots that are empty are worth a warning."""

_OTHERS = 5
"""Plans beside the best that are kept, for less memory than that one takes."""

_SURROGATE = 1.6
"""How much dearer the search takes a plan to be than it is once its levels are chosen, at most."""


def compile(
    program: Program,
    params: CKKSParams,
    *,
    refresh_price: float | str | None = None,
    refresher: Refresher = KEY_HOLDER,
    objective: str = "seconds",
    interactive: bool = True,
    calibration: Calibration | None = None,
    memory: float | None = None,
    batch: bool = True,
    layouts: Sequence[Sequence[int]] | None = None,
    carried: Mapping[int, int] | None = None,
    progress: bool | Callable[[CompileProgress], None] | Reporter | None = None,
) -> Circuit:
    """Plans an encrypted run of `program`.

    Args:
      program: from `hesim.trace`.
      params: ring and prime chain.
      refresh_price: what a refresh of one ciphertext counts while planning, in seconds: None for
        the refresher's own cost, "bootstrap" for 10 s, a number, or `math.inf` to forbid them.
        `hesim.refresh` in the program is always obeyed.
      refresher: who refreshes, from which level, to which, how well and at what cost: the key
        holder, or `hesim.bootstrap(law, ...)`.
      objective: "seconds" for the fewest predicted seconds, "rounds" for the fewest round trips
        that wait for each other (`ledger.refresh_rounds`) and the fewest seconds among these.
      interactive: False for a plan in which nobody but the server takes part between encryption
        and decryption: the key holder refreshes nothing, a bootstrap may.
      calibration: from `hesim.calibrate` on this program: its values, wider by a quarter, are
        computed at levels whose modulus has room for them, and brought into the range that the
        refresher is made for, by factors that neighbours take in or, where none can, by a level.
      memory: bytes, at most, that compiling takes, and that one process takes which evaluates
        (`ledger.peak_bytes`: machine, keys, ciphertexts, plaintexts). Where it does not hold a key
        for every rotation, some are composed of others; plaintexts are kept encoded as far as there
        is room, else encoded for each use.
      batch: lay the members of a batch side by side in the slots where nothing mixes them.
      layouts: per encrypted input, the axes (without the batch axis) that go on slots, outermost
        first; chosen by predicted cost if None.
      carried: by number of an argument, the number of the result that it is at the next run, as the
        state of a training is: the result then lies as the argument does, at its level, refreshed,
        and `Circuit.carried` says which ciphertext is which. The result of a function that returns
        no tuple is number 0.
      progress: True for a bar on the terminal, in the notebook or in the log; or a function that is
        called with a `CompileProgress` for every operation of every layout that is tried.

    Returns:
      The cheapest Circuit found, by predicted seconds at that price.

    Raises:
      LevelError: levels run out and refreshes are forbidden: how many it takes, in which ring, and
        which operation takes most of them. LayoutError: nothing fits the slots.
      OverBudgetError, TooLargeError: nothing fits the memory, evaluated or compiled.
      ValueOverflowError: no level holds the values of the calibration.
      TraceError: not a Program, or not CKKSParams. ParameterError: such a price or objective.
      ArgumentError: no such result can be carried, or not in given layouts.

    Examples:
      >>> import hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> circuit = hesim.compile(hesim.trace(lambda x: x * x, np.ones(8)), params)
      >>> circuit.ledger.products, circuit.ledger.refreshes, circuit.ledger.rotation_keys
      (1, 0, 0)
    """
    need_planable(program, params)
    aim = Aim.of(
        *(program, refresh_price, refresher, objective, interactive, calibration, memory), carried
    )
    if aim.carried and layouts is not None:
        raise ArgumentError(
            "results are carried in layouts that compile chooses: leave out layouts"
        )
    costs = suited(params.digits)
    with costs, watching(progress) as watch, sizes.limited(aim.memory):
        watch.expect(expected(program))
        others: list[Candidate] | None = None if aim.memory is None else []
        plan = planned_for(
            program, params, aim, batch=batch, layouts=layouts, watch=watch, others=others
        )
        watch.writing()
        circuit = _first_within(params, [plan, *(others or ())])
    if circuit.ledger.seconds >= _WORTH_FILLING and circuit.full_batch > circuit.batch:
        warnings.warn(unfilled(circuit), EmptySlotsWarning, stacklevel=2)
    return circuit


def _first_within(params: CKKSParams, plans: Sequence[Candidate]) -> Circuit:
    """The Circuit of the first of these plans, the cheapest first, that memory has room for."""
    failures: list[OverBudgetError] = []
    for plan in plans:
        try:
            return plan.circuit(params)
        except OverBudgetError as error:
            failures.append(error.with_traceback(None))
    raise min(failures, key=lambda e: e.needed)


def planned(
    program: Program,
    params: CKKSParams,
    *,
    refresh_price: float | str | None = None,
    refresher: Refresher = KEY_HOLDER,
) -> Candidate:
    """What `compile` decides before it writes instructions: layouts and levels, which serve all
    parameters with this ring and as many levels. Arguments and errors are those of `compile`.
    """
    need_planable(program, params)
    return planned_for(program, params, Aim.of(program, refresh_price, refresher))


def planned_for(
    program: Program,
    params: CKKSParams,
    aim: Aim,
    *,
    batch: bool = True,
    layouts: Sequence[Sequence[int]] | None = None,
    watch: CompileWatch | None = None,
    others: list[Candidate] | None = None,
) -> Candidate:
    """The best plan for an aim. Errors are those of `compile`.

    watch: is told of every layout and operation. others: gets a few plans that are not the best,
    the cheapest first, if it is given.
    """
    task = _Task(program, params, aim, batch, layouts, watch, others)
    best: Candidate | None = None
    large = tables.terms(program) > _WORTH_TABLES
    searched = layouts is None and (bool(aim.carried) or aim.fitted or large)
    if watch is not None:
        searches = (_SEARCHES << aim.rounds) if layouts is None else 0
        watch.begin((0 if searched else len(task.choices)) + searches)
    if searched:
        best = _packed(task, None)
    if best is None and aim.carried:
        raise _nearest(task.failures) or _not_carried(task)
    if best is None and not (task.failures and aim.price == math.inf):
        best = _tabled(task)
        worth = best is None or best.cost > (0, _WORTH_SEARCH) or task.most_keys(best) > _FEW_KEYS
        if layouts is None and worth and not searched:
            best = _packed(task, best)
    short = any(isinstance(e, LevelError) for e in task.failures)
    secret = any(v.encrypted for v in program.inputs)
    if best is None and batch and layouts is None and secret and not short:
        # What cannot be laid out for one member at a time may be for all of them as one tensor.
        try:
            return planned_for(program, params, aim, batch=False, watch=watch, others=others)
        except (LayoutError, LevelError) as error:
            task.failures.append(error.with_traceback(None))
    if best is None:
        raise _nearest(task.failures) or _nothing_to_lay_out(program, params)
    if others is not None:
        others[:] = [plan for plan in others if plan is not best]
    apart = best.refitted()
    best = with_joint_refreshes(apart)
    if others is not None and best is not apart:
        others.insert(0, apart)
    return best


@dataclass(frozen=True, eq=False)
class _Task:
    """What is planned, and what came of it: why layouts are none, what the search could not lay
    out, plans beside the best, and seconds and rotation keys of the fastest run.
    """

    program: Program
    params: CKKSParams
    aim: Aim
    batch: bool
    layouts: Sequence[Sequence[int]] | None
    watch: CompileWatch | None
    others: list[Candidate] | None
    failures: list[Exception] = field(default_factory=list)
    refused: list[Exception] = field(default_factory=list)
    fastest: list[float] = field(default_factory=lambda: [math.inf, 0.0])

    @functools.cached_property
    def choices(self) -> list[tables.Choice]:
        """Layouts by tables, those of few ciphertexts first."""
        found = tables.choices(self.program, self.params, self.batch, self.layouts)
        return sorted(found, key=lambda choice: choice.ciphers)

    def most_keys(self, best: Candidate) -> int:
        """Rotation keys of the best plan, or of the fastest where that takes more."""
        return max(best.rotation_keys, int(self.fastest[1]))

    def better(self, plan: Candidate, best: Candidate | None) -> Candidate:
        """The cheaper one; keeps a few of the others, and the seconds of the fastest run."""
        self.fastest[:] = min(self.fastest, [plan.schedule.seconds, plan.rotation_keys])
        if self.others is not None:
            self.others.append(plan)
            self.others.sort(key=lambda other: other.cost)
            del self.others[_OTHERS:]
        return plan if best is None or plan.cost < best.cost else best


def need_planable(program: Program, params: CKKSParams) -> None:
    """TraceError unless a Program and parameters are given."""
    if not isinstance(program, Program) or not isinstance(params, CKKSParams):
        raise TraceError(
            f"compile takes a Program and CKKSParams, not a {type(program).__name__} and a "
            f"{type(params).__name__}: program = hesim.trace(fn, *example_args), params = "
            f"hesim.CKKSParams(log_n=14, ...) or hesim.suggest(program).params."
        )


def _nearest(failures: Sequence[Exception]) -> Exception | None:
    """Of the reasons why layouts do not do, the one that is the easiest to mend: the fewest levels
    that are missing, else the last.
    """
    levels = [e for e in failures if isinstance(e, LevelError) and e.needed is not None]
    if levels:
        return min(levels, key=lambda e: e.needed or 0)
    return next(iter(reversed(failures)), None)


def _packed(task: _Task, best: Candidate | None) -> Candidate | None:
    """The best plan of the search, if it is better than `best`, else that."""
    # Where no refresh is allowed, the search takes levels for dear, and so its seconds for more.
    comparable = best is not None and not task.aim.rounds and task.aim.price != math.inf
    bound = _SURROGATE * best.cost[1] if best and comparable else math.inf
    for lowered in _lowerings(task, bound):
        try:
            plan = Candidate(lowered, task.params, task.aim)
        except LevelError as error:
            task.failures.append(error.with_traceback(None))  # tables may need fewer levels
            continue
        if _unrefreshable(plan) is None:
            best = task.better(plan, best)
    return best


def _lowerings(task: _Task, bound: float) -> Iterator[PackedLowering]:
    """Plans of the search; where rounds count, those that use few levels besides."""
    aim = task.aim

    def found(price: float | None) -> Iterator[PackedLowering]:
        args = task.program, task.params, price, aim.refresher, task.batch
        options = {"bound": bound, "watch": task.watch, "refused": task.refused}
        yield from lowerings(*args, carried=aim.carried, values=aim.values, **options)

    yield from found(aim.price)
    if aim.rounds and (aim.price or 0.0) < BOOTSTRAP_SECONDS:
        yield from found(BOOTSTRAP_SECONDS)


def _tabled(task: _Task) -> Candidate | None:
    """The best plan by tables."""
    best: Candidate | None = None
    program, params, aim, watch = task.program, task.params, task.aim, task.watch
    for number, choice in enumerate(task.choices, 1):
        if watch is not None:
            watch.layout(number, len(task.choices))
        budget = best.cost[1] if best and not aim.rounds else math.inf
        try:
            lowered = tables.TableLowering(program, params.log_n, choice, budget, watch)
            plan = Candidate(lowered, params, aim)
        except Overspent:
            continue
        except (LayoutError, LevelError) as error:
            task.failures.append(error.with_traceback(None))  # its frames hold the tables
            continue
        refused = _unrefreshable(plan)
        if refused is not None:
            task.failures.append(refused)
        else:
            best = task.better(plan, best)
    return best


def _unrefreshable(plan: Candidate) -> LayoutError | None:
    refresher = plan.aim.refresher
    if not plan.schedule.refreshed or plan.slots <= (refresher.slots or plan.slots):
        return None
    return LayoutError(
        f"{plan.program.name} fills {plan.slots:,} slots, and the {refresher.name} refreshes "
        f"{refresher.slots:,}: use more levels, so that nothing is refreshed, or split it"
    )


def _not_carried(task: _Task) -> Exception:
    """Why the search, which alone plans what is carried, has no plan: what got the furthest."""
    written = [e for e in task.refused if not isinstance(e, NoPlan)]
    if written:
        return written[-1]
    program = task.program
    furthest = max(
        (e for e in task.refused if isinstance(e, NoPlan)), key=lambda e: e.reached, default=None
    )
    if furthest is not None and isinstance(furthest.of, Operation):
        eqn = furthest.of.equations[0]
        shapes = " and ".join(str(v.shape) for v in furthest.of.operands)
        return LayoutError(
            f"{eqn.name} at {eqn.source} has no layout that {program.name} could use: its "
            f"encrypted operands of shape {shapes} lie in too many ciphertexts of "
            f"{task.params.slots:,} slots, or moving them takes too many products. Take fewer "
            "members of a batch or a larger ring, or do it in parts"
        )
    pairs = [p for p in task.aim.carried if furthest is None or p is furthest.of]
    names = ", ".join(program.labels[pair.input] for pair in pairs)
    return LayoutError(
        f"no plan of {program.name} brings what is carried ({names}) back to where it lay: use a "
        "larger ring, or carry it by way of the key holder, decrypted and encrypted again"
    )


def _nothing_to_lay_out(program: Program, params: CKKSParams) -> LayoutError:
    secret = [v for v in program.inputs if v.encrypted]
    if not secret:
        return LayoutError(
            f"{program.name} has no encrypted input to lay out: name some in "
            "hesim.trace(..., encrypted=...)."
        )
    elements = sum(v.size for v in secret)
    return LayoutError(
        f"the {elements:,} encrypted elements of {program.name} need more than "
        f"{tables.MOST_INPUTS:,} ciphertexts of {params.slots:,} slots in every layout: use a "
        f"larger ring, or split the inputs into several runs."
    )
