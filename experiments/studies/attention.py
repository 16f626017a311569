"""The study of attention: what each score function learns, and what it costs under encryption.

A pre-trained encoder is fine-tuned in full with softmax, with the Gaussian kernel, with that kernel
normalised, and with the power-softmax, on paired seeds. Those that encryption can evaluate get
polynomials over the ranges that the trained model meets, and are held against the exact model and
answered under simulated noise. The Gaussian kernel gets two such twins: its exponential by one
minimax polynomial, and by repeated squaring. What a twin spends is counted on a small model with
its polynomials, compiled for the same ring.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import hesim
from experiments.errors import ExperimentError
from experiments.studies.blind import claimed
from experiments.studies.tasks import Stopped, check_names
from experiments.training.finetune import Start, load_start
from experiments.xla_cache import keep_compiled
from hesim.files import write_whole
from models.config import EncoderConfig
from models.data import metrics
from models.data.batches import select_rows
from models.data.datasets import sample
from models.data.tasks import TaskData, baseline, prepare_task
from models.encrypted.settings import EncryptionSettings
from models.nn.encoder import Model
from models.recipes.finetune import FineTuned, finetune
from models.recipes.finetune_settings import FineTune
from models.sites.sites import FitSettings, Range, fit_ranges, function_of, site_names
from models.train.evaluate import make_evaluate

__all__ = [
    "STARTS",
    "WAYS",
    "AttentionStudy",
    "Cost",
    "Run",
    "Twin",
    "Way",
    "read_runs",
    "reciprocal_steps",
    "run_attention",
    "write_csv",
]


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to compute attention's scores. squaring: the exponential by repeated squaring."""

    label: str
    attention: str
    squaring: bool = False


WAYS: Mapping[str, Way] = {
    "softmax": Way("softmax, exact only", "softmax"),
    "gaussian-minimax": Way("Gaussian, minimax", "gaussian"),
    "gaussian-squaring": Way("Gaussian, squaring", "gaussian", True),
    "gaussian-normalised": Way("Gaussian, normalised", "gaussian_normalised"),
    "power-softmax": Way("power-softmax", "power_softmax"),
}

STARTS: Mapping[str, str] = {
    "softmax": "softmax",
    "gaussian": "gaussian",
    "gaussian_normalised": "gaussian",
    "power_softmax": "softmax",
}
"""Which pre-trained model each attention starts from: the one with the nearer scores."""


@dataclasses.dataclass(frozen=True)
class AttentionStudy:
    """What is compared. starts: from "gaussian" and "softmax" to a pre-trained model's name or
    folder. length: tokens of a row.

    how: ring, degrees, and the margin by which domains exceed the ranges met on `range_rows`
    training rows. squarings: k of the exponential (1 + x / 2^k)^(2^k). Reciprocals are a seed of
    degree `seed_degree` and as many of Goldschmidt's steps as bring the relative error below
    `relative` on their domain.

    small: the model on which operations are counted, `sentences` at a time: fields of the
    configuration in place of the trained model's.
    """

    starts: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {name: f"tiny-{name}" for name in ("gaussian", "softmax")}
    )
    tasks: tuple[str, ...] = ("reviews",)
    data_dir: str = ""
    attentions: tuple[str, ...] = tuple(STARTS)
    seeds: tuple[int, ...] = (0, 1, 2)
    length: int = 32
    training: FineTune = FineTune(method="full", epochs=3, learning_rate=3e-4, buckets=(16, 32))
    squarings: int = 8
    seed_degree: int = 15
    relative: float = 0.01
    how: EncryptionSettings = EncryptionSettings(
        fit=FitSettings(
            degrees=(
                ("exp", 31),
                ("gelu", 31),
                ("gelu_tanh", 31),
                ("inv_sqrt", 31),
                ("relu", 31),
                ("silu", 31),
                ("tanh", 63),
            ),
            margin=0.25,
        )
    )
    small: tuple[tuple[str, Any], ...] = (
        ("layers", 1),
        ("hidden", 16),
        ("heads", 2),
        ("ffn", 32),
        ("sequence", 8),
        ("vocabulary", 64),
        ("pooler", (16,)),
    )
    sentences: int = 64

    def fit(self, way: Way, config: EncoderConfig, met: Mapping[str, Range]) -> FitSettings:
        """The polynomials of a twin, for the ranges that its model met."""
        base = self.how.fit
        composites = list(base.composites)
        if way.squaring:
            composites.append(("exp", (("squarings", self.squarings),)))
        for name in site_names(config):
            if function_of(name) == "inv":
                steps = reciprocal_steps(base.domain(name, met[name]), self.seed_degree, self)
                composites.append((name, (("degree", self.seed_degree), ("steps", steps))))
        return dataclasses.replace(base, composites=tuple(composites))


def reciprocal_steps(domain: Range, degree: int, study: AttentionStudy) -> int:
    """Goldschmidt's steps that a reciprocal on `domain` needs.

    The best seed y of degree n leaves |1 - x y| = 1 / T_{n + 1}((b + a) / (b - a)) on [a, b], T the
    Chebyshev polynomial, and each step squares that.
    """
    low, high = domain
    error = 1 / math.cosh((degree + 1) * math.acosh((high + low) / (high - low)))
    return max(1, math.ceil(math.log2(math.log(study.relative) / math.log(error))))


@dataclasses.dataclass(frozen=True)
class Cost:
    """What the small model spends on `AttentionStudy.sentences` sentences: levels of the whole
    program, products of two ciphertexts, refreshed ciphertexts, rotations, and predicted seconds of
    one core.
    """

    depth: int
    products: int
    refreshes: int
    rotations: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Twin:
    """One twin of a trained model on the held-out rows. polynomial, simulated: scores in points.
    approximation: root mean square of the polynomial logits less the exact ones; noise: of the
    simulated less the polynomial ones, over rows that did not run away; lost: how many did.
    outside: largest share of values out of a domain, at any site.
    """

    polynomial: float
    simulated: float
    approximation: float
    noise: float
    lost: int
    outside: float
    cost: Cost


@dataclasses.dataclass(frozen=True)
class Run:
    """One fine-tuning. exact: held-out score in points by `metric`; majority: of the most frequent
    label. spread: standard deviation of the exact logits. twins: by the name of their way.
    """

    task: str
    attention: str
    seed: int
    metric: str
    exact: float
    majority: float
    spread: float
    rows: int
    twins: dict[str, Twin]
    seconds: float


def run_attention(
    study: AttentionStudy,
    folder: str | Path,
    *,
    say: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Run]:
    """Every run that `folder` does not hold yet; all its runs, those of other seeds too.

    say: is told about every finished run. stop: asked before each step. Raises ExperimentError
    for an unknown attention, where the folder is of another study or another process works in it;
    CheckpointError, DataError and TrainingError as a single fine-tuning; Stopped where `stop` said
    so before all was finished.
    """
    check_names("attention", study.attentions, STARTS)
    if not study.tasks:
        raise ExperimentError("name at least one task")
    whole = dataclasses.replace(study, tasks=(), attentions=(), seeds=(), data_dir="")
    with claimed(folder, whole, "simulated", Run) as folder, keep_compiled(folder / "compiled"):
        plan = [(t, s, a) for t in study.tasks for s in study.seeds for a in study.attentions]
        starts = {
            name: load_start(study.starts[STARTS[name]], name, "", study.length, study.data_dir)
            for name in study.attentions
        }
        prepared: dict[tuple[str, str], TaskData] = {}
        for done, (task, seed, attention) in enumerate(plan, 1):
            path = folder / f"{task.replace('/', '-')}-{attention}-{seed}.run.json"
            if path.exists():
                continue
            if stop():
                raise Stopped
            form = (task, STARTS[attention])
            if form not in prepared:
                prepared[form] = prepare_task(
                    task,
                    starts[attention].tokenizer,
                    study.length,
                    data_dir=study.data_dir or None,
                    token_types=starts[attention].config.token_types,
                )
            place = path.with_suffix("")
            run = _run(study, task, seed, attention, starts[attention], prepared[form], place, stop)
            write_whole(path, json.dumps(dataclasses.asdict(run), indent=1).encode())
            shutil.rmtree(place, ignore_errors=True)
            say(f"{done}/{len(plan)}  {_said(run)}")
        return read_runs(folder)


def read_runs(folder: str | Path) -> list[Run]:
    """All runs that a folder holds, by task, seed and attention."""
    runs = []
    for path in Path(folder).glob("*.run.json"):
        try:
            row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            twins = row.pop("twins")
            for name, twin in twins.items():
                twins[name] = Twin(**twin | {"cost": Cost(**twin["cost"])})
            runs.append(Run(**row, twins=twins))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ExperimentError(f"{path} is no run of this study: {error}") from error
    return sorted(runs, key=lambda run: (run.task, run.seed, list(STARTS).index(run.attention)))


def write_csv(runs: Sequence[Run], path: str | Path) -> None:
    """A line a way of a run, softmax with its exact score alone."""
    out = io.StringIO()
    own = [field.name for field in dataclasses.fields(Twin) if field.name != "cost"]
    costs = [field.name for field in dataclasses.fields(Cost)]
    head = ("task", "seed", "metric", "exact", "majority", "spread")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["way", *head, *own, *costs])
    for run in runs:
        first = [getattr(run, name) for name in head]
        if not run.twins:
            writer.writerow([run.attention, *first, *[""] * len(own + costs)])
        for name, twin in run.twins.items():
            figures = [*(getattr(twin, n) for n in own), *(getattr(twin.cost, n) for n in costs)]
            writer.writerow([name, *first, *figures])
    write_whole(Path(path), out.getvalue().encode())


def _run(
    study: AttentionStudy,
    task: str,
    seed: int,
    attention: str,
    start: Start,
    data: TaskData,
    checkpoints: Path,
    stop: Callable[[], bool],
) -> Run:
    began = time.monotonic()
    settings = dataclasses.replace(study.training, seed=seed)
    done = finetune(start.config, start.params, data, settings, stop=stop, checkpoints=checkpoints)
    if not done.finished:
        raise Stopped
    evaluate = make_evaluate(done.model, buckets=settings.buckets)
    exact = evaluate(done.params, data.test)
    ways = {n: w for n, w in WAYS.items() if w.attention == attention and attention != "softmax"}
    met: dict[str, Range] = {}
    if ways:
        rows = sample(len(data.train.tokens), study.how.range_rows)
        met = evaluate(done.params, select_rows(data.train, rows)).ranges
    return Run(
        task=task,
        attention=attention,
        seed=seed,
        metric=data.metrics[0],
        exact=_points(exact.answers, data),
        majority=100 * baseline(data)[data.metrics[0]],
        spread=float(exact.logits.std()),
        rows=len(data.train.tokens),
        twins={
            name: _twin(study, way, done, data, exact.logits, met) for name, way in ways.items()
        },
        seconds=time.monotonic() - began,
    )


def _twin(
    study: AttentionStudy,
    way: Way,
    done: FineTuned,
    data: TaskData,
    exact: np.ndarray,
    met: Mapping[str, Range],
) -> Twin:
    fit = study.fit(way, done.model.config, met)
    twin = done.model.with_sites(fit_ranges(done.model.config, met, fit))
    buckets = study.training.buckets
    polynomial = make_evaluate(twin, buckets=buckets)(done.params, data.test)
    noisy = make_evaluate(twin, buckets=buckets, how=study.how)(done.params, data.test)
    return Twin(
        polynomial=_points(polynomial.answers, data),
        simulated=_points(noisy.answers, data),
        approximation=_rms(polynomial.logits - exact),
        noise=_rms(noisy.logits - polynomial.logits),
        lost=len(noisy.lost),
        outside=max(noisy.outside.values()),
        cost=_cost(study, done.model.config, fit, met),
    )


def _cost(
    study: AttentionStudy, config: EncoderConfig, fit: FitSettings, met: Mapping[str, Range]
) -> Cost:
    """Of the small model, whose sites have the domains of the same sites of the trained one."""
    small = config.replace(**dict(study.small))
    model = Model(small, fit_ranges(small, met, _of_sites(fit, small)))
    params = jax.eval_shape(model.init, jax.random.key(0))
    mask = jax.ShapeDtypeStruct((study.sentences, small.sequence), np.float32)
    rows = jax.ShapeDtypeStruct((*mask.shape, small.hidden), np.float32)
    program = hesim.trace(model.encrypted_forward, params, rows, mask, encrypted=(1,))
    found = hesim.compile(program, study.how.ckks).ledger
    return Cost(program.depth, found.products, found.refreshes, found.rotations, found.seconds)


def _of_sites(fit: FitSettings, config: EncoderConfig) -> FitSettings:
    """The settings without entries of sites that a smaller model has not."""
    known = site_names(config)
    kept = tuple(entry for entry in fit.composites if "." not in entry[0] or entry[0] in known)
    return dataclasses.replace(fit, composites=kept)


def _points(answers: np.ndarray, data: TaskData) -> float:
    return 100 * metrics.score(answers, data.test.targets)[data.metrics[0]]


def _rms(errors: np.ndarray) -> float:
    """Over the rows that are finite; NaN if none is."""
    finite = errors[np.isfinite(errors).all(-1)]
    return float(np.sqrt(np.mean(np.square(finite, dtype=np.float64)))) if len(finite) else math.nan


def _said(run: Run) -> str:
    twins = "".join(
        f"; {WAYS[name].label}: {twin.polynomial:.1f} by polynomials, {twin.simulated:.1f} "
        f"simulated, {twin.cost.depth} levels"
        for name, twin in run.twins.items()
    )
    return (
        f"{run.task}, {run.attention}, seed {run.seed}: {run.metric} {run.exact:.1f} exact{twins}, "
        f"{run.seconds:.0f} s"
    )
