"""`hesim study penalty`: fine-tuning with the range penalty against without, on tasks and paired
seeds.

The polynomials are fitted on what the pre-trained model meets, widened by a margin, before anything
is fine-tuned: that is what a server would hold. Then every parameter is fine-tuned in the clear
with the exact functions, once with the penalty on these domains and once without. Told of both are
the ranges that the exact model meets on the held-out rows, the share of values outside, and the
score through the polynomials under simulated noise.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.errors import ExperimentError
from experiments.studies.blind import claimed
from experiments.studies.tasks import Stopped, check_names, glue_task
from experiments.training.finetune import Start, load_start
from experiments.training.finetune_settings import TaskSettings, read_table
from hesim.files import write_whole
from models.data import metrics
from models.data.batches import Batch
from models.data.buckets import bucket_batches, lengths_of, trim
from models.data.tasks import TaskData
from models.encrypted.settings import EncryptionSettings
from models.encrypted.twin import twin_of
from models.nn.encoder import Model
from models.objectives.losses import share_outside
from models.recipes.finetune import FineTuned, finetune, overlay
from models.sites.sites import FitSettings, Range, Sites
from models.train.evaluate import Evaluated, make_evaluate

__all__ = ["Arm", "PenaltyStudy", "read_arms", "run_penalty", "write_csv"]


@dataclasses.dataclass(frozen=True)
class PenaltyStudy:
    """What is compared. weight: of the penalty, which begins at the share `inner` of a domain's
    half-width. how: ring, degrees, and the margin by which domains exceed the ranges met. length:
    tokens of a row. buckets: what batches are cut to, in place of the table's. table: a row of
    settings a task.
    """

    start: str = "tiny-gaussian"
    data_dir: str = ""
    tasks: tuple[str, ...] = ("SST-2", "STS-B")
    seeds: tuple[int, ...] = (0, 1, 2)
    weight: float = 1.0
    inner: float = 0.9
    length: int = 64
    buckets: tuple[int, ...] = (32, 64)
    how: EncryptionSettings = EncryptionSettings(
        fit=FitSettings(
            degrees=(("exp", 15), ("gelu", 15), ("inv_sqrt", 15), ("relu", 15), ("tanh", 31)),
            margin=0.1,
            ranges=(("tanh", (-5.0, 5.0)),),
        )
    )
    table: Mapping[str, TaskSettings] = dataclasses.field(default_factory=lambda: read_table()[0])

    def __post_init__(self) -> None:
        check_names("task", self.tasks, self.table)
        if not self.weight > 0:
            raise ExperimentError(f"the penalty's weight must be positive, got {self.weight}")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One fine-tuning. penalty: whether it had one. exact, simulated: held-out score in points, by
    `metric`, with the exact functions and through polynomials with noise. domains, ranges, outside:
    by site the polynomial's domain, the canonical range that the exact model met on held-out rows,
    and the share of values outside.
    """

    task: str
    seed: int
    penalty: bool
    metric: str
    exact: float
    simulated: float
    domains: dict[str, Range]
    ranges: dict[str, Range]
    outside: dict[str, float]
    seconds: float


def run_penalty(
    study: PenaltyStudy,
    folder: str | Path,
    *,
    say: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Arm]:
    """Every arm that `folder` does not hold yet; all its arms, in the order of tasks and seeds.

    say: is told about every finished arm. stop: asked before each step. Raises ExperimentError
    where the folder is of another study or another process works in it; CheckpointError, DataError
    and TrainingError as a single fine-tuning; Stopped where `stop` said so before all was finished.
    """
    with claimed(folder, study, "simulated") as folder:
        return _all_arms(study, folder, say, stop)


def _all_arms(
    study: PenaltyStudy, folder: Path, say: Callable[[str], None], stop: Callable[[], bool]
) -> list[Arm]:
    start = load_start(study.start, "gaussian", "", study.length, study.data_dir)
    for task in study.tasks:
        data = glue_task(task, start, study.length, study.data_dir, study.table)
        for seed in study.seeds:
            for penalty in (False, True):
                path = folder / f"{task}-{seed}-{'on' if penalty else 'off'}.json"
                if path.exists():
                    continue
                if stop():
                    raise Stopped
                arm = _run(study, start, data, task, seed, penalty, path.with_suffix(""), stop)
                write_whole(path, json.dumps(dataclasses.asdict(arm), indent=1).encode())
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                say(
                    f"{task}, seed {seed}, penalty {'on' if penalty else 'off'}: {arm.metric} "
                    f"{arm.exact:.1f} exact, {arm.simulated:.1f} simulated; outside at most "
                    f"{max(arm.outside.values()):.3%}, {arm.seconds:.0f} s"
                )
    return read_arms(folder)


def read_arms(folder: str | Path) -> list[Arm]:
    """All arms that a folder holds, by task, seed and penalty (off first)."""
    found = []
    for path in sorted(Path(folder).glob("*-o*.json")):
        try:
            row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            for name in ("domains", "ranges"):
                row[name] = {site: tuple(pair) for site, pair in row[name].items()}
            found.append(Arm(**row))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ExperimentError(f"{path} is no run of this study: {error}") from error
    return sorted(found, key=lambda arm: (arm.task, arm.seed, arm.penalty))


def write_csv(arms: Sequence[Arm], path: str | Path) -> None:
    """A line a site of an arm: domain, range met, share outside, and the arm's two scores."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    edges = ("domain_low", "domain_high", "met_low", "met_high")
    writer.writerow(
        ["task", "seed", "penalty", "metric", "exact", "simulated", "site", *edges, "outside"]
    )
    for arm in arms:
        for site, domain in arm.domains.items():
            first = (arm.task, arm.seed, int(arm.penalty), arm.metric, arm.exact, arm.simulated)
            writer.writerow([*first, site, *domain, *arm.ranges[site], arm.outside[site]])
    write_whole(Path(path), out.getvalue().encode())


def _run(
    study: PenaltyStudy,
    start: Start,
    data: TaskData,
    task: str,
    seed: int,
    penalty: bool,
    checkpoints: Path,
    stop: Callable[[], bool],
) -> Arm:
    began = time.monotonic()
    pairs = study.table[task].pairs
    fresh = Model(start.config.replace(classes=data.classes, lora_rank=0, pairs=pairs))
    params = overlay(fresh.init(jax.random.key(seed)), start.params)
    sites = twin_of(fresh, params, data.train, study.buckets, study.how).sites
    settings = study.table[task].fine_tune(
        "full",
        buckets=study.buckets,
        seed=seed,
        penalty=study.weight if penalty else 0.0,
        ranges=tuple(sites.ranges().items()) if penalty else (),
        inner=study.inner,
    )
    done = finetune(start.config, start.params, data, settings, stop=stop, checkpoints=checkpoints)
    if not done.finished:
        raise Stopped
    exact = make_evaluate(done.model, buckets=study.buckets)(done.params, data.test)
    twin = done.model.with_sites(sites)
    noisy = make_evaluate(twin, buckets=study.buckets, how=study.how)(done.params, data.test)
    return Arm(
        task=task,
        seed=seed,
        penalty=penalty,
        metric=data.metrics[0],
        exact=_score(exact, data),
        simulated=_score(noisy, data),
        domains=sites.ranges(),
        ranges=exact.ranges,
        outside=_outside(done, sites, data.test, study.buckets),
        seconds=time.monotonic() - began,
    )


def _score(found: Evaluated, data: TaskData) -> float:
    """In points; rows that ran away to no number count as answered with 0."""
    return 100 * metrics.score(found.answers, data.test.targets)[data.metrics[0]]


def _outside(
    done: FineTuned, sites: Sites, rows: Batch, buckets: tuple[int, ...], size: int = 128
) -> dict[str, float]:
    """Per site the share of the exact model's values that lie outside the polynomial's domain."""
    model, unit, domains = done.model, done.model.units(), sites.ranges()

    @jax.jit
    def run(params: Any, batch: Batch) -> dict[str, jax.Array]:
        x = model.embed(params, batch.tokens, batch.types)
        _, values = model.forward_with_values(params, x, batch.mask)
        return share_outside(values, unit, domains)

    total = dict.fromkeys(domains, 0.0)
    for plan in bucket_batches(lengths_of(rows), size, buckets):
        batch = trim(rows, plan)
        found = run(done.params, batch)
        for name, share in found.items():
            total[name] += float(share) * plan.count / len(rows.tokens)
    return total
