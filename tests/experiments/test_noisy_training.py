"""Training with noise against training without it: pairs, intervals, and resuming."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from experiments.errors import ExperimentError
from experiments.studies import noisy_training
from experiments.studies.noisy_training import Arm, NoiseStudy, difference, run_noise_study, table
from models.config import EncoderConfig
from models.data.batches import Batch
from models.recipes.classify import Recipe
from models.sites.sites import FitSettings

TINY = NoiseStudy(
    seeds=(0,),
    sentences=16,
    batch=8,
    keys=1,
    encrypted_keys=1,
    log_n=12,
    levels=4,
    scale_bits=30,
    first_bits=40,
    special_bits=40,
    config=EncoderConfig(
        layers=1, hidden=8, heads=2, ffn=8, sequence=4, vocabulary=16, pooler=(8,), classes=2
    ),
    recipe=Recipe(
        steps=4,
        polynomial_steps=2,
        batch=8,
        evaluate_every=2,
        save_every=2,
        fit=FitSettings(
            degrees=(("exp", 3), ("inv_sqrt", 2), ("relu", 2), ("tanh", 3)), margin=0.3
        ),
    ),
)


def batch(rows: int, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 16, (rows, 4)).astype(np.int32)
    labels = (tokens[:, 1] > 8).astype(np.int32)
    return Batch(tokens, np.ones((rows, 4), np.float32), labels)


DATA = (batch(64, 0), batch(16, 1), batch(16, 2))


def arm(seed: int, noise: bool, right: float) -> Arm:
    scores = (right, right, right, 0.01, 0.01, 0.0, 0.0)
    return Arm(0.1, 0.1, 0.01, 0.01, *scores, 1.0, seed=seed, noise=noise)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:security=None")
def test_arms_share_their_exact_steps_and_a_second_call_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, train = [], noisy_training._train
    monkeypatch.setattr(noisy_training, "_train", lambda *a: made.append(train(*a)) or made[-1])
    arms = run_noise_study(TINY, tmp_path, backend="slots", data=DATA)
    assert [(a.seed, a.noise) for a in arms] == [(0, False), (0, True)]
    for found in arms:
        assert found.encrypted_error < 1e-6 < found.simulated_error  # plain vectors carry no noise
        assert found.encrypted_score == found.twin_score
    plain, noisy = made
    assert plain.history[0] == noisy.history[0]
    assert plain.history[0]["phase"] == "exact"
    assert plain.sites == noisy.sites
    one, two = (np.asarray(t.params["head"]["kernel"]) for t in made)
    assert not np.array_equal(one, two)
    np.testing.assert_allclose(one, two, atol=1e-3)  # noise near 2^-17 moves two steps a little
    kept = json.loads((tmp_path / "arms.json").read_text())
    assert kept["arms"] == [dataclasses.asdict(a) for a in arms]
    assert kept["difference"]["mean"] == difference(arms)["mean"]
    (tmp_path / "arms.csv").unlink()
    assert run_noise_study(TINY, tmp_path, backend="slots", data=DATA) == arms
    assert len(made) == 2
    assert len((tmp_path / "arms.csv").read_text().splitlines()) == 3
    other = dataclasses.replace(TINY, scale_bits=31)
    with pytest.raises(ExperimentError, match="another study"):
        run_noise_study(other, tmp_path, backend="slots", data=DATA)


def test_the_study_has_a_ring_and_whole_batches(tmp_path: Path) -> None:
    assert noisy_training.NOISE_STUDY.ckks.levels == 6
    with pytest.raises(ExperimentError, match="whole batches of 8"):
        run_noise_study(dataclasses.replace(TINY, sentences=12), tmp_path / "new", data=DATA)
    assert not (tmp_path / "new").exists()


def test_the_interval_is_students_over_seeds() -> None:
    gains = (0.01, 0.03, 0.05)
    arms = [arm(s, True, 0.7 + g) for s, g in enumerate(gains)]
    arms += [arm(s, False, 0.7) for s in range(3)]
    found = difference(arms)
    assert found["mean"] == pytest.approx(0.03)
    half = 4.302652729749464 * 0.02 / math.sqrt(3)  # t of 2 degrees of freedom at 97.5 %
    assert found["high"] - found["mean"] == pytest.approx(half)
    assert found["mean"] - found["low"] == pytest.approx(half)
    assert "+3.0 points" in table(arms)
    assert difference(arms[:1] + arms[3:4])["high"] == math.inf
    with pytest.raises(ExperimentError, match="both of its trainings"):
        difference(arms[:2])
