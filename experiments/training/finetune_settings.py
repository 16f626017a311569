"""Settings of a fine-tuning: a table of GLUE tasks, and the TOML file of one job."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from experiments.errors import ExperimentError
from experiments.training.devices import DEVICES, ONE_DEVICE, Devices, devices_of
from experiments.training.options import (
    Option,
    options_of,
    read_options,
    template,
    with_defaults,
)
from experiments.training.twin import RING, TWIN, as_encrypted_of
from hesim.errors import ArgumentError
from models.checks import check_range
from models.config import Pairs, Pooling, present
from models.data.datasets import GLUE, task_spec
from models.encrypted.settings import EncryptionSettings
from models.errors import DataError
from models.recipes.finetune_settings import FineTune
from models.sites.sites import Range
from models.weights.shipped import shipped_names

__all__ = [
    "GLUE_TABLE",
    "Job",
    "TaskSettings",
    "check_length",
    "job_of",
    "job_options",
    "job_template",
    "job_values",
    "read_job",
    "read_table",
    "row_of",
    "said_of",
    "task_spec",
]

GLUE_TABLE = Path(__file__).parent / "settings" / "glue.toml"
"""The table that comes with the package. Its rates and epsilons were chosen on the validation
split, which is carved from a task's training file, with one seed; the dev file decided nothing."""


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """What differs between tasks. full_rate, lora_rate: learning rates of the two methods.
    lora_epochs: 0 for `epochs`, of which adapters may need more. batch: rows of a step. pairs,
    pooling, buckets and the others: as in `FineTune`. train_rows: at most so many training rows, 0
    for all.

    AdamW-HE's large epsilon makes small gradients take small steps, and the scale alpha / rank of
    the adapters multiplies their gradients, so that a large one brings them up to the head's.
    """

    epochs: int = 3
    lora_epochs: int = 0
    full_rate: float = 5e-4
    lora_rate: float = 2e-3
    epsilon: float = 2e-4
    multiplier: float | None = None
    rank: int = 8
    alpha: float = 64.0
    adapted: tuple[str, ...] = ("query", "key", "value", "output")
    batch: int = 32
    pairs: Pairs = "cross-encoder"
    pooling: Pooling | Literal["model"] = "model"
    buckets: tuple[int, ...] = (32, 64, 128)
    train_rows: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", present("pairs", self.pairs))

    def fine_tune(self, method: str, **changes: Any) -> FineTune:
        """The settings of one method, "full" or "lora"; ArgumentError for another."""
        if self.lora_epochs < 0:
            raise ArgumentError(
                f"lora_epochs is {self.lora_epochs}: give passes, or 0 for `epochs`"
            )
        if self.train_rows < 0:
            raise ArgumentError(f"train_rows is {self.train_rows}: give rows, or 0 for all")
        if method == "full":
            epochs, rate = self.epochs, self.full_rate
        else:
            epochs, rate = self.lora_epochs or self.epochs, self.lora_rate
        own = FineTune(
            method=method,  # pyright: ignore[reportArgumentType]  # checked by FineTune
            epochs=epochs,
            learning_rate=rate,
            epsilon=self.epsilon,
            multiplier=self.multiplier,
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
    "lora_epochs": "The same where adapters are; 0: epochs.",
    "full_rate": "Highest learning rate where every parameter is trained.",
    "lora_rate": "Highest learning rate of AdamW-HE where adapters, pooler and head are.",
    "epsilon": "What AdamW-HE adds to the second moment, inside the root.",
    "rank": "LoRA: rank of the adapters.",
    "alpha": "LoRA: adapters are scaled by alpha / rank.",
    "adapted": "LoRA: projections with adapters, of query, key, value and output.",
    "batch": "Rows of a step.",
    "buckets": "Tokens that a batch may be cut to.",
    "pairs": "How pairs are read: cross-encoder, as one row, or bi-encoder, each by itself.",
    "pooling": "What the pooler reads: token (the first), mean (of all), or model: as pre-trained.",
    "train_rows": "Train on so many rows at most; 0: on all.",
}


def _multiplier(section: str, value: float | None = None) -> Option:
    return Option(
        section,
        "multiplier",
        50.0 if value is None else value,
        "LoRA: factor of v + epsilon before the polynomial 1/sqrt on [0.0005, 1]; by default "
        "0.0005 / epsilon, which admits the largest gradients.",
        optional=value is None,
    )


def read_table(
    path: str | Path | None = None,
) -> tuple[dict[str, TaskSettings], EncryptionSettings]:
    """A row for every GLUE task from a TOML file with a section a task, by default `GLUE_TABLE`,
    and ring and twin of its sections `encrypted` and `twin`: ranges that are given serve all tasks,
    whose simulations are then compiled once. ExperimentError names what is wrong.
    """
    values = _table_values(path)
    how = as_encrypted_of(values)
    rows = {name: TaskSettings(**values[name]) for name in GLUE}
    for name, row in rows.items():
        try:
            for method in ("full", "lora"):
                row.fine_tune(method)
        except (ValueError, DataError) as error:
            raise ExperimentError(f"{path or GLUE_TABLE}: {name}: {error}") from error
    return rows, how


def _table_values(path: str | Path | None) -> dict[str, dict[str, Any]]:
    options = [
        option
        for name in GLUE
        for option in (*options_of(TaskSettings(), name, _ROW), _multiplier(name))
    ]
    return read_options(GLUE_TABLE if path is None else path, (*options, *RING, *TWIN))


@dataclasses.dataclass(frozen=True)
class Job:
    """One fine-tuning. task: as `models.data.datasets.load` names it. start: a shipped model, a
    model folder, or "scratch". length: tokens of a row. train_rows: 0 for all.
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
    "accumulate": "Parts of a step's rows, one after the other, to save memory.",
    "precision": "Of forward and backward pass: float32 or bfloat16; parameters and optimizer stay "
    "in float32.",
    "remat": "Compute scores and non-linearities a second time instead of keeping them; on a CPU "
    "this saves nothing.",
    "save_seconds": "Seconds between two checkpoints within an epoch.",
    "seed": "Of fresh weights, order of rows, and simulated noise.",
}

_PENALISED: Mapping[str, Range] = {
    "exp": (-12.0, 0.0),
    "inv_sqrt": (0.1, 10.0),
    "relu": (-6.0, 6.0),
    "gelu": (-6.0, 6.0),
    "gelu_tanh": (-6.0, 6.0),
    "silu": (-6.0, 6.0),
    "inv": (0.05, 2.0),
    "softmax_exp": (-3.0, 3.0),
    "softmax_inv": (0.02, 16.0),
    "tanh": (-4.0, 4.0),
}


def job_options(
    settings: FineTune,
    train_rows: int,
    encryption: Mapping[str, Mapping[str, Any]] | None = None,
    more: Sequence[Option] = (),
) -> tuple[Option, ...]:
    """All options of a job, at these defaults. encryption: sections whose ring and twin are the
    defaults. more: others of its section `training`.
    """
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
        _multiplier("training", settings.multiplier),
        *more,
        *options_of(
            settings,
            "penalty",
            {
                "penalty": "Weight of the range penalty, in the clear only; 0: none.",
                "penalty_last": "Last share of the steps in which it acts, its weight reached "
                "half-way through; 1: all along.",
                "inner": "Share of a range's half-width at which it begins.",
            },
        ),
        *(
            Option("penalty", name, pair, f"Range that it keeps every {name} of the model to.")
            for name, pair in _PENALISED.items()
        ),
        Option(
            "encrypted",
            "simulate",
            False,
            "Train as encryption does (LoRA only): polynomials for every function, and simulated "
            "noise in every step and every answer.",
        ),
        *with_defaults((*RING, *TWIN), encryption or {}),
        *DEVICES,
    )


def job_template() -> str:
    """A TOML file with every option at its default, explained."""
    return template(
        job_options(FineTune(), 0),
        "Settings of `hesim finetune`. Every option may be left out; epochs, rates, epsilon, "
        "adapters, batch, pairs, pooling and buckets then are those of the task's row in "
        "experiments/training/settings/glue.toml.",
    )


def read_job(
    path: str | Path | None = None,
    given: Mapping[str, Any] | None = None,
    table: str | Path | None = None,
) -> Job:
    """The job that a file describes, with options of the command line (`given`: section.name to
    value, None where nothing was said) in place of the file's. ExperimentError names what is wrong.

    table: whose row of the task, ring and twin are the defaults (`read_table`). Without one the
    row is that of `GLUE_TABLE`, while the ranges of its twin are not taken: they are those of the
    models that come with the package, and any other may be the start.
    """
    said = said_of(given)
    row, method = row_of(path, said, table)
    try:
        encryption = None if table is None else _table_values(table)
        values = job_values(path, said, row.fine_tune(method), row.train_rows, encryption)
        how = as_encrypted_of(values) if values["encrypted"]["simulate"] else None
        return job_of(values, how)
    except (ValueError, TypeError) as error:
        raise ExperimentError(f"{_blamed(path, said, table)}: {error}") from error


def said_of(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options of the command line that were given at all."""
    return {name: value for name, value in (given or {}).items() if value is not None}


def row_of(
    path: str | Path | None,
    said: Mapping[str, Any],
    table: str | Path | None = None,
    more: Sequence[Option] = (),
) -> tuple[TaskSettings, str]:
    """The row of a job's task in a table, and the job's method. more: as of `job_values`. Raises
    ExperimentError for the file, DataError for no such task.
    """
    values = _merged(path, said, job_options(FineTune(), 0, more=more))
    name = task_spec(values["task"]["task"]).removeprefix("glue/")
    return read_table(table)[0].get(name, TaskSettings()), values["training"]["method"]


def job_values(
    path: str | Path | None,
    said: Mapping[str, Any],
    usual: FineTune,
    train_rows: int,
    encryption: Mapping[str, Mapping[str, Any]] | None = None,
    more: Sequence[Option] = (),
) -> dict[str, dict[str, Any]]:
    """From section to option to value of a job's file; ExperimentError names what is wrong in it.

    said: options that win over the file. usual, train_rows: what it is where it says nothing.
    encryption: sections whose ring and twin are the defaults. more: options that others have not.
    """
    values = _merged(path, said, job_options(usual, train_rows, encryption, more))
    values["task"]["task"] = task_spec(values["task"]["task"])
    return values


def job_of(values: Mapping[str, Mapping[str, Any]], how: EncryptionSettings | None) -> Job:
    """The job that these values say. how: as the settings' `encrypted`. Raises ExperimentError,
    and as `FineTune` does for what does not go together.
    """
    penalty = dict(values["penalty"])
    ranges = [(name, penalty.pop(name)) for name in _PENALISED]
    for name, pair in ranges:
        check_range(name, pair)
    targets = tuple((name, (float(low), float(high))) for name, (low, high) in ranges)
    own = {field.name for field in dataclasses.fields(FineTune)}
    settings = FineTune(
        **{name: value for name, value in values["training"].items() if name in own},
        **penalty,
        ranges=targets if penalty["penalty"] else (),
        encrypted=how,
    )
    check_length(values["task"]["length"], settings.buckets)
    if values["task"]["train_rows"] < 0:
        raise ExperimentError(f"train_rows is {values['task']['train_rows']}, but at least 0 (all)")
    attention = values["start"]["attention"]
    start = values["start"].get("start", f"tiny-{attention}")
    if "start" not in values["start"] and start not in shipped_names():
        raise ExperimentError(
            f"no model with attention {attention!r} comes with the package, only "
            f"{', '.join(shipped_names())}: set attention to that of one of these, or name a model "
            "to start from (start)"
        )
    return Job(
        task=values["task"]["task"],
        start=start,
        attention=attention,
        length=values["task"]["length"],
        train_rows=values["task"]["train_rows"],
        settings=settings,
        devices=devices_of(values),
    )


def _blamed(path: str | Path | None, said: Mapping[str, Any], table: str | Path | None) -> str:
    """Where settings that do not go together come from: the file alone, or the options."""
    options = {name: value for name, value in said.items() if name != "task.task"}
    if not options:
        return str(path or "the settings")
    if path is not None:
        try:
            read_job(path, {name: v for name, v in said.items() if name not in options}, table)
        except ExperimentError:
            return str(path)
    flags = " ".join(
        f"--{name.rpartition('.')[2]}" + ("" if value is True else f" {value}")
        for name, value in options.items()
    )
    return flags if path is None else f"{flags} with {path}"


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
