"""The study of GLUE: five ways of fine-tuning a pre-trained encoder, six tasks, paired seeds.

Each run is one small file in the folder of the study, so a study that was stopped goes on, and a
part of it (`tasks`, `columns`, `seeds`) may be run before the rest. Runs of one seed share the
order of the rows and, where their shapes agree, the fresh weights.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.errors import ExperimentError
from experiments.lock import alone_in
from experiments.studies.tasks import Stopped, check_names, glue_task
from experiments.training.finetune import Start, load_start
from experiments.training.finetune_settings import TaskSettings, check_length, read_table
from experiments.xla_cache import keep_compiled
from hesim.files import write_whole
from models.data import metrics
from models.data.datasets import GLUE
from models.data.tasks import TaskData, baseline
from models.encrypted.settings import EncryptionSettings
from models.encrypted.twin import merged
from models.recipes.finetune import FineTuned, finetune
from models.recipes.finetune_settings import FineTune
from models.train.checkpoint import digest_of
from models.train.evaluate import make_evaluate
from models.train.fingerprint import described, differing

__all__ = ["COLUMNS", "TASKS", "Column", "GlueStudy", "Run", "read_runs", "run_glue", "write_csv"]

TASKS = ("STS-B", "SST-2", "MRPC", "RTE", "CoLA", "QNLI")
"""In the order of the study: all seeds of a task, and all columns of a seed, before the next."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One way of fine-tuning. simulated: as encryption does it, with polynomials and noise."""

    label: str
    method: str
    attention: str
    simulated: bool = False


COLUMNS: Mapping[str, Column] = {
    "full-softmax": Column("Full, softmax", "full", "softmax"),
    "full-gaussian": Column("Full, Gaussian", "full", "gaussian"),
    "lora-softmax": Column("LoRA, softmax", "lora", "softmax"),
    "lora-gaussian": Column("LoRA, Gaussian", "lora", "gaussian"),
    "lora-simulated": Column("LoRA, Gaussian, simulated", "lora", "gaussian", True),
}


@dataclasses.dataclass(frozen=True)
class GlueStudy:
    """What is compared. starts: from attention to the pre-trained model's name or folder. table: a
    row of settings a task, of `read_table`. length: tokens of a row, of a sentence where
    pairs are read apart; the longest bucket at most.
    encrypted: ring and polynomials of the simulated column.
    """

    starts: Mapping[str, str]
    data_dir: str
    tasks: tuple[str, ...] = TASKS
    columns: tuple[str, ...] = tuple(COLUMNS)
    seeds: tuple[int, ...] = (0, 1, 2)
    table: Mapping[str, TaskSettings] = dataclasses.field(default_factory=lambda: read_table()[0])
    length: int = 128
    encrypted: EncryptionSettings = EncryptionSettings()

    def __post_init__(self) -> None:
        check_names("task", self.tasks, self.table)
        check_names("column", self.columns, COLUMNS)
        missing = {COLUMNS[name].attention for name in self.columns} - set(self.starts)
        if missing:
            raise ExperimentError(f"no model to start from with {', '.join(sorted(missing))}")
        if "scratch" in self.starts.values():
            raise ExperimentError("the study starts from pre-trained models: name one, or a folder")
        for task in self.tasks:
            row = self.table[task]
            check_length(self.length, row.buckets, f"{task}: ")
            if row.pairs == "bi-encoder" and GLUE[task].pair is None:
                raise ExperimentError(
                    f"{task} has single sentences: set pairs to joint in its row of the settings, "
                    "or leave it out of the tasks"
                )

    def settings(self, task: str, column: str, seed: int) -> FineTune:
        """Of one run."""
        how = COLUMNS[column]
        return self.table[task].fine_tune(
            how.method,
            seed=seed,
            encrypted=self.encrypted if how.simulated else None,
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run. scores: held-out, by measure, the leading one named `metric`; baseline: of
    the most frequent label, by the same. outside: sites out of range with their share of values
    (simulated only). identity: settings, start and length as JSON, by which a file is recognised.
    """

    task: str
    column: str
    seed: int
    metric: str
    scores: dict[str, float]
    baseline: dict[str, float]
    outside: dict[str, float]
    validation: dict[str, float]
    trainable: int
    rows: int
    notes: list[str]
    seconds: float
    identity: str

    @property
    def score(self) -> float:
        """By the leading measure, in points (times 100)."""
        return 100 * self.scores[self.metric]

    @property
    def majority(self) -> float:
        """The baseline's, in points."""
        return 100 * self.baseline[self.metric]


def run_glue(
    study: GlueStudy,
    folder: str | Path,
    *,
    say: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Run]:
    """Every run of the study that `folder` does not hold yet; all its runs, also earlier ones.

    say: is told about every finished run. stop: asked before each step. Raises ExperimentError
    where a file of the folder is of a run with other settings or another process works in it;
    CheckpointError, DataError and TrainingError as a single fine-tuning; Stopped where `stop` said
    so before all was finished.
    """
    folder = Path(folder)
    with alone_in(folder):
        return _all_runs(study, folder, say, stop)


def _all_runs(
    study: GlueStudy, folder: Path, say: Callable[[str], None], stop: Callable[[], bool]
) -> list[Run]:
    (folder / "runs").mkdir(exist_ok=True)
    needed = {COLUMNS[name].attention for name in study.columns}
    starts = {
        name: load_start(study.starts[name], name, "", study.length, study.data_dir)
        for name in sorted(needed)
    }
    weights = {name: digest_of(start.params) for name, start in starts.items()}
    plan = [(t, c, s) for t in study.tasks for s in study.seeds for c in study.columns]
    prepared: dict[tuple[str, str, int], TaskData] = {}
    with keep_compiled(folder / "compiled"):
        for done, (task, column, seed) in enumerate(plan, 1):
            attention = COLUMNS[column].attention
            start = starts[attention]
            identity = {
                "settings": study.settings(task, column, seed),
                "train_rows": study.table[task].train_rows,
                "length": study.length,
                "start": start.config,
                "weights": weights[attention],
            }
            path = _path(folder, task, column, seed)
            if path.exists():
                _check_identity(path, identity)
                continue
            if stop():
                raise Stopped
            form = (task, _vocabulary(start), start.config.token_types)
            if form not in prepared:
                prepared[form] = glue_task(task, start, study.length, study.data_dir, study.table)
            run = _run(study, task, column, seed, start, prepared[form], folder, stop)
            run = dataclasses.replace(run, identity=json.dumps(described(identity)))
            write_whole(path, json.dumps(dataclasses.asdict(run), indent=1).encode())
            shutil.rmtree(_checkpoints(folder, task, column, seed), ignore_errors=True)
            say(
                f"{done}/{len(plan)}  {task}, {COLUMNS[column].label}, seed {seed}: "
                f"{run.metric} {run.score:.2f} (majority {run.majority:.2f}), {run.seconds:.0f} s"
            )
    return read_runs(folder)


def read_runs(folder: str | Path) -> list[Run]:
    """All runs that a folder holds, in the order of tasks, seeds and columns."""
    runs = [_read(path) for path in (Path(folder) / "runs").glob("*.json")]

    def place(run: Run) -> tuple[int, int, int]:
        return TASKS.index(run.task), run.seed, list(COLUMNS).index(run.column)

    return sorted(runs, key=place)


def write_csv(runs: Sequence[Run], path: str | Path) -> None:
    """A line a run: task, column, seed, metric, score and majority in points, rows, seconds."""
    out = io.StringIO()
    names = ("task", "column", "seed", "metric", "score", "majority", "trainable", "rows")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, "seconds", "outside"])
    for run in runs:
        worst = max(run.outside.values(), default=0.0)
        writer.writerow([*(getattr(run, name) for name in names), round(run.seconds, 1), worst])
    write_whole(Path(path), out.getvalue().encode())


def _run(
    study: GlueStudy,
    task: str,
    column: str,
    seed: int,
    start: Start,
    data: TaskData,
    folder: Path,
    stop: Callable[[], bool],
) -> Run:
    settings = study.settings(task, column, seed)
    began = time.monotonic()
    done = finetune(
        start.config,
        start.params,
        data,
        settings,
        stop=stop,
        checkpoints=_checkpoints(folder, task, column, seed),
    )
    if not done.finished:
        raise Stopped
    scores, outside = _held_out(done, data, settings)
    return Run(
        task=task,
        column=column,
        seed=seed,
        metric=data.metrics[0],
        scores=scores,
        baseline=baseline(data),
        outside=outside,
        validation={name: float(done.history[-1][name]) for name in scores},
        trainable=done.trainable,
        rows=len(data.train.tokens),
        notes=list(data.notes),
        seconds=time.monotonic() - began,
        identity="",
    )


def _held_out(
    done: FineTuned, data: TaskData, settings: FineTune
) -> tuple[dict[str, float], dict[str, float]]:
    """Scores, and shares of values out of range where there are any."""
    model, params = done.model, done.params
    if settings.encrypted is None:
        model, params = merged(model, params)
    found = make_evaluate(model, buckets=settings.buckets, how=settings.encrypted)(
        params, data.test
    )
    outside = {name: share for name, share in found.outside.items() if share > 0}
    return metrics.score(found.answers, data.test.targets), outside


def _path(folder: Path, task: str, column: str, seed: int) -> Path:
    return folder / "runs" / f"{task}-{column}-{seed}.json"


def _checkpoints(folder: Path, task: str, column: str, seed: int) -> Path:
    """Of a run in progress; removed at its end."""
    return folder / "checkpoints" / f"{task}-{column}-{seed}"


def _read(path: Path) -> Run:
    try:
        return Run(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ExperimentError(f"{path} is no run of this study: {error}") from error


def _check_identity(path: Path, identity: Mapping[str, Any]) -> None:
    """Raises ExperimentError where the run of a file was another one."""
    try:
        said = differing(json.loads(_read(path).identity), identity)
    except ValueError:
        said = ["of an older version"]
    if said:
        raise ExperimentError(
            f"{path} is of a run with other settings or another start ({'; '.join(said[:4])}): "
            "choose another folder, or remove the file"
        )


def _vocabulary(start: Start) -> str:
    return hashlib.sha256(json.dumps(start.tokenizer.vocabulary).encode()).hexdigest()[:16]
