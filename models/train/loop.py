"""The loop of a training with a budget: steps, figures, evaluations, a checkpoint at every stop.

Pre-training and distillation are this loop with steps, batches and evaluations of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from models.nn.lora import Params
from models.sites.sites import Range
from models.train.classifier import run_steps
from models.train.schedules import Clock
from models.train.step import Step, TrainState

__all__ = ["Progress", "Rhythm", "range_figures", "spend_budget"]


class Progress(NamedTuple):
    """One report: step, share of the budget behind, seconds of running, figures by name."""

    step: int
    share: float
    seconds: float
    figures: dict[str, float]


class Rhythm(NamedTuple):
    """Steps between two reports and between two evaluations, seconds between two checkpoints."""

    log_every: int
    evaluate_every: int
    save_seconds: float


def range_figures(ranges: Mapping[str, Range]) -> dict[str, float]:
    """Ranges met as figures of a log, two a site."""
    return {
        f"range/{name}/{end}": value
        for name, pair in ranges.items()
        for end, value in zip(("low", "high"), pair, strict=True)
    }


def spend_budget(
    step: Step,
    state: TrainState,
    batch_of: Callable[[int], Any],
    clock: Clock,
    rhythm: Rhythm,
    *,
    learning_rate: Callable[[float], float],
    evaluate: Callable[[TrainState], dict[str, float]],
    save: Callable[[TrainState], None],
    report: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    diagnose: Callable[[Params, Any], str] | None = None,
) -> TrainState:
    """Steps from the state's own number until the clock's budget is spent or `stop` says so.

    batch_of(n): the batch of step n, with `tokens` (rows, length). learning_rate(share): at a share
    of the budget. evaluate(state): figures by name, also once the budget is spent. save(state):
    called now and then, and at the end unless no step was made. Raises TrainingError as
    `run_steps`.
    """
    tokens = 0

    def counted(number: int) -> Any:
        nonlocal tokens
        batch = batch_of(number)
        tokens += batch.tokens.size
        return batch

    saved, kept = time.monotonic(), int(state.step)
    while not stop() and clock.progress(int(state.step)) < 1:
        began, tokens = time.monotonic(), 0
        goal = (int(state.step) // rhythm.log_every + 1) * rhythm.log_every
        figures: dict[str, float] = {}
        state = run_steps(
            step,
            state,
            counted,
            until=min(goal, clock.budget.steps),
            stop=stop,
            report=lambda _, found, into=figures: into.update(found),
            report_every=rhythm.log_every,
            diagnose=diagnose,
        )
        if not figures:
            break
        number = int(state.step)
        share = clock.progress(number)
        figures["tokens_per_second"] = tokens / (time.monotonic() - began)
        figures["learning_rate"] = learning_rate(share)
        if number % rhythm.evaluate_every == 0 or share >= 1:
            figures |= evaluate(state)
        if report is not None:
            report(Progress(number, share, clock.seconds, figures))
        if time.monotonic() - saved >= rhythm.save_seconds:
            save(state)
            saved, kept = time.monotonic(), number
    if int(state.step) != kept:
        save(state)
    return state
