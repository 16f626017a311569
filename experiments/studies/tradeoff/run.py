"""`hesim study tradeoff`: fine-tune, plan, score and spot-check every configuration of a study."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.console import Display
from experiments.studies.blind import claimed
from experiments.studies.tasks import Stopped
from experiments.studies.tradeoff.designs import Rung, configurations, rungs, survivors
from experiments.studies.tradeoff.folder import Results, Store, load_results
from experiments.studies.tradeoff.jobs import (
    Scored,
    Scoring,
    Trained,
    Training,
    cost_key,
    score,
    train,
    training_key,
)
from experiments.studies.tradeoff.knobs import Knobs
from experiments.studies.tradeoff.mapping import Failed, Mapping, in_this_process
from experiments.studies.tradeoff.rows import Cost, Row
from experiments.studies.tradeoff.settings import TradeoffStudy
from experiments.studies.tradeoff.spots import SpotChecks, spot_check

__all__ = ["run_tradeoff"]

_Seeds = dict[tuple[str, Knobs], list[int]]
"""Seeds by task and configuration."""


def run_tradeoff(
    study: TradeoffStudy,
    folder: str | Path,
    *,
    mapped: Mapping = in_this_process,
    display: Display | None = None,
    stop: Callable[[], bool] = lambda: False,
    checks: SpotChecks | None = None,
) -> Results:
    """Every row that `folder` does not hold yet; all that it holds, of other configurations too.

    mapped: where the jobs are done, see `mapping`. stop: asked between jobs and while waiting for
    them. checks: encrypted runs at the end. A configuration that cannot be built, planned or
    trained is a row with its reason. Raises ExperimentError where the folder is of another study or
    another process works in it; DataError, CheckpointError for data or a start that is not there;
    Stopped where `stop` said so before all was finished.
    """
    shown = display or Display(quiet=True)
    with claimed(folder, study.lasting(), "simulated", Row) as path:
        store = Store(path)
        store.ask(study)
        tried = configurations(study.space)
        plan = rungs(study.space, len(tried), study.seeds)
        for number, rung in enumerate(plan, 1):
            title = f"Rung {number} of {len(plan)}" if len(plan) > 1 else "Configurations"
            shown.stage(title)
            shown.say(
                f"{len(tried)} configurations on {', '.join(study.tasks)}, {rung.seeds} "
                f"fine-tunings of each, {rung.share:.0%} of the training rows"
            )
            _rung(study, store, tried, rung, mapped, shown, stop)
            if number < len(plan):
                tried = _surviving(study, store, tried, rung)
        if checks is not None and checks.count:
            spot_check(study, store, tried, checks, shown, stop)
        return load_results(path)


def _rung(
    study: TradeoffStudy,
    store: Store,
    tried: Sequence[Knobs],
    rung: Rung,
    mapped: Mapping,
    shown: Display,
    stop: Callable[[], bool],
) -> None:
    missing: _Seeds = {
        (task, knobs): seeds
        for task in study.tasks
        for knobs in tried
        if (seeds := _missing(store, task, knobs, rung))
    }
    failed: dict[str, str] = {}

    def keep_trained(key: str, found: Trained | Failed) -> None:
        if isinstance(found, Failed):
            failed[key] = found.reason
        else:
            store.keep_trained(key, found)

    trainings = _trainings(study, store, missing, rung.share)
    _work("fine-tuning", train, trainings, keep_trained, mapped, shown, stop)
    jobs = _scorings(study, store, missing, rung.share, failed)

    def keep_scored(pair: tuple[str, Knobs], found: Scored | Failed) -> None:
        task, knobs = pair
        if isinstance(found, Failed):
            for seed in jobs[pair].trained:
                store.keep_row(_unfinished(knobs, task, seed, rung.share, found.reason))
            return
        store.keep_task(found.task)
        for layout, cost in found.costs.items():
            store.keep_cost(cost_key(study, task, knobs, layout), cost)
        for row in found.rows:
            store.keep_row(row)
        shown.say(f"{task}, {knobs.label(study.space.reference)}: {_said(found)}")

    _work("scoring", score, jobs, keep_scored, mapped, shown, stop)


def _trainings(
    study: TradeoffStudy, store: Store, missing: _Seeds, share: float
) -> dict[str, Training]:
    """The fine-tunings that are not there, each once, by `training_key`."""
    found: dict[str, Training] = {}
    for (task, knobs), seeds in missing.items():
        for seed in seeds:
            job = Training(study, task, knobs, seed, share)
            key = training_key(job)
            if key not in found and store.trained(key) is None:
                found[key] = job
    return found


def _scorings(
    study: TradeoffStudy, store: Store, missing: _Seeds, share: float, failed: dict[str, str]
) -> dict[tuple[str, Knobs], Scoring]:
    """What can be scored; a row with its reason is kept of each seed that was not fine-tuned. Those
    of one ring and rank follow one another: a process that has planned one plans the next faster.

    failed: reasons, by `training_key`.
    """
    found: dict[tuple[str, Knobs], Scoring] = {}
    order = study.tasks.index
    alike = sorted(missing.items(), key=lambda m: (order(m[0][0]), m[0][1].ring, m[0][1].rank))
    for (task, knobs), seeds in alike:
        tuned: dict[int, Trained] = {}
        for seed in seeds:
            key = training_key(Training(study, task, knobs, seed, share))
            trained = None if key in failed else store.trained(key)
            if trained is None:
                reason = f"not fine-tuned: {failed.get(key, 'its file is damaged')}"
                store.keep_row(_unfinished(knobs, task, seed, share, reason))
            else:
                tuned[seed] = trained
        if tuned:
            known = {
                layout: cost
                for layout in ("one", "many")
                if (cost := store.cost(cost_key(study, task, knobs, layout))) is not None
            }
            found[task, knobs] = Scoring(study, task, knobs, share, tuned, known)
    return found


def _unfinished(knobs: Knobs, task: str, seed: int, share: float, reason: str) -> Row:
    return Row(knobs, task, seed, share, math.nan, reason=reason, unfinished=True)


def _missing(store: Store, task: str, knobs: Knobs, rung: Rung) -> list[int]:
    """The seeds whose rows are not there, or were not finished."""
    return [seed for seed in range(rung.seeds) if not store.finished(task, knobs, seed, rung.share)]


def _work(
    title: str,
    function: Callable[[Any], Any],
    jobs: dict[Any, Any],
    keep: Callable[[Any, Any], None],
    mapped: Mapping,
    shown: Display,
    stop: Callable[[], bool],
) -> None:
    """All jobs, each kept as it is finished, with a bar that says what time is left."""
    if not jobs:
        return
    if stop():
        raise Stopped
    names = list(jobs)
    with shown.bar(title, len(jobs)) as update:
        began = time.monotonic()
        for done, (number, found) in enumerate(mapped(function, list(jobs.values()), stop), 1):
            keep(names[number], found)
            left = (time.monotonic() - began) / done * (len(jobs) - done)
            update(done, f"{done} of {len(jobs)}", left)


def _surviving(
    study: TradeoffStudy, store: Store, tried: Sequence[Knobs], rung: Rung
) -> list[Knobs]:
    """By the mean over tasks of the points above the most frequent label, and the seconds of one
    sentence.
    """
    results = load_results(store.folder, only=tried)
    rows = [row for row in results.rows if row.share == rung.share and row.seed < rung.seeds]

    def judged(knobs: Knobs) -> tuple[float, float] | None:
        gains: list[float] = []
        seconds: list[float] = []
        for task in study.tasks:
            own = [row for row in rows if row.knobs == knobs and row.task == task]
            if not own or not all(row.sound for row in own):
                return None
            scores = [row.simulated for row in own]
            gains.append(float(np.mean(scores)) - results.tasks[task].majority)
            cost: Cost | None = results.costs.get(own[0].one)
            seconds.append(math.inf if cost is None else cost.seconds)
        return float(np.mean(gains)), float(np.mean(seconds))

    return survivors(tried, judged, rung.survivors)


def _said(found: Scored) -> str:
    scores = [row.simulated for row in found.rows if math.isfinite(row.simulated)]
    parts = [f"{found.task.metric} {np.mean(scores):.1f} simulated"] if scores else []
    if "one" in found.costs:
        cost = found.costs["one"]
        parts.append(f"{cost.seconds:.1f} s, {cost.depth} levels, {cost.refreshes} refreshes")
    reasons = dict.fromkeys(row.reason for row in found.rows if row.reason)
    return "; ".join([*parts, *reasons])
