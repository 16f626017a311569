"""The rehearsal of an encrypted training: the very same steps simulated, and exact beside them.

Both begin with the same numbers and meet the same batches in the same order. The exact one goes
through the same polynomials without noise; the simulated one has that of the compiled Circuit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import numpy as np

from experiments.console import Display
from experiments.encrypted_training.margins import cause, margins_of, thin
from experiments.encrypted_training.preparing import Planned
from experiments.encrypted_training.states import (
    figures_of,
    latest,
    load_state,
    save_state,
    worth_keeping,
)
from experiments.errors import ExperimentError
from experiments.training.logbook import Logbook
from experiments.validation.folder import RunFolder
from models.data import metrics
from models.nn.lora import Params
from models.recipes.encrypted_training import State
from models.sites.sites import Range, join_ranges
from models.train.evaluate import make_evaluate

__all__ = ["REHEARSED", "rehearse", "scores_of", "state_error"]

REHEARSED, EXACT = "rehearsal", "exact"
"""Names under which states are kept: simulated, and exact."""


def rehearse(
    planned: Planned,
    folder: RunFolder,
    show: Display,
    every: int,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Rehearse all steps, or those that are left; whether they are done. Keeps states of both, and
    writes `rehearsal/metrics.csv` and the stage "rehearsed".

    every: steps between two states that are kept, with scores on the validation rows. Raises
    ExperimentError where the numbers cease to be finite; it names the site that was left.
    """
    training, steps = planned.training, planned.steps
    at = min(latest(folder, REHEARSED), latest(folder, EXACT))
    both = planned.state, planned.state
    met: dict[str, Range] = {}
    if at:
        show.say(f"going on from step {at:,}")
        both = tuple(load_state(folder, kind, at, planned.state) for kind in (REHEARSED, EXACT))
        met = {n: (a, b) for n, (a, b) in figures_of(folder, REHEARSED, at)["ranges"].items()}
    noisy, exact = both
    key = jax.random.fold_in(jax.random.key(training.settings.seed), 1)
    run = training.simulated(planned.state, planned.circuit)
    title = f"simulated, and exact, {steps:,} steps"
    with Logbook(folder.path / "rehearsal", at) as log, show.bar(title, 1.0) as update:
        update(at / steps, "compiling the simulated step ...", None)
        for number in range(at, steps):
            if stop():
                return False
            inputs, batch = planned.inputs(number), planned.batch(number)
            clear = training.watched(exact, inputs)
            under = training.watched(noisy, inputs)
            made = run(jax.random.fold_in(key, number), noisy, inputs, number > 0)
            exact, noisy = clear.state, made.state
            seen = (clear, under, made)
            figures = {
                "loss": training.loss(made.logits, batch),
                "exact_loss": training.loss(clear.logits, batch),
                "error_bits": state_error(noisy, exact),
                "outside": max(float(x) for one in seen for x in one.outside.values()),
                "rate": float(inputs.rate),
            }
            met = join_ranges([met, *(one.ranges for one in seen)])
            _check(planned, number, figures, met)
            done = number + 1
            if worth_keeping(done, steps, every):
                scores = _scored(planned, {"": noisy, "exact_": exact})
                log.write(done, figures | scores)
                kept = {"ranges": {n: list(pair) for n, pair in met.items()}, "scores": scores}
                save_state(folder, EXACT, done, exact, {})
                save_state(folder, REHEARSED, done, noisy, kept)
            else:
                log.write(done, figures)
            said = f"step {done:,}, loss {figures['loss']:.3f} (exact {figures['exact_loss']:.3f})"
            update(done / steps, said, None)
    _finish(planned, folder, met, noisy, exact)
    return True


def state_error(found: State, exact: State) -> float:
    """Bits of the largest difference of what is trained, of the largest number of its group
    (adapters, pooler, head; of a full training all groups at the top); -inf for none.
    """
    worst = 0.0
    for name, group in exact.trained.items():
        own = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(group)]
        other = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(found.trained[name])]
        reach = max(float(np.abs(leaf).max(initial=0.0)) for leaf in own)
        off = max(float(np.abs(a - b).max(initial=0.0)) for a, b in zip(own, other, strict=True))
        worst = max(worst, off / reach if reach else math.inf if off else 0.0)
    return math.log2(worst) if worst else -math.inf


def scores_of(planned: Planned, state: State, split: str = "validation") -> dict[str, float]:
    """Scores by measure of what is trained on a split's rows, through the polynomials."""
    evaluate = make_evaluate(planned.training.model, buckets=(planned.prepared.job.length,))
    rows = getattr(planned.prepared.data, split)
    params: Params = planned.training.finished(state, planned.frozen)
    found = evaluate(params, rows)
    return metrics.score(found.answers, rows.targets)


def _scored(planned: Planned, states: Mapping[str, State]) -> dict[str, float]:
    return {
        f"{prefix}{name}": value
        for prefix, state in states.items()
        for name, value in scores_of(planned, state).items()
    }


def _check(
    planned: Planned, number: int, figures: Mapping[str, float], met: Mapping[str, Range]
) -> None:
    """ExperimentError where a value left its domain so far that the step is no number any more."""
    if all(math.isfinite(figures[name]) for name in ("loss", "exact_loss")):
        return
    worst = cause(planned.training, met)
    raise ExperimentError(
        f"step {number + 1:,} of the rehearsal gives no number any more: {worst.name} met "
        f"[{worst.met[0]:.4g}, {worst.met[1]:.4g}], its polynomial holds on "
        f"[{worst.domain[0]:.4g}, {worst.domain[1]:.4g}]. Give {worst.remedy}"
    )


def _finish(
    planned: Planned, folder: RunFolder, met: Mapping[str, Range], noisy: State, exact: State
) -> None:
    rows = margins_of(planned.training, met)
    folder.save(
        REHEARSED,
        {
            "steps": planned.steps,
            "error_bits": state_error(noisy, exact),
            "validation": _scored(planned, {"": noisy, "exact_": exact}),
            "margins": [
                {"name": r.name, "met": list(r.met), "domain": list(r.domain), "room": r.room}
                for r in rows
            ],
            "thin": [f"{r.name}: {r.remedy}" for r in thin(rows)],
        },
    )
