"""`hesim finetune`: a pre-trained encoder fine-tuned on a task, with a log and a clean stop."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from experiments.console import Display
from experiments.errors import ExperimentError
from experiments.lock import alone_in
from experiments.training.finetune_settings import Job
from experiments.training.logbook import Logbook
from experiments.training.signals import until_signalled
from experiments.training.twin import said_ring
from hesim.files import write_whole
from models.config import EncoderConfig, Pairs, preset
from models.data.datasets import load
from models.data.tasks import TaskData, baseline, prepare_task
from models.data.tokenizer import Tokenizer
from models.nn.encoder import Model
from models.nn.lora import Params
from models.recipes.finetune import FineTuned, finetune
from models.train.checkpoint import Checkpoints, sites_to_json
from models.train.compiling import Abandoned
from models.train.loop import Progress
from models.weights.folder import save_model
from models.weights.shipped import load_pretrained

__all__ = ["Start", "describe", "load_rows", "load_start", "run_finetuning"]

MODEL = "model"
"""Folder of the finished model within the folder of a run."""

_PLACES = "places.json"
_SCRATCH_WORDS = 8192


class Start(NamedTuple):
    """Where a fine-tuning starts: an encoder's configuration, its parameters, its tokenizer."""

    config: EncoderConfig
    params: Params
    tokenizer: Tokenizer


def load_start(
    name: str, attention: str, task: str, length: int, data_dir: str | None, seed: int = 0
) -> Start:
    """The model of that name or folder, its scores swapped for `attention` if it has others; or,
    for "scratch", fresh weights of the preset `tiny` with a vocabulary of the task's training text.

    Raises CheckpointError where there is none, ExperimentError for learned positions that end
    before `length` tokens or an attention that needs other parameters.
    """
    if name == "scratch":
        import jax

        train = load(task, data_dir=data_dir).train
        texts = train.texts if train.pairs is None else train.texts + train.pairs
        tokenizer = Tokenizer.train(texts, size=_SCRATCH_WORDS)
        try:
            config = preset("tiny", attention=attention, sequence=length, vocabulary=tokenizer.size)
        except ValueError as error:
            raise ExperimentError(str(error)) from error
        return Start(config, Model(config).init(jax.random.key(seed)), tokenizer)
    model, params, tokenizer, _ = load_pretrained(
        name, attention=attention, lm_head="none", fresh=True
    )
    config = model.config
    if config.positions == "learned" and config.sequence < length:
        raise ExperimentError(
            f"{name} has learned positions for {config.sequence} tokens: set length to at most that"
        )
    return Start(config, params, tokenizer)


def load_rows(
    start: Start, task: str, length: int, train_rows: int, pairs: Pairs, data_dir: str | None
) -> TaskData:
    """The task's rows of `length` tokens, as the start's tokenizer reads them; train_rows: at most,
    0 for all; pairs: how two sentences are read. Raises DataError for data that cannot be read.
    """
    return prepare_task(
        task,
        start.tokenizer,
        length,
        data_dir=data_dir,
        train_rows=train_rows or None,
        token_types=start.config.token_types,
        pairs=pairs,
    )


def run_finetuning(job: Job, out: Path, display: Display, data_dir: str | None = None) -> FineTuned:
    """Prepare the data, train with a bar, write log and model; goes on from what `out` holds.

    The finished model is in `out/model`, with what it was trained on and its scores on the
    validation rows in its notes; `evaluate_folder` gives the held-out ones. Raises DataError for
    data that cannot be read, CheckpointError for a start that does not fit or where `out` holds
    another run, TrainingError where numbers cease to be finite, ExperimentError where `out` is
    finished or another process works in it, ParameterError where there are fewer devices than the
    job wants, or they do not divide its batch or model.
    """
    target = out / MODEL
    if target.exists():
        raise ExperimentError(f"{target} is finished already: choose another --out")
    settings, mesh = job.settings, job.devices.mesh()
    start = load_start(job.start, job.attention, job.task, job.length, data_dir, settings.seed)
    display.stage("Data")
    data = load_rows(start, job.task, job.length, job.train_rows, settings.pairs, data_dir)
    display.say(describe(data))
    if (start.config.pairs, settings.pairs) == ("bi-encoder", "cross-encoder"):
        display.say(
            f"{job.start} read the sentences of a pair apart, this training reads them in one row: "
            'set pairs = "bi-encoder" under [training] to go on as it was'
        )
    with alone_in(out):
        remember(out, data_dir)
        return _train(job, start, data, out, display, mesh)


def remember(out: Path, data_dir: str | None) -> None:
    """Notes in a run folder where its data were read, if that is no place of the package's own."""
    where = data_dir or os.environ.get("HESIM_GLUE_DIR")
    if where:
        content = {"data_dir": str(Path(where).expanduser().absolute())}
        write_whole(out / _PLACES, json.dumps(content).encode())


def remembered(folder: Path) -> str | None:
    """The data folder of the training whose run folder, or model in it, this is; None if it is
    not known, or no more there.
    """
    for run in (folder, folder.parent):
        try:
            where = json.loads((run / _PLACES).read_text(encoding="utf-8"))["data_dir"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return where if isinstance(where, str) and Path(where).is_dir() else None
    return None


def _train(
    job: Job, start: Start, data: TaskData, out: Path, display: Display, mesh: Mesh | None
) -> FineTuned:
    settings = job.settings
    with Checkpoints(out / "checkpoints") as store:
        at = store.latest or 0
    if at:
        display.say(f"going on from step {at:,}")
    display.stage("Fine-tuning")
    title = f"{settings.method}, {start.config.attention}"
    with until_signalled() as stop, Logbook(out, at) as log, display.bar(title, 1.0) as update:

        def report(progress: Progress) -> None:
            log.write(progress.step, progress.figures)
            shown = ", ".join(
                f"{name} {value:.4g}" for name, value in progress.figures.items() if "/" not in name
            )
            update(progress.step / progress.steps, f"step {progress.step:,}, {shown}", None)

        try:
            done = finetune(
                start.config,
                start.params,
                data,
                settings,
                report=report,
                waiting=lambda note: update(0.0, note, None),
                stop=stop,
                checkpoints=out / "checkpoints",
                mesh=mesh,
            )
        except Abandoned:
            return FineTuned(Model(start.config), start.params, 0, [], finished=False)
    if done.finished:
        _save(out / MODEL, job, done, start.tokenizer, data)
    return done


def _save(target: Path, job: Job, done: FineTuned, tokenizer: Tokenizer, data: TaskData) -> None:
    how = job.settings.encrypted
    notes: dict[str, Any] = {
        "task": job.task,
        "start": job.start,
        "length": job.length,
        "token_types": done.model.config.token_types,
        "train_rows": job.train_rows,
        "method": job.settings.method,
        "buckets": list(job.settings.buckets),
        "settings": dataclasses.asdict(job.settings),
        "encrypted": "" if how is None else said_ring(how),
        "trainable": done.trainable,
        "history": done.history,
        "baseline": baseline(data),
        "sites": sites_to_json(done.model.sites) if done.model.sites.entries else "",
        "training_sites": sites_to_json(done.training) if done.training.entries else "",
    }
    save_model(target, done.model.config, done.params, tokenizer, notes)


def describe(data: TaskData) -> str:
    """A few lines on a task: rows, what was cut, what always guessing the same would score."""
    sizes = ", ".join(
        f"{len(getattr(data, name).tokens):,} {name}" for name in ("train", "validation", "test")
    )
    guess = ", ".join(f"{name} {baseline(data)[name]:.4f}" for name in data.metrics)
    lines = [f"{data.name}: {sizes} rows; always the most frequent label: {guess}"]
    if data.truncated:
        lines.append(f"{data.truncated:.1%} of the training rows lost words to the length")
    return "\n".join([*lines, *data.notes])
