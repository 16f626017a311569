"""Settings of a fine-tuning: a table of GLUE tasks, and the TOML file of one job."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from experiments.errors import ExperimentError
from experiments.training.devices import DEVICES, ONE_DEVICE, Devices, devices_of
from experiments.training.options import Option, options_of, read_options, template
from models.as_encrypted import AsEncrypted
from models.config import Pairs, Pooling
from models.data import GLUE, DataError
from models.finetune import FineTune

__all__ = [
    "GLUE_TABLE",
    "Job",
    "TaskSettings",
    "check_length",
    "job_template",
    "read_job",
    "read_table",
    "task_spec",
]

GLUE_TABLE = Path(__file__).parent / "settings" / "glue.toml"
"""The table that comes with the package. Its rates and epsilons were chosen on the validation
split, which is carved from a task's training file, with one seed; the dev file decided nothing."""


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """What differs between tasks. full_rate, lora_rate: learning rates of the two methods. batch:
    rows of a step. pairs, pooling, buckets and the others: as in `FineTune`. train_rows: at most so
    many training rows, 0 for all.

    AdamW-HE's large epsilon makes small gradients take small steps, and the scale alpha / rank of
    the adapters multiplies their gradients, so that a large one brings them up to the head's.
    """

    epochs: int = 3
    full_rate: float = 5e-4
    lora_rate: float = 2e-3
    epsilon: float = 2e-4
    rank: int = 8
    alpha: float = 64.0
    adapted: tuple[str, ...] = ("query", "key", "value", "output")
    batch: int = 32
    pairs: Pairs = "joint"
    pooling: Pooling | Literal["model"] = "model"
    buckets: tuple[int, ...] = (32, 64, 128)
    train_rows: int = 0

    def fine_tune(self, method: str, **changes: Any) -> FineTune:
        """The settings of one method, "full" or "lora"; ValueError for another."""
        rate = self.full_rate if method == "full" else self.lora_rate
        own = FineTune(
            method=method,  # pyright: ignore[reportArgumentType]  # checked by FineTune
            epochs=self.epochs,
            learning_rate=rate,
            epsilon=self.epsilon,
            rank=self.rank,
            alpha=self.alpha,
            adapted=self.adapted,
            batch=self.batch,
            pairs=self.pairs,
            pooling=self.pooling,
            buckets=self.buckets,
        )
        return dataclasses.replace(own, **changes)


_ROW = {
    "epochs": "Passes over the training rows.",
    "full_rate": "Highest learning rate where every parameter is trained.",
    "lora_rate": "Highest learning rate of AdamW-HE where adapters, pooler and head are.",
    "epsilon": "What AdamW-HE adds to the second moment, inside the root.",
    "rank": "LoRA: rank of the adapters.",
    "alpha": "LoRA: adapters are scaled by alpha / rank.",
    "adapted": "LoRA: projections with adapters, of query, key, value and output.",
    "batch": "Rows of a step.",
    "buckets": "Tokens that a batch may be cut to.",
    "pairs": "How sentence pairs are read: joint, as one row, or apart, each by itself.",
    "pooling": "What the pooler reads: token (the first), mean (of all), or model: as pre-trained.",
    "train_rows": "Train on so many rows at most; 0: on all.",
}


_TWIN = tuple(
    Option("twin", name, (-1.0, 1.0), f"Range of every {name} of the twin.", optional=True)
    for name in ("exp", "inv_sqrt", "relu", "gelu", "tanh")
)


def read_table(path: str | Path | None = None) -> tuple[dict[str, TaskSettings], AsEncrypted]:
    """A row for every GLUE task from a TOML file with a section a task, by default `GLUE_TABLE`,
    and the twin with the ranges of its section `twin`: where they are given they serve all tasks,
    whose simulations are then compiled once. ExperimentError names what is wrong.
    """
    options = [o for name in GLUE for o in options_of(TaskSettings(), name, _ROW)]
    values = read_options(GLUE_TABLE if path is None else path, (*options, *_TWIN))
    how = AsEncrypted()
    given = values.pop("twin")
    for name, bounds in given.items():
        if len(bounds) != 2 or not bounds[0] < bounds[1]:
            raise ExperimentError(f"twin: {name} is {list(bounds)}, not a low and a high number")
    domains = dict(how.domains) | {name: (float(b[0]), float(b[1])) for name, b in given.items()}
    rows = {name: TaskSettings(**row) for name, row in values.items()}
    for name, row in rows.items():
        try:
            for method in ("full", "lora"):
                row.fine_tune(method)
        except (ValueError, DataError) as error:
            raise ExperimentError(f"{path or GLUE_TABLE}: {name}: {error}") from error
    return rows, dataclasses.replace(how, domains=tuple(sorted(domains.items())))


def task_spec(name: str) -> str:
    """A data set as `models.data.load` wants it: rte becomes glue/RTE; others stay as they are."""
    known = {key.lower().replace("-", ""): key for key in GLUE}
    short = name.removeprefix("glue/").lower().replace("-", "").replace("_", "")
    return f"glue/{known[short]}" if short in known else name


@dataclasses.dataclass(frozen=True)
class Job:
    """One fine-tuning. task: as `models.data.load` names it. start: a shipped model, a model
    folder, or "scratch". length: tokens of a row. train_rows: 0 for all.
    """

    task: str
    start: str
    attention: str
    length: int
    train_rows: int
    settings: FineTune
    devices: Devices = ONE_DEVICE


_TRAINING = {
    "epochs": "Passes over the training rows.",
    "batch": _ROW["batch"],
    "learning_rate": "Highest learning rate.",
    "warmup": "Share of the steps in which the learning rate rises.",
    "weight_decay": "Decoupled weight decay.",
    "epsilon": "LoRA: what AdamW-HE adds to the second moment, inside the root.",
    "dropout": "Share of embedding features set to zero.",
    **{name: _ROW[name] for name in ("rank", "alpha", "adapted", "pairs", "pooling")},
    "buckets": "Tokens that a batch may be cut to, the longest at least `length`.",
    "seed": "Of fresh weights, order of rows, and simulated noise.",
}
_RING = {
    "log_n": "Binary logarithm of the ring dimension.",
    "levels": "Levels of a fresh ciphertext.",
    "scale_bits": "Bits of the scale.",
    "first_bits": "Bits of the first prime.",
    "special_bits": "Bits of the key-switching prime.",
}


def _options(settings: FineTune, train_rows: int) -> tuple[Option, ...]:
    how = AsEncrypted() if settings.encrypted is None else settings.encrypted
    return (
        Option("task", "task", "rte", f"{', '.join(GLUE).lower()}, or reviews."),
        Option(
            "task",
            "length",
            128,
            "Tokens of a row, of a sentence where pairs are read apart; longer texts are cut.",
        ),
        Option("task", "train_rows", train_rows, "Train on so many rows at most; 0: on all."),
        Option("start", "attention", "gaussian", "Of the model: gaussian or softmax."),
        Option(
            "start",
            "start",
            "tiny-gaussian",
            "A model that comes with the package, a model's folder, or scratch: fresh weights of "
            "the preset tiny. By default the shipped one of that attention.",
            optional=True,
        ),
        Option(
            "training",
            "method",
            settings.method,
            "full: every parameter by AdamW; lora: adapters, pooler and head by AdamW-HE.",
        ),
        *options_of(settings, "training", _TRAINING),
        Option(
            "training",
            "multiplier",
            50.0,
            "LoRA: factor of v + epsilon before the polynomial 1/sqrt on [0.0005, 1]; by default "
            "0.0005 / epsilon, which admits the largest gradients.",
            optional=True,
        ),
        Option(
            "encrypted",
            "simulate",
            False,
            "Train as encryption does (LoRA only): polynomials for every function, and simulated "
            "noise in every step and every answer.",
        ),
        *options_of(how.ckks, "encrypted", _RING),
        Option(
            "encrypted",
            "margin",
            how.fit.margin,
            "How far beyond the ranges that the pre-trained model meets the polynomials hold, as "
            "a share of a range's width.",
        ),
        *DEVICES,
    )


def job_template() -> str:
    """A TOML file with every option at its default, explained."""
    return template(
        _options(FineTune(), 0),
        "Settings of `hesim finetune`. Every option may be left out; epochs, rates, epsilon, "
        "adapters, batch, pairs, pooling and buckets then are those of the task's row in "
        "experiments/training/settings/glue.toml.",
    )


def read_job(path: str | Path | None = None, given: Mapping[str, Any] | None = None) -> Job:
    """The job that a file describes, with options of the command line (`given`: section.name to
    value, None where nothing was said) in place of the file's. ExperimentError names what is wrong.
    """
    said = {name: value for name, value in (given or {}).items() if value is not None}
    values = _merged(path, said, _options(FineTune(), 0))
    spec = task_spec(values["task"]["task"])
    row = read_table()[0].get(spec.removeprefix("glue/"), TaskSettings())
    method = values["training"]["method"]
    try:
        values = _merged(path, said, _options(row.fine_tune(method), row.train_rows))
        training = dict(values["training"])
        how = _as_encrypted(values["encrypted"])
        settings = FineTune(**training, encrypted=how)
    except (ValueError, TypeError) as error:
        raise ExperimentError(f"{path or 'the settings'}: {error}") from error
    check_length(values["task"]["length"], settings.buckets)
    if values["task"]["train_rows"] < 0:
        raise ExperimentError(f"train_rows is {values['task']['train_rows']}, but at least 0 (all)")
    attention = values["start"]["attention"]
    return Job(
        task=spec,
        start=values["start"].get("start", f"tiny-{attention}"),
        attention=attention,
        length=values["task"]["length"],
        train_rows=values["task"]["train_rows"],
        settings=settings,
        devices=devices_of(values),
    )


def check_length(length: int, buckets: Sequence[int], where: str = "") -> None:
    """Raises ExperimentError, beginning with `where`, if no bucket (tokens) holds a whole row."""
    if max(buckets) < length:
        raise ExperimentError(
            f"{where}the longest bucket has {max(buckets)} tokens, a row {length}: add a bucket, "
            "or lower the length"
        )


def _merged(
    path: str | Path | None, said: Mapping[str, Any], options: tuple[Option, ...]
) -> dict[str, dict[str, Any]]:
    values = read_options(path, options)
    for name, value in said.items():
        section, option = name.split(".")
        values[section][option] = value
    return values


def _as_encrypted(values: dict[str, Any]) -> AsEncrypted | None:
    if not values["simulate"]:
        return None
    how = AsEncrypted()
    ring = dataclasses.replace(how.ckks, **{name: values[name] for name in _RING})
    fit = dataclasses.replace(how.fit, margin=values["margin"])
    return dataclasses.replace(how, ckks=ring, fit=fit)
