"""What a study does with one model: predict its encrypted run, blind, then run it encrypted.

The prediction draws keys of its own and is made before anything is encrypted. Rings here may be too
small to be secure, and scales so small that noise changes labels.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import ExperimentError
from he_backend import exact
from he_backend.errors import ValueRangeError
from he_backend.local import run_local
from he_backend.machines.protocol import Machine
from he_backend.machines.pyfhel import PyfhelMachine
from he_backend.machines.slots import SlotsMachine
from hesim.circuit.circuit import Circuit
from hesim.params import CKKSParams
from hesim.predictions import predict
from hesim.program import Program
from hesim.schedule import of_circuit
from models.config import EncoderConfig
from models.data import Split, load
from models.files import write_whole
from models.recipe import encode
from models.tokens import Tokenizer
from models.train import Batch, take

__all__ = ["Measured", "Sentences", "claim", "insecure", "measure", "reviews"]

Sentences = tuple[Batch, Batch, Batch]
"""Training, validation and held-out sentences."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One model, predicted and measured.

    Errors are root mean squares, over keys, of logits less the polynomial model's in the clear,
    each counted as at most the distance between the lowest and the highest logit in the clear,
    since a polynomial runs away to any size once noise has carried its argument out of its domain.
    A run that ran away beyond what the modulus holds is one that the client refuses: its sentences
    count as guesses, its errors as that distance.
    encrypted_bits is the standard error of the binary logarithm of the encrypted one, infinite for
    a single key. Scores are shares of the sentences that are right: in the clear, simulated, and
    encrypted, means over keys. seconds: of the encrypted evaluation under one key.
    """

    simulated_error: float
    encrypted_error: float
    encrypted_bits: float
    twin_score: float
    simulated_score: float
    encrypted_score: float
    seconds: float


def measure(
    program: Program,
    circuit: Circuit,
    arguments: Sequence[Any],
    labels: np.ndarray,
    *,
    keys: int,
    encrypted_keys: int,
    backend: str,
    folder: Path,
) -> Measured:
    """Logits of `program`, simulated under `keys` random keys, then run under `encrypted_keys`
    fresh ones.

    circuit: of the program. labels: class numbers (n,). folder: what it holds already is not done
    again. What is decrypted is held against no range, since noise may carry it out of any. Raises
    ValueOverflowError where values without noise wrap around the modulus already.
    """
    twin = exact.evaluate(program, arguments)
    clear = np.asarray(twin.outputs)
    operands = circuit.publics.evaluate(program.flatten(arguments))
    plain = SlotsMachine(circuit.params, circuit.slots, circuit.rotation_steps)

    def simulated() -> dict[str, float]:
        _run(circuit, plain, twin.inputs, operands)  # refuses what overflows without any noise
        schedule = of_circuit(program, circuit)
        found = [
            predict(program, circuit.params, arguments, 1, schedule=schedule, seed=seed).outputs
            for seed in range(keys)
        ]
        return _figures(np.asarray(found), clear, labels)

    def encrypted() -> dict[str, float]:
        keyed = (circuit.params, circuit.rotation_steps, circuit.slots)
        machine = plain if backend == "slots" else PyfhelMachine.generate(*keyed)
        started = time.perf_counter()
        try:
            logits = _run(circuit, machine, twin.inputs, operands)
        except ValueRangeError:  # the client refuses what has wrapped around the modulus
            logits = np.full_like(clear, np.nan)
        seconds = time.perf_counter() - started
        return _figures(logits[None], clear, labels) | {"seconds": seconds}

    folder.mkdir(parents=True, exist_ok=True)
    said = _kept(folder / "simulated.json", simulated)
    runs = [_kept(folder / f"key-{key}.json", encrypted) for key in range(encrypted_keys)]
    squares = np.array([run["square"] for run in runs])
    return Measured(
        simulated_error=math.sqrt(said["square"]),
        encrypted_error=float(np.sqrt(squares.mean())),
        encrypted_bits=_standard_bits(squares),
        twin_score=_score(clear, labels),
        simulated_score=said["score"],
        encrypted_score=float(np.mean([run["score"] for run in runs])),
        seconds=float(np.mean([run["seconds"] for run in runs])),
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


def _kept(path: Path, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Figures that a file holds, made and written there if it does not exist."""
    if not path.exists():
        write_whole(path, json.dumps(make()).encode())
    return json.loads(path.read_text(encoding="utf-8"))


def _figures(logits: np.ndarray, clear: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean square of the error and share of the sentences that are right; logits (keys, n, k).

    A run with a logit beyond all bounds is lost as a whole, since a client refuses it.
    """
    lost = ~np.isfinite(logits).all((1, 2), keepdims=True)
    logits = np.where(lost, np.nan, logits)
    error, most = np.abs(logits - clear), np.ptp(clear)
    return {
        "square": float(np.mean(np.where(error < most, error, most) ** 2)),  # NaN is not below
        "score": float(np.mean([_score(one, labels) for one in logits])),
    }


def _run(
    circuit: Circuit,
    machine: Machine,
    inputs: Sequence[np.ndarray],
    operands: Sequence[np.ndarray],
) -> np.ndarray:
    """The first output of a Circuit, decrypted."""
    tap = circuit.outputs[0]
    assert tap is not None
    vectors, _ = run_local(circuit, machine, inputs, operands, tap.ciphers.tolist())
    return tap.read(vectors)


def _standard_bits(squares: np.ndarray) -> float:
    """Standard error of the binary logarithm of the root of their mean."""
    if len(squares) < 2:
        return math.inf
    relative = float(squares.std(ddof=1) / squares.mean()) / math.sqrt(len(squares))
    return relative / (2 * math.log(2))


def _score(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows that are right; one that is lost counts as a guess."""
    finite = np.isfinite(logits).all(-1)
    right = np.where(finite, logits.argmax(-1) == labels, 1 / logits.shape[-1])
    return float(right.mean())
