"""The work of a trade-off study, in jobs that any process can do: fine-tune, or score.

A job is data and its function depends on nothing else, so that it may run in this process, in
another one or on another host; what it returns is small.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import textwrap
import time
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import hesim
from experiments.errors import ExperimentError
from experiments.studies.tradeoff.knobs import Knobs
from experiments.studies.tradeoff.rows import OUTSIDE, Cost, Row, Task
from experiments.studies.tradeoff.settings import TradeoffStudy
from experiments.training.finetune import Start, load_rows, load_start
from hesim.circuit.circuit import Circuit
from hesim.errors import EmptySlotsWarning, HesimError
from models.config import Pairs
from models.data.batches import Batch, select_rows
from models.data.datasets import sample
from models.data.tasks import TaskData, baseline
from models.encrypted.forward import forward_program
from models.encrypted.settings import EncryptionSettings
from models.encrypted.twin import encryptable, merged
from models.nn.encoder import Model
from models.nn.lora import Params, combine, is_adapter_or_head, partition
from models.recipes.finetune import finetune, overlay
from models.recipes.finetune_step import compiled_step
from models.sites.sites import Range, fit_ranges
from models.train.evaluate import Evaluated, make_evaluate
from models.train.fingerprint import described
from models.weights.folder import flatten, unflatten

__all__ = [
    "Scored",
    "Scoring",
    "Subject",
    "Trained",
    "Training",
    "cost_key",
    "plan_of",
    "score",
    "subject_of",
    "train",
    "training_key",
]

_KEYS = 4
"""Secret keys of a certificate."""

_RANGE_ROWS = 512

_REASON = 240
"""Letters of a reason, at most."""

_OFF_BITS = 1.5
"""Bits between the simulated and the certified noise beyond which a row says so."""


@dataclasses.dataclass(frozen=True)
class Training:
    """Fine-tune one model: a configuration's adapters and penalty, a task, a seed, and the share of
    the training rows.
    """

    study: TradeoffStudy
    task: str
    knobs: Knobs
    seed: int
    share: float = 1.0

    @property
    def rows(self) -> int:
        """Training rows, at most; 0 for all."""
        if self.share == 1.0:
            return self.study.train_rows
        whole = _data(self.study, self.task, self.knobs)
        rows = self.study.train_rows or len(whole.train.tokens)
        return max(1, round(rows * self.share))


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """What a fine-tuning changed, by dotted names, and its CPU seconds."""

    weights: Mapping[str, np.ndarray]
    seconds: float


@dataclasses.dataclass(frozen=True, eq=False)
class Scoring:
    """Score one configuration on a task, for some seeds. trained: by seed. costs: known ones, by
    layout, "one" or "many".
    """

    study: TradeoffStudy
    task: str
    knobs: Knobs
    share: float
    trained: Mapping[int, Trained]
    costs: Mapping[str, Cost]


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """A row a seed, costs by layout, and what the rows were scored on."""

    rows: tuple[Row, ...]
    costs: Mapping[str, Cost]
    task: Task


def training_key(job: Training) -> str:
    """Names the fine-tuning: configurations that share it have the same."""
    settings = job.study.fine_tune(job.task, job.knobs, job.seed)
    return _digest(job.task, settings, job.share, job.knobs.attention)


def cost_key(study: TradeoffStudy, task: str, knobs: Knobs, layout: str) -> str:
    """Names a plan: what is compiled depends on nothing else."""
    row = study.row(task)
    alike = dataclasses.replace(knobs, penalty=0.0)
    return _digest(alike, layout, task, row.pairs, row.pooling)


def train(job: Training) -> Trained:
    """Raises as a fine-tuning does."""
    began = time.process_time()
    start = _start(job.study, job.knobs)
    settings = job.study.fine_tune(job.task, job.knobs, job.seed)
    data = _data(job.study, job.task, job.knobs, job.rows)
    done = finetune(start.config, start.params, data, settings)
    changed, _ = partition(done.params, is_adapter_or_head)
    weights = {name: np.asarray(leaf) for name, leaf in flatten(changed).items()}
    compiled_step.cache_clear()
    _forget()
    return Trained(weights, time.process_time() - began)


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A fine-tuned configuration: exact model, twin, parameters, and the rows it is scored on.
    how: its encryption; None for the exact kernel, which has none.
    """

    exact: Model
    twin: Model
    params: Params
    rows: Batch
    data: TaskData
    how: EncryptionSettings | None

    def first(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Embedded rows (count, tokens, features) and masks (count, tokens) of the first held-out
        rows, or of all where there are fewer.
        """
        part = select_rows(self.rows, np.arange(min(count, len(self.rows.tokens))))
        x = self.twin.embed(self.params, part.tokens, part.types)
        return np.asarray(x), np.asarray(part.mask, np.float32)


def subject_of(
    study: TradeoffStudy, task: str, knobs: Knobs, seed: int, trained: Trained
) -> Subject:
    """Raises HesimError where there are no such polynomials, or no such ring."""
    start, data = _start(study, knobs), _data(study, task, knobs)
    settings = study.fine_tune(task, knobs, seed)
    adapted = settings.adapt(start.config).replace(classes=data.classes, sequence=study.length)
    exact = Model(adapted)
    fresh = overlay(exact.init(jax.random.key(settings.seed)), start.params)
    _, frozen = partition(fresh, is_adapter_or_head)
    params = combine(unflatten(dict(trained.weights)), frozen)
    config = encryptable(adapted, knobs.steps)
    names = knobs.approximated(config)
    fit, met = knobs.fit(study.ranges, study.margin), {}
    if knobs.kind == "softmax":
        met = _met(study, task, knobs.steps)
    twin = Model(config, fit_ranges(config, met, fit, names), low_rank=True)
    how = None if knobs.kind == "exact" else knobs.encryption(study.ranges, study.profile)
    return Subject(exact, twin, params, _held_out(study, data), data, how)


def plan_of(subject: Subject, knobs: Knobs, sentences: int) -> Circuit:
    """The Circuit of so many sentences side by side, adapters encrypted, for whom the knobs let
    refresh. ExperimentError for the exact kernel, else as `hesim.compile` raises.
    """
    if subject.how is None:
        raise ExperimentError(
            f"no encryption evaluates the kernel {knobs.kernel!r}: choose squarings, minimax or "
            "softmax"
        )
    program = forward_program(subject.twin, sentences, trained=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptySlotsWarning)  # of one sentence by intention
        return hesim.compile(program, subject.how.ckks, refresh_price=knobs.price)


def score(job: Scoring) -> Scored:
    """Rows of all seeds of the job; what cannot be built or planned is a row with its reason."""
    began = time.process_time()
    study, task, knobs = job.study, job.task, job.knobs
    first = next(iter(job.trained))
    data = _data(study, task, knobs)
    found = _task(task, data, _held_out(study, data))
    costs, circuit, reason = dict(job.costs), None, ""
    try:
        subject = subject_of(study, task, knobs, first, job.trained[first])
    except HesimError as error:
        refused = tuple(
            Row(knobs, task, seed, job.share, math.nan, reason=_said(error)) for seed in job.trained
        )
        return Scored(refused, costs, found)
    if subject.how is None:
        reason = "no encryption evaluates exp itself: scored without noise"
    else:
        circuit, costs, reason = _planned(study, subject, knobs, costs)
    rows: list[Row] = []
    for seed, trained in job.trained.items():
        own = subject if seed == first else subject_of(study, task, knobs, seed, trained)
        row = _scored(job, seed, own, circuit, found, costs, seed == first)
        spent = time.process_time() - began
        began += spent
        said = "; ".join(part for part in (reason, row.reason) if part)
        rows.append(dataclasses.replace(row, reason=said, seconds=spent))
    _forget()
    return Scored(tuple(rows), costs, found)


def _planned(
    study: TradeoffStudy, subject: Subject, knobs: Knobs, known: Mapping[str, Cost]
) -> tuple[Circuit | None, dict[str, Cost], str]:
    """The Circuit of one sentence, if there is one, the costs of both layouts, and why one of them
    is missing.
    """
    try:
        circuit = plan_of(subject, knobs, 1)
    except (HesimError, MemoryError) as error:
        return None, dict(known), f"cannot be planned: {_said(error)}"
    costs = {**known, "one": Cost.of(circuit.ledger, 1, knobs)}
    if study.many == 1:
        return circuit, costs | {"many": costs["one"]}, ""
    if "many" not in costs:
        try:
            ledger = plan_of(subject, knobs, study.many).ledger
        except (HesimError, MemoryError) as error:
            return circuit, costs, f"no plan of {study.many} sentences side by side: {_said(error)}"
        costs["many"] = Cost.of(ledger, study.many, knobs)
    return circuit, costs, ""


def _scored(
    job: Scoring,
    seed: int,
    subject: Subject,
    circuit: Circuit | None,
    task: Task,
    costs: Mapping[str, Cost],
    certified: bool,
) -> Row:
    params, rows, buckets = subject.params, subject.rows, (job.study.length,)
    plain, weights = merged(subject.exact, params)
    exact = make_evaluate(plain, buckets=buckets)(weights, rows)
    polynomial = make_evaluate(subject.twin, buckets=buckets)(params, rows)
    noisy, certificate, notes = polynomial, math.nan, []
    if circuit is not None and subject.how is not None:
        evaluate = make_evaluate(subject.twin, buckets=buckets, how=subject.how, circuit=circuit)
        noisy = evaluate(params, rows)
        if certified:
            certificate, note = _certified(subject, circuit, job.study.profile)
            notes += [note] if note else []
    outside = max(noisy.outside.items(), key=lambda pair: pair[1], default=("", 0.0))
    if outside[1] > OUTSIDE:
        notes.append(f"{outside[1]:.2%} of the values at {outside[0]} leave the domain")
    if len(noisy.lost):
        notes.append(f"{len(noisy.lost)} rows run away")
    noise = _rms(noisy.logits - polynomial.logits)
    planned = {k: cost_key(job.study, job.task, job.knobs, k) for k in costs if circuit is not None}
    if certificate > 0 and noise > 0 and abs(math.log2(noise / certificate)) > _OFF_BITS:
        notes.append(f"noise {noise:.1e} simulated, {certificate:.1e} certified")
    return Row(
        knobs=job.knobs,
        task=job.task,
        seed=seed,
        share=job.share,
        one=planned.get("one", ""),
        many=planned.get("many", ""),
        exact=task.points(_answers(exact)),
        polynomial=task.points(_answers(polynomial)),
        simulated=math.nan if circuit is None else task.points(_answers(noisy)),
        answers=tuple(_answers(noisy).tolist()),
        spread=float(exact.logits.std()),
        approximation=_rms(polynomial.logits - exact.logits),
        noise=math.nan if circuit is None else noise,
        certified=certificate,
        outside=outside[1],
        site=outside[0] if outside[1] else "",
        lost=len(noisy.lost),
        reason="; ".join(notes),
    )


def _certified(subject: Subject, circuit: Circuit, profile: str) -> tuple[float, str]:
    """Standard deviation of a logit's error for one sentence; NaN with the reason where a message
    overflows.
    """
    try:
        found = hesim.certify(
            circuit, (subject.params, *subject.first(1)), keys=_KEYS, profile=profile
        )
    except HesimError as error:
        return math.nan, f"not certified: {_said(error)}"
    output = found.outputs[0]
    return (math.nan if output is None else output.std), ""


def _task(name: str, data: TaskData, rows: Batch) -> Task:
    metric = data.metrics[0]
    targets = tuple(np.asarray(rows.targets).tolist())
    return Task(name, metric, data.classes, targets, 100 * baseline(data)[metric])


def _answers(found: Evaluated) -> np.ndarray:
    """Class numbers, or ratings to six digits."""
    answers = found.answers
    return np.round(answers[:, 0], 6) if answers.shape[-1] == 1 else answers.argmax(-1)


def _rms(errors: np.ndarray) -> float:
    """Over the rows that are finite; NaN if none is."""
    finite = errors[np.isfinite(errors).all(-1)]
    return float(np.sqrt(np.mean(np.square(finite, dtype=np.float64)))) if len(finite) else math.nan


@functools.lru_cache(maxsize=4)
def _met(study: TradeoffStudy, task: str, squarings: int) -> dict[str, Range]:
    """What softmax by squarings meets on training rows before any fine-tuning, for all seeds."""
    knobs = Knobs(kernel=f"softmax-{squarings}")
    start, data = _start(study, knobs), _data(study, task, knobs)
    settings = study.fine_tune(task, knobs, 0)
    adapted = settings.adapt(start.config).replace(classes=data.classes, lora_rank=0)
    model = Model(encryptable(adapted, squarings))
    params = overlay(model.init(jax.random.key(0)), start.params)
    rows = select_rows(data.train, sample(len(data.train.tokens), _RANGE_ROWS))
    return make_evaluate(model, buckets=(study.length,))(params, rows).ranges


def _start(study: TradeoffStudy, knobs: Knobs) -> Start:
    return _loaded(study.start(knobs), knobs.attention, study.length, study.data_dir)


@functools.lru_cache(maxsize=2)
def _loaded(name: str, attention: str, length: int, data_dir: str) -> Start:
    return load_start(name, attention, "", length, data_dir)


def _data(study: TradeoffStudy, task: str, knobs: Knobs, train_rows: int | None = None) -> TaskData:
    """train_rows: at most; None for as many as the study has."""
    where = (study.start(knobs), knobs.attention, study.length, study.data_dir)
    rows = study.train_rows if train_rows is None else train_rows
    return _prepared(task, where, rows, study.row(task).pairs)


@functools.lru_cache(maxsize=4)
def _prepared(task: str, where: tuple[str, str, int, str], rows: int, pairs: Pairs) -> TaskData:
    _, _, length, data_dir = where
    return load_rows(_loaded(*where), task, length, rows, pairs, data_dir or None)


def _held_out(study: TradeoffStudy, data: TaskData) -> Batch:
    """The rows that are scored."""
    rows = len(data.test.tokens)
    return select_rows(data.test, sample(rows, study.held_out or rows))


def _forget() -> None:
    """Frees what was compiled for the job: the next one has other shapes."""
    make_evaluate.cache_clear()
    jax.clear_caches()


def _said(error: BaseException) -> str:
    """The beginning of an error, its type first."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", _REASON, placeholder=" ...")


def _digest(*parts: Any) -> str:
    text = json.dumps([described(part) for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
