"""Does training with simulated noise help the encrypted model? A paired study that resumes.

For each seed one model is trained exactly, its polynomials are fitted, and then it is trained on
twice from there through the polynomials: without noise, and with the noise of the ring on which it
will run. Both see the same batches in the same order. Then both run encrypted on the same held-out
sentences, at a scale so small that noise changes labels. The ring is too small to be secure.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import he_backend
import hesim
from experiments.errors import ExperimentError
from hesim.circuit.circuit import Circuit, Kind
from hesim.params import CKKSParams
from hesim.predictions import predict
from hesim.schedule import of_circuit
from models import metrics
from models.config import EncoderConfig
from models.data import load
from models.recipe import Recipe, Trained, encode, train_classifier
from models.sites import FitSettings
from models.tokens import Tokenizer
from models.train import Batch, simulated_forward, take

__all__ = ["NOISE_STUDY", "Arm", "NoiseStudy", "difference", "run_noise_study", "table"]

_FIT = FitSettings(
    degrees=(("exp", 15), ("inv_sqrt", 15), ("relu", 7), ("tanh", 7)),
    ranges=(("exp", (-60.0, 0.0)), ("inv_sqrt", (0.2, 100.0))),
    margin=0.3,
)
"""Wide ranges, over which polynomials are steep: they magnify noise by five or six bits."""


@dataclasses.dataclass(frozen=True)
class NoiseStudy:
    """Seeds, ring, model and training of the study.

    seeds: models trained twice. sentences: held-out ones that are encrypted. keys: random keys of
    the simulated score. log_n ... special_bits: of `CKKSParams`, without security. recipe: its last
    `polynomial_steps` are those that one of the two goes through with noise.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    sentences: int = 1024
    keys: int = 4
    log_n: int = 12
    levels: int = 6
    scale_bits: int = 23
    first_bits: int = 33
    special_bits: int = 33
    config: EncoderConfig = EncoderConfig(
        layers=1, hidden=16, heads=2, ffn=32, sequence=8, vocabulary=2048, pooler=(16,), classes=2
    )
    recipe: Recipe = Recipe(
        steps=450,
        polynomial_steps=200,
        evaluate_every=50,
        save_every=50,
        fit=_FIT,
    )

    @property
    def ckks(self) -> CKKSParams:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said once, by `run_noise_study`
            return CKKSParams(
                log_n=self.log_n,
                levels=self.levels,
                scale_bits=self.scale_bits,
                first_bits=self.first_bits,
                special_bits=self.special_bits,
                security=None,
            )


NOISE_STUDY = NoiseStudy()


@dataclasses.dataclass(frozen=True)
class Arm:
    """One training and its encrypted run.

    noise: whether it was trained with noise. Scores are shares of the sentences that are right:
    of the polynomial model in the clear, simulated (mean over keys), and encrypted under one key.
    error: root mean square of encrypted logits less the polynomial model's; simulated_error: the
    same, predicted. seconds: of the encrypted evaluation.
    """

    seed: int
    noise: bool
    twin_score: float
    simulated_score: float
    encrypted_score: float
    simulated_error: float
    error: float
    seconds: float


def run_noise_study(
    study: NoiseStudy,
    folder: str | Path,
    *,
    backend: str = "pyfhel",
    data: tuple[Batch, Batch, Batch] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Arm]:
    """Train, simulate and encrypt both arms of every seed, and write `arms.csv` and `arms.json`.

    Args:
      study: what to run.
      folder: what it holds of this study already is not done again.
      backend: "pyfhel", or "slots", which encrypts nothing and shows the machinery only.
      data: training, validation and held-out sentences; the movie reviews by default.
      say: is told about every finished step.

    Raises:
      ExperimentError: the folder belongs to another study.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, study, backend)
    say(f"{study.ckks}: the security check is switched off, for studies only")
    config, parts = _data(study, data)
    arms = []
    for seed in study.seeds:
        for noise in (False, True):
            path = folder / f"seed-{seed}-{'noise' if noise else 'plain'}.json"
            if not path.exists():
                say(f"seed {seed}: training {'with' if noise else 'without'} noise")
                trained = _train(study, config, parts, seed, noise, path.with_suffix(""))
                _write(path, json.dumps(_measure(study, trained, parts[2], backend)))
            arm = Arm(seed, noise, **json.loads(path.read_text(encoding="utf-8")))
            say(
                f"seed {seed}, trained {'with' if noise else 'without'} noise: right "
                f"{arm.twin_score:.1%} in the clear, {arm.simulated_score:.1%} simulated, "
                f"{arm.encrypted_score:.1%} {_encrypted(backend)}; error "
                f"{arm.simulated_error:.3g} predicted, {arm.error:.3g} measured"
            )
            arms.append(arm)
    rows = [dataclasses.asdict(arm) for arm in arms]
    _write(folder / "arms.csv", _csv(rows))
    _write(folder / "arms.json", json.dumps({"arms": rows, "difference": difference(arms)}))
    return arms


def difference(arms: Sequence[Arm], score: str = "encrypted_score") -> dict[str, float]:
    """Mean of (with noise - without) of a score over seeds, and its 95 % interval by Student's t.

    Keys: seeds, mean, low, high; the interval is infinite for one seed.
    """
    by_seed: dict[int, dict[bool, float]] = {}
    for arm in arms:
        by_seed.setdefault(arm.seed, {})[arm.noise] = float(getattr(arm, score))
    each = np.array([pair[True] - pair[False] for pair in by_seed.values() if len(pair) == 2])
    if not len(each):
        raise ExperimentError("no seed has both of its trainings: run the study first")
    half = math.inf
    if len(each) > 1:
        quantile = float(stats.t.ppf(0.975, len(each) - 1))
        half = quantile * float(each.std(ddof=1)) / math.sqrt(len(each))
    mean = float(each.mean())
    return {"seeds": float(len(each)), "mean": mean, "low": mean - half, "high": mean + half}


def table(arms: Sequence[Arm], backend: str = "pyfhel") -> str:
    """All arms, and the paired differences of the three scores, as text."""
    lines = [
        f"{'seed':>4} {'noise':>5} {'in the clear':>12} {'simulated':>10} "
        f"{_encrypted(backend):>13} {'predicted error':>15} {'measured':>9}"
    ]
    for arm in arms:
        lines.append(
            f"{arm.seed:>4} {'on' if arm.noise else 'off':>5} {arm.twin_score:>12.1%} "
            f"{arm.simulated_score:>10.1%} {arm.encrypted_score:>13.1%} "
            f"{arm.simulated_error:>15.3g} {arm.error:>9.3g}"
        )
    names = (("twin_score", "in the clear"), ("simulated_score", "simulated"))
    for name, label in (*names, ("encrypted_score", _encrypted(backend))):
        found = difference(arms, name)
        lines.append(
            f"with noise less without, {label}: {100 * found['mean']:+.1f} points, 95 % interval "
            f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f} ({found['seeds']:.0f} seeds)"
        )
    return "\n".join(lines)


def _encrypted(backend: str) -> str:
    return "encrypted" if backend == "pyfhel" else "plain vectors"


def _data(
    study: NoiseStudy, data: tuple[Batch, Batch, Batch] | None
) -> tuple[EncoderConfig, tuple[Batch, Batch, Batch]]:
    if data is not None:
        return study.config, data
    found = load("reviews")
    tokenizer = Tokenizer.train(found.train.texts, size=study.config.vocabulary)
    config = study.config.replace(vocabulary=tokenizer.size, classes=len(found.classes))
    train, validation, test = (
        encode(tokenizer, split, config.sequence)
        for split in (found.train, found.validation, found.test)
    )
    if len(test.tokens) < study.sentences:
        raise ExperimentError(
            f"{found.name} holds out {len(test.tokens)} sentences, fewer than {study.sentences}"
        )
    return config, (train, validation, test)


def _train(
    study: NoiseStudy,
    config: EncoderConfig,
    parts: tuple[Batch, Batch, Batch],
    seed: int,
    noise: bool,
    checkpoints: Path,
) -> Trained:
    """The exact steps are the same bits in both arms, since the recipe and its seed are."""
    ckks = study.ckks
    return train_classifier(
        config,
        parts[0],
        parts[1],
        dataclasses.replace(study.recipe, seed=seed),
        simulate=(lambda model: simulated_forward(model, ckks)) if noise else None,
        checkpoints=checkpoints,
    )


def _measure(study: NoiseStudy, trained: Trained, test: Batch, backend: str) -> dict[str, float]:
    rows = np.random.default_rng(0).permutation(len(test.tokens))[: study.sentences]
    sentences = take(test, rows)  # the file is not in random order
    x = np.asarray(trained.model.embed(trained.params, sentences.tokens))
    arguments = (trained.params, x, np.asarray(sentences.mask))
    program = hesim.trace(trained.model.encrypted_forward, *arguments, encrypted=(1,))
    circuit = hesim.compile(program, study.ckks)
    schedule = of_circuit(program, circuit)
    labels = np.asarray(sentences.targets)
    squares, scores = [], []
    exact = np.zeros(0)
    for seed in range(study.keys):
        found = predict(program, study.ckks, arguments, keys=1, schedule=schedule, seed=seed)
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
    return {
        "twin_score": _score(exact, labels),
        "simulated_score": float(np.mean(scores)),
        "encrypted_score": _score(outputs, labels),
        "simulated_error": float(np.sqrt(np.mean(squares))),
        "error": float(np.sqrt(np.mean((outputs - exact) ** 2))),
        "seconds": float(report.seconds),
    }


def _score(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows that are right; one that ran away to infinity or NaN is not."""
    finite = np.isfinite(logits).all(-1)
    return metrics.accuracy(np.where(finite, logits.argmax(-1), -1), labels)


def _unbounded(circuit: Circuit) -> dict[int, tuple[float, float]]:
    """No range for what the client decrypts: here noise may carry it out of the calibrated one."""
    refreshed = np.flatnonzero(circuit.kind == Kind.REFRESH)
    found = {int(circuit.arg[circuit.args(int(i))][0]) for i in refreshed}
    found.update(int(c) for tap in circuit.outputs if tap is not None for c in tap.ciphers)
    return dict.fromkeys(sorted(found), (-math.inf, math.inf))


def _claim(folder: Path, study: NoiseStudy, backend: str) -> None:
    identity = json.dumps({"backend": backend, "study": repr(study)})
    path = folder / "study.json"
    if not path.exists():
        _write(path, identity)
    elif path.read_text(encoding="utf-8") != identity:
        raise ExperimentError(f"{folder} holds another study: choose another folder")


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _write(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
