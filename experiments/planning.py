"""`hesim plan`: what a run of a model would spend, without training, keys or encryption."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import hesim
from experiments.demo.settings import Settings
from experiments.errors import ExperimentError
from experiments.machines import bootstrap_of, suited
from experiments.validation.subject import find_subject, of_sentences
from he_backend.machines.table import DEFAULT_MACHINE
from hesim.circuit.circuit import Circuit
from hesim.errors import EmptySlotsWarning
from hesim.params import CKKSParams
from hesim.program import Program
from hesim.progress import Reporter
from models.data.batches import Batch
from models.encrypted.forward import forward_program
from models.nn.encoder import Model
from models.nn.lora import Params

__all__ = ["Arguments", "Planned", "compile_forward", "forward_arguments", "plan_model"]

Arguments = tuple[Params, np.ndarray, np.ndarray]
"""Of a forward pass: weights, embedded rows to encrypt, mask."""


@dataclasses.dataclass(frozen=True)
class Planned:
    """A plan: the program and its Circuit, and which model with which polynomials they are of."""

    program: Program
    circuit: Circuit
    model: Model
    polynomials: str


def plan_model(
    name: str,
    batch: int | None = None,
    *,
    length: int | None = None,
    answer: str | None = None,
    ring: dict[str, Any] | None = None,
    config: str | Path | None = None,
    backend: str = DEFAULT_MACHINE,
    insecure: int | None = None,
    key_holder: bool = False,
    progress: Reporter | None = None,
    **options: Any,
) -> Planned:
    """The forward pass of a model, traced and compiled.

    Levels and counts do not depend on values, so neither weights nor data are needed: polynomials
    that the model does not bring along are fitted over usual ranges, with the degrees that
    evaluation takes.

    Args:
      name: as `find_subject` takes it: a preset, a shipped model, or the folder of a model that
        `hesim finetune` or `convert` wrote, or of a demo.
      batch: sentences, or pairs of them, side by side in the slots; the demo's 256 by default. Of
        cosine similarities, sentences.
      length: tokens of a sentence; by default as many as the model was trained on.
      answer: "logits", or "cosine": embeddings of sentences; by default what the model is good for.
      ring: fields of `CKKSParams` that differ from those of the model, or of the demo.
      config: TOML file with the sections `encrypted`, `twin` and `bootstrap`.
      backend: the machine that it is to run on, which need not be there.
      insecure, key_holder: as for `Validation`.
      options: of `hesim.compile`.

    Raises:
      ExperimentError: no such model, or one that encryption cannot run. Else as `hesim.compile`.
    """
    subject = find_subject(name, config, backend)
    model = subject.planned(length)
    if answer not in (None, "logits", "cosine"):
        raise ExperimentError(f"answer {answer!r} is neither logits nor cosine")
    if answer is None:
        answer = subject.answer
    if answer == "cosine":
        model = dataclasses.replace(model, config=of_sentences(model.config))
    how = dataclasses.replace(
        subject.how, ckks=dataclasses.replace(subject.how.ckks, **(ring or {}))
    )
    own = bootstrap_of(config)
    chosen = suited(how, backend, own, insecure=insecure, key_holder=key_holder)
    members = Settings().batch if batch is None else batch
    options = {"refresher": chosen.refresher} | options
    circuit = compile_forward(
        *(model, chosen.how.ckks, members, answer), progress=progress, **options
    )
    assert circuit.program is not None
    return Planned(circuit.program, circuit, model, subject.polynomials)


def forward_arguments(model: Model, params: Params, rows: Batch) -> Arguments:
    """What a compiled forward pass is run with for these rows: weights, the rows embedded, (rows,
    tokens, features), and their mask. The client looks the embedding up, in the clear.
    """
    return params, np.asarray(model.embed(params, rows.tokens, rows.types)), rows.mask


def compile_forward(
    model: Model,
    ckks: CKKSParams,
    batch: int,
    answer: str,
    *,
    samples: Sequence[Arguments] = (),
    progress: Reporter | None = None,
    **options: Any,
) -> Circuit:
    """The Circuit of a twin's forward pass for a batch of so many rows; what `hesim plan` prints is
    what `hesim validate` runs.

    answer: "logits", or "cosine", whose Circuit gives embeddings. samples: `forward_arguments` like
    those of a run, by whose values a plan for bootstraps brings them into range. options: of
    `hesim.compile`, and raises as it does.
    """
    program = forward_program(model, batch, "logits" if answer == "logits" else "embeddings")
    if samples:
        options["calibration"] = hesim.calibrate(program, samples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptySlotsWarning)  # the printed Circuit says it, too
        return hesim.compile(program, ckks, progress=progress, **options)
