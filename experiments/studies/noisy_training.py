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
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import hesim
from experiments.errors import ExperimentError
from experiments.studies.blind import (
    MODEL,
    Measured,
    Sentences,
    batched,
    claimed,
    insecure,
    kept,
    measure,
    reviews,
)
from experiments.studies.shown import interval
from he_backend.machines.table import DEFAULT_MACHINE, find
from hesim.files import write_whole
from hesim.params import CKKSParams
from models.config import EncoderConfig
from models.data.batches import Batch
from models.encrypted.forward import simulated_forward
from models.recipes.classify import Recipe, Trained, train_classifier
from models.sites.sites import FitSettings

__all__ = ["NOISE_STUDY", "Arm", "NoiseStudy", "difference", "run_noise_study", "table"]

_SQUARINGS = 10
_FIT = FitSettings(
    degrees=(("inv_sqrt", 15), ("relu", 7), ("tanh", 7)),
    composites=(("exp", (("squarings", _SQUARINGS), ("degree", 1))),),
    ranges=(
        ("exp", (-(2.0 ** (_SQUARINGS + 1)), 0.0)),
        ("inv_sqrt", (0.5, 100.0)),
        ("relu", (-3.0, 3.0)),
        ("tanh", (-3.0, 3.0)),
    ),
)
"""exp as (1 + x / 2^k)^(2^k): every squaring doubles the noise. The range of 1/sqrt is so wide that
noise carries no variance out of it: a training whose polynomials run away ends in NaN. The ranges
are fixed, so that all seeds share their polynomials.
"""


@dataclasses.dataclass(frozen=True)
class NoiseStudy:
    """Seeds, ring, model and training of the study.

    seeds: models trained twice. sentences: held-out ones that are encrypted, `batch` at a time.
    keys: random keys of the simulated score, for each batch. encrypted_keys: of the encrypted one.
    log_n ... special_bits: of
    `CKKSParams`, without security. recipe: its last `polynomial_steps` are those that one of the
    two goes through with noise.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    sentences: int = 256
    batch: int = 256
    keys: int = 32
    encrypted_keys: int = 1
    log_n: int = 12
    levels: int = 6
    scale_bits: int = 23
    first_bits: int = 35
    special_bits: int = 60
    config: EncoderConfig = MODEL
    recipe: Recipe = Recipe(
        steps=250,
        polynomial_steps=100,
        learning_rate=6e-3,
        dropout=0.1,
        evaluate_every=50,
        save_every=150,
        fit=_FIT,
    )

    @property
    def ckks(self) -> CKKSParams:
        return insecure(
            log_n=self.log_n,
            levels=self.levels,
            scale_bits=self.scale_bits,
            first_bits=self.first_bits,
            special_bits=self.special_bits,
        )


NOISE_STUDY = NoiseStudy()


@dataclasses.dataclass(frozen=True)
class Arm(Measured):
    """One training and its encrypted run. noise: whether it was trained with noise."""

    seed: int
    noise: bool


def run_noise_study(
    study: NoiseStudy,
    folder: str | Path,
    *,
    backend: str = DEFAULT_MACHINE,
    data: Sentences | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Arm]:
    """Train, simulate and encrypt both arms of every seed, and write `arms.csv` and `arms.json`.

    Args:
      study: what to run.
      folder: what it holds of this study already, with other seeds too, is not done again.
      backend: a machine of the table; "slots" encrypts nothing and shows the machinery only.
      data: training, validation and held-out sentences; the movie reviews by default.
      say: is told about every finished step.

    Raises:
      ExperimentError: the folder belongs to another study, another process works in it, or
        sentences that make no whole batches.
    """
    config, parts = (study.config, data) if data else reviews(study.config, study.sentences)
    held_out = batched(parts[2], study.sentences, study.batch)
    with claimed(folder, dataclasses.replace(study, seeds=()), backend, Arm) as folder:
        say(f"{study.ckks}: the security check is switched off, for studies only")
        arms = []
        for seed in study.seeds:
            for noise in (False, True):
                path = folder / f"seed-{seed}-{'noise' if noise else 'plain'}.json"

                def measured(
                    seed: int = seed, noise: bool = noise, path: Path = path
                ) -> dict[str, float]:
                    say(f"seed {seed}: training {'with' if noise else 'without'} noise")
                    trained = _train(study, config, parts, seed, noise, folder)
                    found = _measure(study, trained, held_out, backend, path.with_suffix(""))
                    return dataclasses.asdict(found)

                arm = Arm(seed=seed, noise=noise, **kept(path, measured))
                say(
                    f"seed {seed}, trained {'with' if noise else 'without'} noise: right "
                    f"{arm.twin_score:.1%} in the clear, {arm.simulated_score:.1%} simulated, "
                    f"{arm.encrypted_score:.1%} {_encrypted(backend)}; error "
                    f"{arm.simulated_error:.3g} predicted, {arm.encrypted_error:.3g} measured"
                )
                arms.append(arm)
        rows = [dataclasses.asdict(arm) for arm in arms]
        write_whole(folder / "arms.csv", _csv(rows).encode())
        found = {"arms": rows, "difference": difference(arms)}
        write_whole(folder / "arms.json", json.dumps(found).encode())
    return arms


def difference(arms: Sequence[Arm], score: str = "encrypted_score") -> dict[str, float]:
    """Mean of (with noise - without) of a score over seeds, and its 95 % interval by Student's t.

    Keys: seeds, mean, low, high; the interval is infinite for one seed.
    """
    by_seed: dict[int, dict[bool, float]] = {}
    for arm in arms:
        by_seed.setdefault(arm.seed, {})[arm.noise] = float(getattr(arm, score))
    each = [pair[True] - pair[False] for pair in by_seed.values() if len(pair) == 2]
    if not each:
        raise ExperimentError("no seed has both of its trainings: run the study first")
    found = interval(each)
    low, high = found.mean - found.half, found.mean + found.half
    return {"seeds": float(found.count), "mean": found.mean, "low": low, "high": high}


def table(arms: Sequence[Arm], backend: str = DEFAULT_MACHINE) -> str:
    """All arms, and the paired differences of the three scores, as text."""
    lines = [
        f"{'seed':>4} {'noise':>5} {'in the clear':>12} {'simulated':>10} "
        f"{_encrypted(backend):>13} {'predicted error':>15} {'measured':>9}"
    ]
    for arm in arms:
        lines.append(
            f"{arm.seed:>4} {'on' if arm.noise else 'off':>5} {arm.twin_score:>12.1%} "
            f"{arm.simulated_score:>10.1%} {arm.encrypted_score:>13.1%} "
            f"{arm.simulated_error:>15.3g} {arm.encrypted_error:>9.3g}"
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
    return "encrypted" if find(backend).encrypts else "plain vectors"


def _train(
    study: NoiseStudy, config: EncoderConfig, parts: Sentences, seed: int, noise: bool, folder: Path
) -> Trained:
    """One arm. The second goes on from the checkpoint of the first at the end of the exact steps,
    whose folder has that step's number for a name.
    """
    places = [folder / "training" / f"seed-{seed}-{name}" for name in ("plain", "noise")]
    recipe, ckks = dataclasses.replace(study.recipe, seed=seed), study.ckks
    exact = str(recipe.steps - recipe.polynomial_steps)
    if noise and not places[1].exists() and (places[0] / exact).exists():
        part = places[1].with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(places[0] / exact, part / exact)
        part.rename(places[1])
    return train_classifier(
        config,
        parts[0],
        parts[1],
        recipe,
        simulate=(lambda model: simulated_forward(model, ckks)) if noise else None,
        checkpoints=places[noise],
    )


def _measure(
    study: NoiseStudy, trained: Trained, parts: Sequence[Batch], backend: str, folder: Path
) -> Measured:
    model, params = trained.model, trained.params
    batches = [
        (params, np.asarray(model.embed(params, part.tokens, part.types)), np.asarray(part.mask))
        for part in parts
    ]
    program = hesim.trace(model.encrypted_forward, *batches[0], encrypted=(1,))
    return measure(
        program,
        hesim.compile(program, study.ckks),
        batches,
        [np.asarray(part.targets) for part in parts],
        keys=study.keys,
        encrypted_keys=study.encrypted_keys,
        backend=backend,
        folder=folder,
    )


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
