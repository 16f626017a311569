"""What a study does with one model: predict its encrypted run, blind, then run it encrypted.

The prediction draws keys of its own and is made before anything is encrypted. Rings here may be too
small to be secure, and scales so small that noise changes labels.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import he_backend
import hesim
from experiments.errors import ExperimentError
from experiments.folder import write_whole
from hesim.circuit.circuit import Circuit, Kind
from hesim.params import CKKSParams
from hesim.predictions import predict
from hesim.program import Program
from hesim.schedule import of_circuit
from models import metrics
from models.config import EncoderConfig
from models.data import Split, load
from models.recipe import encode
from models.tokens import Tokenizer
from models.train import Batch, take

__all__ = ["Measured", "Sentences", "claim", "insecure", "measure", "reviews"]

Sentences = tuple[Batch, Batch, Batch]
"""Training, validation and held-out sentences."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One model, predicted and measured.

    Errors are root mean squares of logits less the polynomial model's in the clear. Scores are
    shares of the sentences that are right: in the clear, simulated (mean over keys), and encrypted
    under one key. seconds: of the encrypted evaluation.
    """

    simulated_error: float
    encrypted_error: float
    twin_score: float
    simulated_score: float
    encrypted_score: float
    seconds: float


def measure(
    program: Program,
    params: CKKSParams,
    arguments: Sequence[Any],
    labels: np.ndarray,
    *,
    keys: int,
    backend: str,
) -> Measured:
    """Logits of `program`, simulated under `keys` random keys and then run on a machine.

    labels: class numbers (n,). What the client decrypts is held against no range, since noise may
    carry it out of any. Raises as `hesim.compile` and `he_backend.run` do.
    """
    circuit = hesim.compile(program, params)
    schedule = of_circuit(program, circuit)
    squares, scores = [], []
    exact = np.zeros(0)
    for seed in range(keys):
        found = predict(program, params, arguments, keys=1, schedule=schedule, seed=seed)
        exact, noisy = np.asarray(found.exact), np.asarray(found.outputs)
        squares.append(np.mean((noisy - exact) ** 2))
        scores.append(_score(noisy, labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of values beyond a polynomial's domain
        report = he_backend.run(
            program,
            *arguments,
            circuit=circuit,
            backend=backend,
            outside="warn",
            ranges=_unbounded(circuit),
        )
    outputs = np.asarray(report.outputs)
    return Measured(
        simulated_error=float(np.sqrt(np.mean(squares))),
        encrypted_error=float(np.sqrt(np.mean((outputs - exact) ** 2))),
        twin_score=_score(exact, labels),
        simulated_score=float(np.mean(scores)),
        encrypted_score=_score(outputs, labels),
        seconds=float(report.seconds),
    )


def insecure(**sizes: int) -> CKKSParams:
    """Parameters without a security check, whose warning the study says itself, once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CKKSParams(**sizes, security=None)


def reviews(config: EncoderConfig, held_out: int) -> tuple[EncoderConfig, Sentences]:
    """The movie reviews as numbers, the held-out ones in a fixed random order (the file is sorted),
    `held_out` of them; the configuration with their vocabulary and classes.

    Raises ExperimentError if there are fewer, DataError as `models.data.load` does.
    """
    found = load("reviews")
    if len(found.test) < held_out:
        raise ExperimentError(
            f"{found.name} holds out {len(found.test)} sentences, fewer than {held_out}"
        )
    tokenizer = Tokenizer.train(found.train.texts, size=config.vocabulary)
    config = config.replace(vocabulary=tokenizer.size, classes=len(found.classes))

    def numbers(split: Split) -> Batch:
        return encode(tokenizer, split, config.sequence)

    rows = np.random.default_rng(0).permutation(len(found.test))[:held_out]
    test = take(numbers(found.test), rows)
    return config, (numbers(found.train), numbers(found.validation), test)


def claim(folder: str | Path, study: Any, backend: str) -> Path:
    """The folder of a study, made if absent. Raises ExperimentError if it holds another study."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    identity = json.dumps({"backend": backend, "study": repr(study)})
    known = path / "study.json"
    if not known.exists():
        write_whole(known, identity.encode())
    elif known.read_text(encoding="utf-8") != identity:
        raise ExperimentError(f"{path} holds another study: choose another folder")
    return path


def _score(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows that are right; one that ran away to infinity or NaN is not."""
    finite = np.isfinite(logits).all(-1)
    return metrics.accuracy(np.where(finite, logits.argmax(-1), -1), labels)


def _unbounded(circuit: Circuit) -> dict[int, tuple[float, float]]:
    """No range for anything that the client decrypts."""
    refreshed = np.flatnonzero(circuit.kind == Kind.REFRESH)
    found = {int(circuit.arg[circuit.args(int(i))][0]) for i in refreshed}
    found.update(int(c) for tap in circuit.outputs if tap is not None for c in tap.ciphers)
    return dict.fromkeys(sorted(found), (-math.inf, math.inf))
