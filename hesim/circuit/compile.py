"""`compile`: chooses layouts, levels, refreshes and keys, and writes the Circuit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from hesim.circuit import tables
from hesim.circuit.builder import Overspent
from hesim.circuit.candidate import Candidate
from hesim.circuit.circuit import Circuit
from hesim.circuit.packing.lowering import lowerings
from hesim.circuit.refresher import BOOTSTRAP_SECONDS, KEY_HOLDER, Refresher
from hesim.errors import LayoutError, LevelError, ParameterError, TraceError
from hesim.params import CKKSParams
from hesim.program import Program
from hesim.progress import CompileProgress, CompileWatch, Reporter, watching

__all__ = ["Candidate", "compile", "planned"]

_WORTH_TABLES = 1_000_000
"""Terms of a Program, one for each product of elements, beyond which the search comes first, and
tables only where it has no plan.
"""

_WORTH_SEARCH = 1.0
"""Seconds of a run beyond which a better plan is searched for: a search takes a second or so."""

_SURROGATE = 1.6
"""How much dearer the search takes a plan to be than it is once its levels are chosen, at most."""


def compile(
    program: Program,
    params: CKKSParams,
    *,
    refresh_price: float | str | None = None,
    refresher: Refresher = KEY_HOLDER,
    batch: bool = True,
    layouts: Sequence[Sequence[int]] | None = None,
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
      batch: lay the members of a batch side by side in the slots where nothing mixes them.
      layouts: per encrypted input, the axes (without the batch axis) that go on slots, outermost
        first; chosen by predicted cost if None.
      progress: True for a bar on the terminal, in the notebook or in the log; or a function that is
        called with a `CompileProgress` for every operation of every layout that is tried.

    Returns:
      The cheapest Circuit found, by predicted seconds at that price.

    Raises:
      LevelError: levels run out and refreshes are forbidden. LayoutError: nothing fits the slots.
      TraceError: not a Program, or not CKKSParams. ParameterError: such a refresh_price.

    Examples:
      >>> import hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> circuit = hesim.compile(hesim.trace(lambda x: x * x, np.ones(8)), params)
      >>> circuit.ledger.products, circuit.ledger.refreshes, circuit.ledger.rotation_keys
      (1, 0, 0)
    """
    with watching(progress) as watch:
        plan = planned(
            program,
            params,
            refresh_price=refresh_price,
            refresher=refresher,
            batch=batch,
            layouts=layouts,
            watch=watch,
        )
        watch.writing()
        return plan.circuit(params)


def planned(
    program: Program,
    params: CKKSParams,
    *,
    refresh_price: float | str | None = None,
    refresher: Refresher = KEY_HOLDER,
    batch: bool = True,
    layouts: Sequence[Sequence[int]] | None = None,
    watch: CompileWatch | None = None,
) -> Candidate:
    """What `compile` decides before it writes instructions: layouts and levels, which serve all
    parameters with this ring and as many levels. Arguments and errors are those of `compile`;
    `watch` is told of every layout and operation.
    """
    if not isinstance(program, Program) or not isinstance(params, CKKSParams):
        raise TraceError(
            f"compile takes a Program and CKKSParams, not a {type(program).__name__} and a "
            f"{type(params).__name__}: program = hesim.trace(fn, *example_args)."
        )
    price = _price(refresh_price)
    best: Candidate | None = None
    failure: Exception | None = None
    searched = layouts is None and tables.terms(program) > _WORTH_TABLES
    if searched:
        best = _packed(program, params, price, refresher, batch, watch, None)
    if best is None:
        best, failure = _tabled(program, params, price, refresher, batch, layouts, watch)
        worth = best is None or best.schedule.seconds > _WORTH_SEARCH
        if layouts is None and worth and not searched:
            best = _packed(program, params, price, refresher, batch, watch, best)
    if best is None and batch and layouts is None and any(v.encrypted for v in program.inputs):
        # What cannot be laid out for one member at a time may be for all of them as one tensor.
        return planned(
            program,
            params,
            refresh_price=refresh_price,
            refresher=refresher,
            batch=False,
            watch=watch,
        )
    if best is None:
        raise failure or _nothing_to_lay_out(program, params)
    return best


def _better(one: Candidate, other: Candidate) -> bool:
    return one.schedule.seconds < other.schedule.seconds


def _packed(
    program: Program,
    params: CKKSParams,
    price: float | None,
    refresher: Refresher,
    batch: bool,
    watch: CompileWatch | None,
    best: Candidate | None,
) -> Candidate | None:
    """The best plan of the search, if it is better than `best`."""
    bound = _SURROGATE * best.schedule.seconds if best else math.inf
    for lowered in lowerings(program, params, price, refresher, batch, bound=bound, watch=watch):
        try:
            plan = Candidate(lowered, params, price, refresher)
        except LevelError:
            continue  # tables may need fewer levels, or say what is missing
        if _unrefreshable(plan, refresher) is None and (best is None or _better(plan, best)):
            best = plan
    return best


def _tabled(
    program: Program,
    params: CKKSParams,
    price: float | None,
    refresher: Refresher,
    batch: bool,
    layouts: Sequence[Sequence[int]] | None,
    watch: CompileWatch | None,
) -> tuple[Candidate | None, Exception | None]:
    """The best plan by tables, or why there is none."""
    best: Candidate | None = None
    failure: Exception | None = None
    choices = sorted(tables.choices(program, params, batch, layouts), key=lambda c: c.ciphers)
    for number, choice in enumerate(choices, 1):
        if watch is not None:
            watch.layout(number, len(choices))
        budget = best.schedule.seconds if best else math.inf
        try:
            lowered = tables.TableLowering(program, params.log_n, choice, budget, watch)
            plan = Candidate(lowered, params, price, refresher)
        except Overspent:
            continue
        except LayoutError as error:
            failure = error.with_traceback(None)  # its frames hold the tables
            continue
        refused = _unrefreshable(plan, refresher)
        if refused is not None:
            failure = refused
        elif best is None or _better(plan, best):
            best = plan
    return best, failure


def _unrefreshable(plan: Candidate, refresher: Refresher) -> LayoutError | None:
    if not plan.schedule.refreshed or plan.slots <= (refresher.slots or plan.slots):
        return None
    return LayoutError(
        f"{plan.program.name} fills {plan.slots:,} slots, and the {refresher.name} refreshes "
        f"{refresher.slots:,}: use more levels, so that nothing is refreshed, or split it"
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


def _price(refresh_price: float | str | None) -> float | None:
    if refresh_price is None:
        return None
    if refresh_price == "bootstrap":
        return BOOTSTRAP_SECONDS
    if isinstance(refresh_price, str):
        raise ParameterError(
            f"refresh_price must be None, 'bootstrap' or seconds, not {refresh_price!r}"
        )
    if not refresh_price >= 0:
        raise ParameterError("refresh_price is seconds per refreshed ciphertext, at least 0")
    return float(refresh_price)
