"""The loop of every training: steps, reports, evaluations and checkpoints on the way.

A step depends on the state and the batch alone, and the batch on the seed and the step number, so a
run that resumes from a checkpoint ends with the same bits as one that was never stopped. It ends
where numbers cease to be finite.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models.errors import TrainingError
from models.nn.lora import Params
from models.sites.sites import Range
from models.train.schedules import BudgetClock
from models.train.step import Step, TrainState

__all__ = [
    "Intervals",
    "Progress",
    "TrainingError",
    "next_multiple",
    "range_figures",
    "run_rounds",
    "run_steps",
    "spend_budget",
]


Report = Callable[[int, dict[str, float]], None]


class Progress(NamedTuple):
    """One report of a training.

    Attributes:
      step: steps made.
      share: of the training that is behind, in [0, 1].
      figures: by name.
      seconds: of running, over all attempts; 0 where they are not counted.
      phase: what is trained: "exact", "polynomial", "as encrypted"; "" where there is one only.
      steps: of the whole training; 0 where time may end it earlier.
    """

    step: int
    share: float
    figures: dict[str, float]
    seconds: float = 0.0
    phase: str = ""
    steps: int = 0


class Intervals(NamedTuple):
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


def run_rounds(
    step: Step,
    state: TrainState,
    batch_of: Callable[[int], Any],
    *,
    goal_of: Callable[[int], int | None],
    at_goal: Callable[[TrainState, dict[str, float]], None],
    between: Report | None = None,
    report_every: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    save: Callable[[TrainState], None] | None = None,
    save_every: int = 0,
    diagnose: Callable[[Params, Any], str] | None = None,
) -> TrainState:
    """The loop of every training: from goal to goal until there is none, or `stop` says so.

    Args:
      step, state, batch_of, stop, save, save_every, diagnose: as of `run_steps`.
      goal_of: from the number of steps made to the step of the next goal; None at the end.
      at_goal: called with the state and the newest figures where a goal is reached.
      between: called with step and figures every `report_every` steps on the way to a goal.
      report_every: in steps; None: at goals only.

    Returns:
      The last state.

    Raises:
      TrainingError: loss or gradient are not finite.
    """
    while (goal := goal_of(int(state.step))) is not None:
        figures: dict[str, float] = {}

        def seen(
            at: int, met: dict[str, float], goal: int = goal, into: dict[str, float] = figures
        ) -> None:
            into.update(met)
            if at < goal and between is not None:
                between(at, met)

        state = run_steps(
            step,
            state,
            batch_of,
            until=goal,
            stop=stop,
            report=seen,
            report_every=goal if report_every is None else report_every,
            save=save,
            save_every=save_every,
            diagnose=diagnose,
        )
        if int(state.step) < goal:
            break
        at_goal(state, figures)
    return state


def next_multiple(number: int, every: int) -> int:
    """The first multiple of `every` above `number`."""
    return (number // every + 1) * every


def spend_budget(
    step: Step,
    state: TrainState,
    batch_of: Callable[[int], Any],
    clock: BudgetClock,
    intervals: Intervals,
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
    began = saved = time.monotonic()
    kept = int(state.step)

    def counted(number: int) -> Any:
        nonlocal tokens
        batch = batch_of(number)
        tokens += batch.tokens.size
        return batch

    def goal_of(number: int) -> int | None:
        if clock.progress(number) >= 1:
            return None
        return min(next_multiple(number, intervals.log_every), clock.budget.steps)

    def at_goal(state: TrainState, figures: dict[str, float]) -> None:
        nonlocal tokens, began, saved, kept
        number = int(state.step)
        share = clock.progress(number)
        figures["tokens_per_second"] = tokens / (time.monotonic() - began)
        figures["learning_rate"] = learning_rate(share)
        if number % intervals.evaluate_every == 0 or share >= 1:
            figures |= evaluate(state)
        if report is not None:
            report(Progress(number, share, figures, seconds=clock.seconds))
        if time.monotonic() - saved >= intervals.save_seconds:
            save(state)
            saved, kept = time.monotonic(), number
        began, tokens = time.monotonic(), 0

    state = run_rounds(
        step,
        state,
        counted,
        goal_of=goal_of,
        at_goal=at_goal,
        stop=stop,
        diagnose=diagnose,
    )
    if int(state.step) != kept:
        save(state)
    return state


def run_steps(
    step: Step,
    state: TrainState,
    batch_of: Callable[[int], Any],
    *,
    until: int,
    stop: Callable[[], bool] = lambda: False,
    report: Report | None = None,
    report_every: int = 50,
    save: Callable[[TrainState], None] | None = None,
    save_every: int = 0,
    diagnose: Callable[[Params, Any], str] | None = None,
) -> TrainState:
    """Steps from the state's own number up to another, step n on `batch_of(n)`.

    Loss and gradient are looked at when they are reported; with `diagnose` the steps since the
    last report are run again, and the first bad one's parameters and batch are diagnosed. That
    keeps a copy of the state.

    Args:
      step: (state, batch) -> (state, metrics), as of `make_step`.
      state: to go on from.
      batch_of: the batch of a step number.
      until: the number to stop at.
      stop: asked before each step; the state so far is returned if it says so.
      report: called with the step number and metrics every `report_every` steps and at the end.
      report_every: in steps.
      save: called with the state every `save_every` steps.
      save_every: in steps; 0: never.
      diagnose: (params, batch) -> text, for the first step that goes wrong (`diagnose.origin`).

    Returns:
      The last state.

    Raises:
      TrainingError: loss or gradient are not finite.

    Examples:
      >>> import jax, optax
      >>> from models import initial_state, make_update, run_steps
      >>> def loss(trained, frozen, batch, key):
      ...     value = ((trained["w"] - batch) ** 2).sum()
      ...     return value, {"loss": value}
      >>> state = initial_state({"w": jax.numpy.zeros(2)}, optax.sgd(0.1), jax.random.key(0))
      >>> ones = jax.numpy.ones(2)
      >>> state = run_steps(make_update(loss, optax.sgd(0.1)), state, lambda n: ones, until=5)
      >>> int(state.step), bool((state.params["w"] > 0.5).all())
      (5, True)
    """
    kept = None if diagnose is None else _copy(state)
    for number in range(int(state.step), until):
        if stop():
            break
        state, metrics = step(state, batch_of(number))
        done = number + 1
        if done % report_every == 0 or done == until:
            figures = {name: float(value) for name, value in metrics.items()}
            if not _finite(figures):
                raise TrainingError(_told(step, kept, batch_of, done, figures, diagnose))
            if report is not None:
                report(done, figures)
            kept = None if diagnose is None else _copy(state)
        if save is not None and save_every and done % save_every == 0:
            save(state)
    return state


def _copy(state: TrainState) -> TrainState:
    """The state in buffers of its own, which a step that donates its input leaves alone."""
    return jax.tree.map(jnp.copy, state)


def _finite(figures: Mapping[str, float]) -> bool:
    return bool(np.isfinite([figures["loss"], figures.get("gradient_norm", 0.0)]).all())


def _told(
    step: Step,
    kept: TrainState | None,
    batch_of: Callable[[int], Any],
    done: int,
    figures: Mapping[str, float],
    diagnose: Callable[[Params, Any], str] | None,
) -> str:
    """What happened, from the steps since the last report run once more."""
    at, where = done, ""
    if kept is not None and diagnose is not None:
        for number in range(int(kept.step), done):
            before, batch = _copy(kept), batch_of(number)
            kept, metrics = step(kept, batch)
            if not _finite({name: float(value) for name, value in metrics.items()}):
                at, where = number + 1, f" ({diagnose(before.params, batch)})"
                break
    return (
        f"the loss is {figures['loss']} and the gradient's norm {figures['gradient_norm']} at step "
        f"{at}{where}: lower the learning rate, or clip the gradient"
    )
