"""Settings of an encrypted fine-tuning: the TOML file of `hesim finetune`, read for encryption."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import machines
from experiments.encrypted_training import KIND
from experiments.errors import ExperimentError
from experiments.training.devices import ONE_DEVICE
from experiments.training.finetune_settings import (
    Job,
    job_of,
    job_values,
    row_of,
    said_of,
)
from experiments.training.finetune_settings import job_options as options_of_a_job
from experiments.training.options import Option, template
from experiments.training.twin import BOOTSTRAP, as_encrypted_of
from he_backend.machines.table import find
from hesim.circuit.refresher import KEY_HOLDER, Refresher
from models.encrypted.settings import EncryptionSettings
from models.recipes.finetune_settings import FineTune

__all__ = ["EncryptedJob", "for_machine", "job_template", "read_job"]

_MORE = (
    Option("training", "steps", 0, "Steps in all; 0: those of `epochs`."),
    Option(
        "training",
        "save_every",
        25,
        "Steps after which the key holder reads what is trained, for a model folder to go on from; "
        "0: at the end alone.",
    ),
    *BOOTSTRAP,
)

_ENCRYPTION: Mapping[str, Mapping[str, Any]] = {
    "encrypted": {
        "log_n": 14,
        "levels": 4,
        "scale_bits": 40,
        "first_bits": 50,
        "special_bits": 60,
    },
    "twin": {
        "exp_degree": 15,
        "gelu_degree": 15,
        "gelu_tanh_degree": 15,
        "inv_degree": 15,
        "inv_sqrt_degree": 15,
        "relu_degree": 15,
        "silu_degree": 15,
        "softmax_inv_degree": 31,
        "tanh_degree": 31,
    },
}
"""The ring with the shortest chain that holds a polynomial of degree 15 at 128 bits: what costs a
refresh is cheaper than what costs a level. Degrees are those that it holds between two refreshes,
where the error they leave does not matter: the twin is trained with it."""


def _usual(row: FineTune) -> FineTune:
    """What is other than in training in the clear: less of everything that costs seconds."""
    return dataclasses.replace(row, epochs=1, batch=8, rank=2, adapted=("query", "key", "value"))


@dataclasses.dataclass(frozen=True)
class EncryptedJob:
    """One encrypted fine-tuning.

    Attributes:
      task, start, attention, length, train_rows: as of `Job`.
      settings: method, rates, adapters, rows of a step, seed.
      how: ring, polynomials, factor of the loss.
      steps: 0 for those of all epochs. save_every: steps between two model folders, 0: none.
      refresher: who refreshes. bootstrap: of the file's section of that name.
      off: what the file asks for and an encrypted step does not do.
    """

    task: str
    start: str
    attention: str
    length: int
    train_rows: int
    settings: FineTune
    how: EncryptionSettings
    steps: int = 0
    save_every: int = 0
    off: tuple[str, ...] = ()
    refresher: Refresher = KEY_HOLDER
    bootstrap: tuple[tuple[str, Any], ...] = ()

    def plain(self, start: str, data: str) -> dict[str, Any]:
        """What a run folder belongs to, as JSON data. start, data: digests of the model to start
        from and of the training rows.
        """
        own = {
            "kind": KIND,
            "task": self.task,
            "name": Path(self.start).name,
            "start": start,
            "data": data,
            "attention": self.attention,
            "length": self.length,
            "train_rows": self.train_rows,
            "settings": dataclasses.asdict(self.settings),
            "how": dataclasses.asdict(self.how),
            "steps": self.steps,
        }
        if self.refresher != KEY_HOLDER:
            own["refresher"] = dataclasses.asdict(self.refresher)
        return json.loads(json.dumps(own))

    @property
    def folder(self) -> str:
        """Name of its run folder where none is given."""
        task = self.task.rsplit("/", 1)[-1]
        return f"{task}-{self.settings.method}-{self.attention}-encrypted-{self.settings.seed}"


def job_template() -> str:
    """A TOML file with every option at its default, explained."""
    return template(
        options_of_a_job(_usual(FineTune()), 0, _ENCRYPTION, _MORE),
        "Settings of `hesim encrypted-finetune`: those of `hesim finetune`, whose files it reads "
        "too, with other defaults. Every option may be left out; rates, epsilon, pairs and pooling "
        "then are those of the task's row in experiments/training/settings/glue.toml.",
    )


def read_job(
    path: str | Path | None = None, given: Mapping[str, Any] | None = None
) -> EncryptedJob:
    """The job that a file describes, with options of the command line (`given`: section.name to
    value, None where nothing was said) in place of the file's. ExperimentError names what is wrong.
    """
    said = said_of(given)
    row, method = row_of(path, said, more=_MORE)
    try:
        values = job_values(
            path, said, _usual(row.fine_tune(method)), row.train_rows, _ENCRYPTION, _MORE
        )
        off = _switched_off(values)
        length = values["task"]["length"]
        values["training"]["buckets"] = (length,)
        job, how = job_of(values, None), as_encrypted_of(values)
    except (ValueError, TypeError) as error:
        raise ExperimentError(f"{path or 'the settings'}: {error}") from error
    checked = _checked(job, how, values["training"], off)
    return dataclasses.replace(checked, bootstrap=tuple(values["bootstrap"].items()))


def for_machine(
    job: EncryptedJob,
    backend: str,
    *,
    insecure: int | None = None,
    key_holder: bool = False,
) -> EncryptedJob:
    """The job on a ring of a machine, with the refreshes that it has.

    insecure, key_holder: as `experiments.machines.suited` takes them.

    Raises ExperimentError for settings whose ring is none for the machine, else as that.
    """
    if find(backend).digits is not None and job.how.ckks.digits is None:
        usual = dict(_ENCRYPTION["encrypted"])
        if any(getattr(job.how.ckks, name) != value for name, value in usual.items()):
            raise ExperimentError(
                f"the ring in [encrypted] has no digits, in which {backend} switches keys: "
                "add digits = 2, or leave the ring out"
            )
    how = machines.based(job.how, backend)
    own = dict(job.bootstrap)
    found = machines.suited(how, backend, own, insecure=insecure, key_holder=key_holder)
    return dataclasses.replace(job, how=found.how, refresher=found.refresher)


def _switched_off(values: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """Take out of the values what only training in the clear does, and say what that was."""
    training, off = values["training"], []
    if training["dropout"]:
        off.append(f"dropout = {training['dropout']}: nothing is random in an encrypted step")
    if values["penalty"]["penalty"]:
        off.append("the range penalty: nobody sees a value leave its range")
    if training["accumulate"] != 1 or training["precision"] != "float32" or training["remat"]:
        off.append("accumulate, precision and remat: a step is one whole of encrypted numbers")
    training |= {"dropout": 0.0, "accumulate": 1, "precision": "float32", "remat": False}
    values["penalty"]["penalty"] = 0.0
    return tuple(off)


def _checked(
    job: Job, how: EncryptionSettings, training: Mapping[str, Any], off: tuple[str, ...]
) -> EncryptedJob:
    if job.devices != ONE_DEVICE:
        raise ExperimentError(
            "[devices] spreads training in the clear; an encrypted step is spread over --workers"
        )
    for name in ("steps", "save_every"):
        if training[name] < 0:
            raise ExperimentError(f"{name} is {training[name]}, but at least 0")
    return EncryptedJob(
        task=job.task,
        start=job.start,
        attention=job.attention,
        length=job.length,
        train_rows=job.train_rows,
        settings=job.settings,
        how=how,
        steps=training["steps"],
        save_every=training["save_every"],
        off=off,
    )
