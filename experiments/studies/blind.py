"""What a study does with one model: predict its encrypted run, blind, then run it encrypted.

The prediction draws keys of its own and is made before anything is encrypted. Rings here may be too
small to be secure, and scales so small that noise changes labels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import ExperimentError
from experiments.lock import alone_in
from he_backend.errors import ValueRangeError
from he_backend.local import run_local
from he_backend.machines.protocol import Machine
from he_backend.machines.table import find
from he_backend.report import twin as exact_twin
from hesim.circuit.circuit import Circuit
from hesim.circuit.plain.slots import PlainMachine
from hesim.errors import ValueOverflowWarning
from hesim.files import write_whole
from hesim.noise.placement import of_circuit
from hesim.params import CKKSParams
from hesim.predict import predict
from hesim.program import Program
from models.config import EncoderConfig
from models.data.batches import Batch, select_rows
from models.data.datasets import Split, load
from models.data.tokenizer import Tokenizer
from models.recipes.classify import encode
from models.train.fingerprint import described, differing

__all__ = [
    "Measured",
    "MODEL",
    "Sentences",
    "batched",
    "claim",
    "claimed",
    "insecure",
    "kept",
    "measure",
    "read",
    "reviews",
    "standard_error",
]

MODEL = EncoderConfig(
    layers=1, hidden=16, heads=2, ffn=32, sequence=16, vocabulary=4096, pooler=(16,), classes=2
)
"""What a study trains and encrypts by the dozen: as small as learns anything."""

Sentences = tuple[Batch, Batch, Batch]
"""Training, validation and held-out sentences."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One model, predicted and measured on batches of sentences, each under keys of its own.

    Errors are root mean squares, over batches and keys, of logits less the polynomial model's in
    the clear, each counted as at most the distance between the 1 % and the 99 % quantile of the
    logits in the clear, since a polynomial runs away to any size once its argument has left its
    domain. A batch that ran away beyond what the modulus holds is one that the client refuses: its
    sentences count as guesses, its errors as that distance. Scores are shares of the sentences that
    are right: in the clear, simulated, and encrypted, means over keys.

    simulated_bits, encrypted_bits: standard errors of the binary logarithms of the two errors;
    simulated_points, encrypted_points: of the two scores; by what differs between keys on the same
    sentences, infinite for a single key. simulated_lost, encrypted_lost: shares of the batches that
    were refused. seconds: of the encrypted evaluation of all sentences under one key each.
    """

    simulated_error: float
    encrypted_error: float
    simulated_bits: float
    encrypted_bits: float
    twin_score: float
    simulated_score: float
    encrypted_score: float
    simulated_points: float
    encrypted_points: float
    simulated_lost: float
    encrypted_lost: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class _Side:
    """What runs of one kind found: figures by key and batch, arrays (keys, batches)."""

    squares: np.ndarray
    scores: np.ndarray
    lost: np.ndarray

    @classmethod
    def of(cls, runs: Sequence[dict[str, float]], keys: int) -> _Side:
        """Of runs in order, those of the first key first."""
        names = ("square", "score", "lost")
        return cls(*(np.array([run[n] for run in runs]).reshape(keys, -1) for n in names))

    def figures(self, side: str) -> dict[str, float]:
        """The fields of `Measured` that begin with the name of this side."""
        mean = float(self.squares.mean())
        return {
            f"{side}_error": math.sqrt(mean),
            f"{side}_bits": standard_error(self.squares) / (2 * math.log(2) * mean),
            f"{side}_score": float(self.scores.mean()),
            f"{side}_points": standard_error(self.scores),
            f"{side}_lost": float(self.lost.mean()),
        }


def measure(
    program: Program,
    circuit: Circuit,
    batches: Sequence[Sequence[Any]],
    labels: Sequence[np.ndarray],
    *,
    keys: int,
    encrypted_keys: int,
    backend: str,
    folder: Path,
) -> Measured:
    """Logits of `program`, simulated under `keys` random keys a batch, then run under
    `encrypted_keys` fresh ones a batch.

    circuit: of the program. batches: arguments of the program, of one shape each. labels: class
    numbers (n,) of each. folder: what it holds already is not done again. What is decrypted is held
    against no range, since noise may carry it out of any. Raises ValueOverflowError where values
    without noise wrap around the modulus already, ExperimentError if a file cannot be read.
    """
    twins = [exact_twin.evaluate(program, batch) for batch in batches]
    clear = [np.asarray(twin.outputs) for twin in twins]
    most = float(np.ptp(np.quantile(clear, (0.01, 0.99))))
    operands = [circuit.publics.evaluate(program.flatten(batch)) for batch in batches]
    plain = PlainMachine(circuit.params, circuit.slots, circuit.rotation_steps)

    def simulated() -> list[dict[str, float]]:
        for twin, publics in zip(twins, operands, strict=True):
            _run(circuit, plain, twin.inputs, publics)  # refuses what overflows without any noise
        schedule, runs = of_circuit(program, circuit), []
        for seed in range(keys * len(batches)):
            batch = seed % len(batches)
            arguments = batches[batch]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ValueOverflowWarning)  # counted as lost
                found = predict(program, circuit.params, arguments, 1, schedule=schedule, seed=seed)
            logits = np.asarray(found.outputs)
            if found.overflows:
                logits = np.full_like(logits, np.nan)
            runs.append(_figures(logits, clear[batch], labels[batch], most))
        return runs

    def encrypted(batch: int) -> dict[str, float]:
        keyed = (circuit.params, circuit.rotation_steps, circuit.slots)
        machine = find(backend).load().generate(*keyed)
        started = time.perf_counter()
        try:
            logits = _run(circuit, machine, twins[batch].inputs, operands[batch])
        except ValueRangeError:  # the client refuses what has wrapped around the modulus
            logits = np.full_like(clear[batch], np.nan)
        seconds = time.perf_counter() - started
        return _figures(logits, clear[batch], labels[batch], most) | {"seconds": seconds}

    folder.mkdir(parents=True, exist_ok=True)
    said = kept(folder / "simulated.json", simulated)
    met = [
        kept(folder / f"key-{key}-{batch}.json", lambda batch=batch: encrypted(batch))
        for key in range(encrypted_keys)
        for batch in range(len(batches))
    ]
    simulation, encryption = _Side.of(said, keys), _Side.of(met, encrypted_keys)
    right = [_score(rows, found) for rows, found in zip(clear, labels, strict=True)]
    return Measured(
        **simulation.figures("simulated"),
        **encryption.figures("encrypted"),
        twin_score=float(np.mean(right)),
        seconds=sum(run["seconds"] for run in met) / encrypted_keys,
    )


def batched(sentences: Batch, count: int, size: int) -> list[Batch]:
    """The first `count` sentences, `size` at a time. ExperimentError if that leaves a rest."""
    if count % size:
        raise ExperimentError(
            f"{count} sentences make no whole batches of {size}: take a multiple of that"
        )
    return [select_rows(sentences, rows) for rows in np.arange(count).reshape(-1, size)]


def standard_error(values: np.ndarray) -> float:
    """Of the mean of values (keys, batches), by what differs between keys on the same batch: what
    differs between batches is shared by all that is compared. Infinite for a single key.
    """
    keys, batches = values.shape
    if keys < 2:
        return math.inf
    return math.sqrt(float(values.var(0, ddof=1).mean()) / (keys * batches))


def insecure(**sizes: int) -> CKKSParams:
    """Parameters without a security check, whose warning the study says itself, once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CKKSParams(**sizes, security=None)


def reviews(config: EncoderConfig, held_out: int) -> tuple[EncoderConfig, Sentences]:
    """The movie reviews as numbers, the held-out ones in a fixed random order (the file is sorted),
    `held_out` of them; the configuration with their vocabulary and classes.

    Raises ExperimentError if there are fewer, DataError as `models.data.datasets.load` does.
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
    test = select_rows(numbers(found.test), rows)
    return config, (numbers(found.train), numbers(found.validation), test)


def claim(folder: str | Path, study: Any, backend: str, row: type | None = None) -> Path:
    """The folder of a study, made if absent. row: the dataclass of what it keeps, so that one of an
    older version is known. Raises ExperimentError if it holds another study, or none.
    """
    path = Path(folder)
    known = path / "study.json"
    mine: dict[str, Any] = {"backend": backend, "study": study}
    if row is not None:
        mine["figures"] = [field.name for field in dataclasses.fields(row)]
    if not known.exists():
        _refuse_other_files(path)
        path.mkdir(parents=True, exist_ok=True)
        write_whole(known, json.dumps(described(mine)).encode())
    elif said := differing(read(known), mine):
        raise ExperimentError(
            f"{path} holds another study, or one of other settings or of an older version "
            f"({'; '.join(said[:4])}): choose another folder, or delete that one to start again"
        )
    return path


@contextlib.contextmanager
def claimed(
    folder: str | Path, study: Any, backend: str, row: type | None = None
) -> Iterator[Path]:
    """The folder that `claim` gives, with other processes kept from working in it. Raises
    ExperimentError as that does, and where another process works in it.
    """
    path = Path(folder)
    if not (path / "study.json").exists():
        _refuse_other_files(path)
    with alone_in(path):
        yield claim(path, study, backend, row)


def _refuse_other_files(path: Path) -> None:
    if path.is_dir() and any(file.name != "lock" for file in path.iterdir()):
        raise ExperimentError(f"{path} holds files that are no study: choose another folder")


def read(path: Path) -> Any:
    """What a JSON file of a study holds. Raises ExperimentError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExperimentError(
            f"{path} is damaged ({error}): delete it, and what it held is computed again"
        ) from error


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """Figures that a file holds, made and written there if it does not exist. Raises
    ExperimentError if it is damaged.
    """
    if not path.exists():
        write_whole(path, json.dumps(make()).encode())
    return read(path)


def _figures(
    logits: np.ndarray, clear: np.ndarray, labels: np.ndarray, most: float
) -> dict[str, float]:
    """Mean square of the error, counted as at most `most`, and share of the sentences that are
    right; logits (n, k). A run with a logit beyond all bounds is lost as a whole, since a client
    refuses it.
    """
    lost = not np.isfinite(logits).all()
    error = np.full_like(clear, most) if lost else np.minimum(np.abs(logits - clear), most)
    score = 1 / logits.shape[-1] if lost else _score(logits, labels)
    return {"square": float(np.mean(error**2)), "score": score, "lost": float(lost)}


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


def _score(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows that are right."""
    return float(np.mean(logits.argmax(-1) == labels))
