"""Spot checks: some configurations run encrypted, beside what was predicted of them before."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np

import he_backend
import hesim
from experiments.console import Display
from experiments.errors import ExperimentError, first_line
from experiments.studies.tasks import Stopped
from experiments.studies.tradeoff.folder import Store, load_results
from experiments.studies.tradeoff.jobs import Trained, Training, plan_of, subject_of, training_key
from experiments.studies.tradeoff.knobs import Knobs
from experiments.studies.tradeoff.rows import Row, Spot, save
from experiments.studies.tradeoff.settings import TradeoffStudy
from experiments.studies.tradeoff.statistics import Point
from he_backend.machines.table import DEFAULT_MACHINE, find
from models.data import metrics

__all__ = ["SpotChecks", "chosen_points", "rank_correlations", "spot_check"]

_KEYS = 8


@dataclasses.dataclass(frozen=True)
class SpotChecks:
    """How many configurations are run encrypted, `sentences` of each one at a time, or of all there
    are, on a machine of the table; only those whose processes are predicted to take at most
    `memory` bytes each. Raises ExperimentError for what cannot be.
    """

    count: int
    sentences: int = 8
    backend: str = DEFAULT_MACHINE
    memory: float = 2.5e9

    def __post_init__(self) -> None:
        if self.count < 0 or self.sentences < 1 or not self.memory >= 0:
            raise ExperimentError(
                f"count={self.count} of checks and memory={self.memory} are at least 0, "
                f"sentences={self.sentences} at least 1"
            )


def spot_check(
    study: TradeoffStudy,
    store: Store,
    tried: Sequence[Knobs],
    checks: SpotChecks,
    shown: Display,
    stop: Callable[[], bool],
) -> None:
    """Runs what is missing of so many checks, each kept as it is finished; what could not be run
    may be tried again. Raises Stopped.
    """
    results = load_results(store.folder, only=tried)
    known = [(spot.task, spot.knobs) for spot in results.spots if not spot.reason]
    wanted = chosen_points(results.points, checks, known)
    if not wanted:
        if not results.spots:
            shown.say(
                f"no configuration is checked: none is within its ranges and fits "
                f"{checks.memory / 1e9:g} GB of a process, which --memory raises"
            )
        return
    shown.stage("Encrypted checks")
    rows = {(row.task, row.knobs): row for row in results.rows if row.seed == 0 and row.share == 1}
    with shown.bar("encrypted checks", len(wanted)) as update:
        for done, point in enumerate(wanted, 1):
            if stop():
                raise Stopped
            row = rows[point.task, point.knobs]
            spot = _checked(study, store, row, checks)
            save(store.spot_path(point.task, point.knobs), spot)
            label = point.knobs.label(study.space.reference)
            shown.say(f"{point.task}, {label}: {_said(spot)}")
            update(done, f"{done} of {len(wanted)}", None)


def chosen_points(
    points: Sequence[Point], checks: SpotChecks, known: Sequence[tuple[str, Knobs]]
) -> list[Point]:
    """Points to check beside those that are known, `checks.count` in all: the next one is always
    the farthest from all others by predicted seconds and noise.
    """
    rows = [
        p
        for p in points
        if p.sound and p.one is not None and p.one.peak_bytes <= checks.memory and p.noise > 0
    ]
    if not rows:
        return []
    places = np.log2([[p.cost("seconds"), p.noise] for p in rows])
    places = (places - places.min(0)) / np.maximum(np.ptp(places, axis=0), 1e-9)
    taken = [k for k, p in enumerate(rows) if (p.task, p.knobs) in set(known)]
    new: list[int] = []
    while len(taken) + len(new) < min(checks.count, len(rows)):
        both = [*taken, *new]
        if both:
            far = np.linalg.norm(places[:, None] - places[both], axis=-1).min(1)
            far[both] = -1.0
        else:
            far = -places[:, 0]  # the fastest one first
        new.append(int(far.argmax()))
    return [rows[k] for k in new]


def rank_correlations(spots: Sequence[Spot]) -> dict[str, float]:
    """Spearman's, of predicted with measured seconds and error; NaN for fewer than three."""
    good = [s for s in spots if not s.reason]
    if len(good) < 3:
        return {"seconds": math.nan, "error": math.nan}
    return {
        "seconds": metrics.spearman([s.predicted_seconds for s in good], [s.seconds for s in good]),
        "error": metrics.spearman([s.predicted_error for s in good], [s.error for s in good]),
    }


def _checked(study: TradeoffStudy, store: Store, row: Row, checks: SpotChecks) -> Spot:
    """One check; where it cannot be run, with the reason."""
    spot = Spot(
        knobs=row.knobs,
        task=row.task,
        seed=row.seed,
        sentences=checks.sentences,
        backend=checks.backend,
        encrypted=find(checks.backend).encrypts,
        predicted_seconds=math.nan,
        seconds=math.nan,
        predicted_error=math.nan,
        error=math.nan,
    )
    trained = store.trained(training_key(Training(study, row.task, row.knobs, row.seed)))
    if trained is None:
        return dataclasses.replace(spot, reason="its fine-tuning is not there any more")
    try:
        return _encrypted(study, spot, trained, checks)
    except Exception as error:  # one check's fault must not end a study
        return dataclasses.replace(spot, reason=first_line(error))


def _encrypted(study: TradeoffStudy, spot: Spot, trained: Trained, checks: SpotChecks) -> Spot:
    knobs = spot.knobs
    subject = subject_of(study, spot.task, knobs, spot.seed, trained)
    circuit = plan_of(subject, knobs, 1)
    rows, masks = subject.first(checks.sentences)
    given = [(subject.params, rows[k : k + 1], masks[k : k + 1]) for k in range(len(rows))]
    foreseen = [
        hesim.certify(circuit, args, keys=_KEYS, profile=study.profile, seed=k).outputs[0]
        for k, args in enumerate(given)
    ]
    squares = [found.std**2 for found in foreseen if found is not None]
    seconds: list[float] = []
    errors: list[np.ndarray] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values outside of domains are what the rows tell of
        with he_backend.session(
            circuit, backend=checks.backend, workers=1, clients=1, outside="warn"
        ) as session:
            for args in given:
                report = session.run(*args)
                seconds.append(report.core_seconds)
                errors.append(np.asarray(report.outputs) - np.asarray(report.exact))
    return dataclasses.replace(
        spot,
        sentences=len(rows),
        predicted_seconds=sum(op.seconds for op in circuit.ledger.operations),
        seconds=float(np.mean(seconds)),
        predicted_error=math.sqrt(float(np.mean(squares))),
        error=math.sqrt(float(np.mean(np.square(errors)))),
    )


def _said(spot: Spot) -> str:
    if spot.reason:
        return spot.reason
    how = "encrypted" if spot.encrypted else "on plain vectors, NOT encrypted"
    return (
        f"{how}: {spot.seconds:.1f} core-seconds, {spot.predicted_seconds:.1f} predicted; error "
        f"{spot.error:.2e}, {spot.predicted_error:.2e} predicted"
    )
