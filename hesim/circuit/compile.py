"""`compile`: chooses layouts, levels, refreshes and keys, and writes the Circuit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from hesim.circuit import tables
from hesim.circuit.builder import Overspent
from hesim.circuit.candidate import Candidate
from hesim.circuit.circuit import Circuit
from hesim.circuit.refresher import BOOTSTRAP_SECONDS, KEY_HOLDER, Refresher
from hesim.errors import LayoutError, ParameterError, TraceError
from hesim.params import CKKSParams
from hesim.program import Program
from hesim.progress import CompileProgress, CompileWatch, Reporter, watching

__all__ = ["Candidate", "compile", "planned"]


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
    best: tuple[float, Candidate] | None = None
    failure: Exception | None = None
    choices = sorted(
        tables.choices(program, params, batch, layouts), key=lambda choice: choice.ciphers
    )
    for number, choice in enumerate(choices, 1):
        if watch is not None:
            watch.layout(number, len(choices))
        try:
            budget = best[0] if best else math.inf
            lowered = tables.TableLowering(program, params.log_n, choice, budget, watch)
            plan = Candidate(lowered, params, price, refresher)
        except Overspent:
            continue
        except LayoutError as error:
            failure = error.with_traceback(None)  # its frames hold the tables
            continue
        if plan.schedule.refreshed and plan.slots > (refresher.slots or plan.slots):
            failure = LayoutError(
                f"{program.name} fills {plan.slots:,} slots, and the {refresher.name} refreshes "
                f"{refresher.slots:,}: use more levels, so that nothing is refreshed, or split it"
            )
            continue
        if best is None or plan.schedule.seconds < best[0]:
            best = (plan.schedule.seconds, plan)
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
    return best[1]


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
