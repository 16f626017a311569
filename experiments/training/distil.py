"""`hesim distil`: a student learns from a teacher on texts, with a log and a clean stop."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.console import Display
from experiments.errors import ExperimentError
from experiments.lock import alone_in
from experiments.training.devices import DEVICES, ONE_DEVICE, Devices, devices_of
from experiments.training.logbook import Logbook
from experiments.training.options import Option, options_of, read_options, template
from experiments.training.signals import until_signalled
from hesim.errors import ArgumentError
from models.checks import check_range
from models.data import metrics
from models.data.batches import Batch, select_rows
from models.data.corpus import read_sections, split_paragraphs, split_sections
from models.data.datasets import Dataset, Split, load
from models.data.tokenizer import Tokenizer
from models.errors import CheckpointError
from models.nn.encoder import Model
from models.nn.lora import Params
from models.recipes.agreement import Agreement, agreement, embeddings
from models.recipes.distill import Distillation, Distilled, distil
from models.sites.sites import function_of, site_names
from models.start.softmax_to_gaussian import warm_start
from models.train.checkpoint import Checkpoints
from models.train.loop import Progress
from models.train.schedules import Budget
from models.weights.bert import load_bert
from models.weights.folder import Saved, load_model, save_model

__all__ = ["Job", "Texts", "distil_template", "load_any", "read_distilling", "run_distilling"]

_DEFAULT = Distillation()

OPTIONS = (
    Option("text", "length", 128, "Tokens of a row; longer texts are cut."),
    Option("text", "rows", 0, "Rows to train on at most, drawn by the seed; 0: all."),
    Option("text", "held_out", 0.02, "Share of a folder's sections that is never trained on."),
    Option("text", "held_out_rows", 192, "Held-out rows that are evaluated, at most."),
    Option(
        "start",
        "warm",
        True,
        "Move queries, keys and values to where softmax does not notice and a Gaussian kernel is "
        "near, if the teacher has softmax and the student a Gaussian kernel.",
    ),
    Option("start", "rows", 192, "Rows on which that is chosen."),
    Option("training", "steps", _DEFAULT.budget.steps, "Steps of the optimizer."),
    Option(
        "training",
        "seconds",
        _DEFAULT.budget.seconds,
        "End after so many seconds of running if that is earlier; a resumed run then does not "
        "repeat its bits. 0: no such limit.",
    ),
    *options_of(
        _DEFAULT,
        "training",
        {
            "trained": "attention (its projections), blocks (all but embedding and pooler) or all.",
            "batch": "Rows of a step.",
            "rate": "Highest learning rate.",
            "rise": "Share of the budget at which the learning rate is highest.",
            "start": "Learning rate at the first step, as a share of the highest.",
            "floor": "Learning rate at the last step, as a share of the highest.",
            "weight_decay": "Decoupled weight decay.",
            "clip": "Largest norm of a gradient; longer ones are scaled down to it.",
            "buckets": "Batches are cut to the first of these numbers of tokens that holds them.",
            "seed": "Of the order of the rows.",
            "accumulate": "Parts of a step's rows, one after the other, to save memory.",
            "precision": "Of both models in a step and of the gradient: float32 or bfloat16; "
            "parameters and optimizer stay in float32.",
            "remat": "Compute the student's scores and non-linearities a second time instead of "
            "keeping them; on a CPU this saves nothing.",
            "log_every": "Steps between two lines of the log.",
            "evaluate_every": "Steps between two evaluations on held-out rows.",
            "save_seconds": "Seconds between two checkpoints.",
        },
    ),
    *options_of(
        _DEFAULT,
        "loss",
        {
            "states": "Weight of the hidden states, layer by layer.",
            "attention": "Weight of the attention's updates, layer by layer.",
            "pooled": "Weight of the mean of a text's final states.",
            "logits": "Weight of the logits; for a teacher whose head was trained.",
            "temperature": "What logits are divided by.",
        },
    ),
    *options_of(
        _DEFAULT,
        "penalty",
        {
            "penalty": "Weight of the range penalty on the student; 0: none.",
            "inner": "Share of a range's half-width at which it begins.",
        },
    ),
    Option("penalty", "exp", (-12.0, 0.0), "Range of the Gaussian kernel's exponent."),
    Option("penalty", "inv_sqrt", (0.1, 10.0), "Range of the variances in LayerNorms."),
    Option("penalty", "gelu", (-6.0, 6.0), "Range of GELU's input, where the model has one."),
    Option("penalty", "relu", (-6.0, 6.0), "Range of ReLU's input, where the model has one."),
    *DEVICES,
)
"""Every option of the file, in the order of the template."""

_RANGES = ("exp", "inv_sqrt", "gelu", "relu")


@dataclasses.dataclass(frozen=True)
class Job:
    """What a file asks for; `ranges` by function, of which the student has some."""

    text: dict[str, Any]
    start: dict[str, Any]
    settings: Distillation
    ranges: tuple[tuple[str, tuple[float, float]], ...]
    devices: Devices = ONE_DEVICE

    def for_student(self, model: Model) -> Distillation:
        """The settings with the targets that the student has sites for."""
        present = {function_of(name) for name in site_names(model.config)}
        targets = tuple(pair for pair in self.ranges if pair[0] in present)
        return dataclasses.replace(self.settings, targets=targets)


class Texts(NamedTuple):
    """Rows to train on and held-out ones, and the data sets that they came from."""

    train: Batch
    held_out: Batch
    datasets: tuple[Dataset, ...]


def distil_template() -> str:
    """A TOML file with every option at its default, explained."""
    return template(OPTIONS, "Settings of `hesim distil`. Every option may be left out.")


def read_distilling(path: str | Path | None) -> Job:
    """The job that a file describes (defaults for None); ExperimentError names what is wrong."""
    values = read_options(path, OPTIONS)
    try:
        training, penalty = dict(values["training"]), dict(values["penalty"])
        ranges = [(name, penalty.pop(name)) for name in _RANGES]
        for name, pair in ranges:
            check_range(name, pair)
        for section, name in (("text", "rows"), ("text", "held_out_rows"), ("start", "rows")):
            least = 0 if (section, name) == ("text", "rows") else 1
            if values[section][name] < least:
                raise ArgumentError(
                    f"{name} in [{section}] is {values[section][name]}, but at least {least}"
                )
        if not 0 <= values["text"]["held_out"] < 1:
            raise ArgumentError(
                f"held_out is {values['text']['held_out']}: a share, at least 0 and below 1"
            )
        settings = Distillation(
            budget=Budget(training.pop("steps"), training.pop("seconds")),
            **training,
            **values["loss"],
            **penalty,
        )
    except (ValueError, TypeError) as error:
        raise ExperimentError(f"{path}: {error}") from error
    targets = tuple((name, (float(pair[0]), float(pair[1]))) for name, pair in ranges)
    return Job(values["text"], values["start"], settings, targets, devices_of(values))


def load_any(folder: Path, length: int) -> Saved:
    """A model's folder, of `save_model` or of somebody's BERT; CheckpointError without a tokenizer
    or with fewer learned positions than `length`.
    """
    if (folder / "notes.json").exists():
        saved = load_model(folder)
    else:
        bert = load_bert(folder)
        saved = Saved(bert.config, bert.params, bert.tokenizer, {"fresh": list(bert.fresh)})
    if saved.tokenizer is None:
        raise CheckpointError(f"{folder} has no tokenizer: its token numbers mean nothing")
    if saved.config.positions == "learned" and saved.config.sequence < length:
        raise CheckpointError(
            f"{folder} has learned {saved.config.sequence} positions: set length to at most that"
        )
    return saved


def read_texts(
    tokenizer: Tokenizer,
    specs: Sequence[str],
    data_dir: str | None,
    folder: Path | None,
    options: dict[str, Any],
    seed: int,
    types: bool = False,
) -> Texts:
    """The sentences of data sets, alone and as pairs, and the paragraphs of a folder.

    Held out are the data sets' validation splits and some sections of the folder; test splits are
    not read for this. types: with token types. ExperimentError where there is neither data set nor
    folder.
    """
    if not specs and folder is None:
        raise ExperimentError(
            "name texts: --data TASK, such as rte (repeat for several), or --text FOLDER"
        )
    datasets = tuple(load(spec, data_dir=data_dir) for spec in specs)
    parts: dict[bool, list[Batch]] = {False: [], True: []}
    for dataset in datasets:
        for held, split in ((False, dataset.train), (True, dataset.validation)):
            parts[held] += _rows(tokenizer, split, options["length"], types)
    if folder is not None:
        sections = list(read_sections(folder))
        parted = split_sections(sections, options["held_out"], options["length"])
        if not (datasets or all(parted)):
            parted = split_paragraphs(sections, options["held_out"], options["length"])
        for held, texts in zip((False, True), parted, strict=True):
            if texts:
                parts[held].append(_encoded(tokenizer, texts, None, options["length"], types))
    joined = {held: _joined(batches) for held, batches in parts.items() if batches}
    if len(joined) < 2:
        raise ExperimentError(
            "too little text: there is none to train on, or none held out; name more data sets or "
            "files, or hold out another share of the text ([text] held_out)"
        )
    return Texts(
        _some(joined[False], options["rows"], seed),
        _some(joined[True], options["held_out_rows"], 0),
        datasets,
    )


def run_distilling(
    job: Job,
    teacher: Path,
    student: Path,
    out: Path,
    display: Display,
    *,
    data: Sequence[str] = (),
    data_dir: str | None = None,
    text: Path | None = None,
) -> Distilled:
    """Read, start warm, train with a bar, write log and model; goes on from what `out` holds.

    The finished student is in `out/model`, its agreement with the teacher in its notes and in
    `out/agreement.json`. Raises CheckpointError for models that do not go together or where `out`
    holds another run, DataError for texts that cannot be read, ExperimentError where it is done or
    another process works in it, ParameterError where there are fewer devices than the job wants, or
    they do not divide its batch or models.
    """
    if (out / "model").exists():
        raise ExperimentError(f"{out / 'model'} is finished already: choose another --out")
    with alone_in(out):
        return _distil(job, teacher, student, out, display, data, data_dir, text)


def _distil(
    job: Job,
    teacher: Path,
    student: Path,
    out: Path,
    display: Display,
    data: Sequence[str],
    data_dir: str | None,
    text: Path | None,
) -> Distilled:
    length, mesh = job.text["length"], job.devices.mesh()
    first, second = load_any(teacher, length), load_any(student, length)
    assert first.tokenizer is not None and second.tokenizer is not None
    if first.tokenizer != second.tokenizer:
        raise CheckpointError(
            f"{teacher} and {student} have different vocabularies, or rules that split texts"
        )
    for folder, saved in ((teacher, first), (student, second)):
        if saved.config.pairs == "bi-encoder":
            raise CheckpointError(
                f"{folder} reads the sentences of a pair apart, while texts are distilled one by "
                "one: distil the model that it was fine-tuned from, then fine-tune"
            )
    guide, model = Model(first.config), Model(second.config)
    settings = job.for_student(model)
    display.stage("Texts")
    types = min(first.config.token_types, second.config.token_types) > 1
    texts = read_texts(first.tokenizer, data, data_dir, text, job.text, settings.seed, types)
    display.say(
        f"{len(texts.train.tokens):,} rows to train on, {int(texts.train.mask.sum()):,} tokens; "
        f"{len(texts.held_out.tokens):,} held out"
    )
    start = _start(job, first, model, second.params, texts)
    steps = {"as converted": second.params, "at the start": start}
    found = {name: _measure(guide, first, model, p, texts, settings) for name, p in steps.items()}
    for name, figures in found.items():
        display.say(f"{name}: {_said(figures)}")
    with Checkpoints(out / "checkpoints") as store:
        at = store.latest or 0
    if at:
        display.say(f"going on from step {at:,}")
    display.stage("Distillation")
    with until_signalled() as stop, Logbook(out, at) as log, display.bar("distil", 1.0) as update:

        def report(progress: Progress) -> None:
            log.write(progress.step, {"seconds": progress.seconds, **progress.figures})
            shown = f"step {progress.step:,}, loss {progress.figures['loss']:.4f}"
            speed = progress.figures["tokens_per_second"]
            update(progress.share, f"{shown}, {speed:,.0f} tokens/s", None)

        done = distil(
            guide,
            first.params,
            model,
            start,
            texts.train,
            settings,
            out,
            held_out=texts.held_out,
            report=report,
            waiting=lambda note: update(0.0, note, None),
            stop=stop,
            mesh=mesh,
        )
    if not done.finished:
        return done
    found["distilled"] = _measure(guide, first, model, done.params, texts, settings)
    display.say(f"distilled: {_said(found['distilled'])}")
    scores = {
        "teacher": _spearman(guide, first.params, first.tokenizer, texts, length, settings),
        **{
            name: _spearman(model, p, first.tokenizer, texts, length, settings)
            for name, p in {**steps, "distilled": done.params}.items()
        },
    }
    for name, by_task in scores.items():
        for task, rho in by_task.items():
            display.say(f"{task}, Spearman of mean-pooled embeddings, {name}: {rho:.4f}")
    figures = {
        "agreement": {name: dataclasses.asdict(one) for name, one in found.items()},
        "spearman": scores,
        "steps": done.step,
        "seconds": done.seconds,
    }
    (out / "agreement.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    notes = {
        **second.notes,
        "distilled": {
            "teacher": teacher.name,
            "texts": [*data, *([] if text is None else [text.name])],
            "settings": dataclasses.asdict(settings),
            **figures,
        },
    }
    save_model(out / "model", second.config, done.params, first.tokenizer, notes)
    return done


def _start(job: Job, teacher: Saved, student: Model, params: Params, texts: Texts) -> Params:
    """The student's parameters, its blocks replaced by the warm start where there is one."""
    a, b = teacher.config, student.config
    same = a.replace(attention=b.attention, attention_mean=b.attention_mean)
    shape = ("layers", "hidden", "heads", "ffn", "biases", "norm_order")
    wanted = job.start["warm"] and (a.attention, b.attention) == ("softmax", "gaussian")
    if not (wanted and a.biases and all(getattr(same, n) == getattr(b, n) for n in shape)):
        return params
    rows = _some(texts.train, job.start["rows"], 1)
    width = min(64, rows.tokens.shape[1])
    plain = warm_start(
        a,
        teacher.params,
        rows.tokens[:, :width],
        rows.mask[:, :width],
        None if rows.types is None else rows.types[:, :width],
        kernel_mean=b.attention_mean,
    )
    blocks = {
        i: {**block, "attention": _into(block["attention"], plain["blocks"][i]["attention"])}
        for i, block in params["blocks"].items()
    }
    return {**params, "blocks": blocks}


def _into(own: Params, new: Params) -> Params:
    """The projections' new numbers, the student's own adapters kept."""
    return {name: {**child, **new[name]} for name, child in own.items()}


def _measure(
    guide: Model, teacher: Saved, model: Model, params: Params, texts: Texts, settings: Distillation
) -> Agreement:
    return agreement(
        guide,
        teacher.params,
        model,
        params,
        texts.held_out,
        batch=settings.batch,
        buckets=settings.buckets,
    )


def _said(found: Agreement) -> str:
    low = min(
        (pair[0] for name, pair in found.ranges.items() if name.endswith(".exp")), default=None
    )
    return f"{found}" + ("" if low is None else f"; exponents down to {low:.1f}")


def _spearman(
    model: Model,
    params: Params,
    tokenizer: Tokenizer,
    texts: Texts,
    length: int,
    settings: Distillation,
) -> dict[str, float]:
    """Rank correlation of the cosine of mean-pooled embeddings with the ratings of the test split,
    for every data set of rated pairs.
    """
    out = {}
    for dataset in texts.datasets:
        split = dataset.test
        if dataset.task != "regression" or split.pairs is None:
            continue
        sides = (
            embeddings(
                model,
                params,
                _encoded(tokenizer, side, None, length),
                batch=settings.batch,
                buckets=settings.buckets,
            )
            for side in (split.texts, split.pairs)
        )
        a, b = sides
        out[dataset.name] = metrics.spearman((a * b).sum(axis=1), split.labels)
    return out


def _rows(tokenizer: Tokenizer, split: Split, length: int, types: bool) -> list[Batch]:
    """Every sentence by itself, and the pairs."""
    out = [_encoded(tokenizer, split.texts, None, length, types)]
    if split.pairs is not None:
        out.append(_encoded(tokenizer, split.pairs, None, length, types))
        out.append(_encoded(tokenizer, split.texts, split.pairs, length, types))
    return out


def _encoded(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    length: int,
    types: bool = False,
) -> Batch:
    found = tokenizer.encode(texts, length=length, pairs=pairs)
    nothing = np.zeros(len(found.ids), np.int32)
    return Batch(found.ids, found.mask, nothing, found.types if types else None)


def _joined(batches: Sequence[Batch]) -> Batch:
    return jax.tree.map(lambda *fields: np.concatenate(fields), *batches)


def _some(rows: Batch, most: int, seed: int) -> Batch:
    """At most so many rows (0: all), in the order of a shuffle."""
    order = np.random.default_rng(seed).permutation(len(rows.tokens))
    return select_rows(rows, order[: most or None])
