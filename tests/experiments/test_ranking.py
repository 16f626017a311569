"""The ranking study: blind predictions, resuming, agreement."""

import dataclasses

import numpy as np
import pytest

from experiments.errors import ExperimentError
from experiments.studies import blind
from experiments.studies.ranking import STUDY, Ranked, Study, Variant, agreement, run_study
from experiments.studies.ranking_report import agreement_table, plot, table, text, write_csv
from models.config import EncoderConfig
from models.data.batches import Batch
from models.recipes.classify import Recipe

SMALL = Study(
    (
        Variant("one", 40, degree=3, levels=3, sentences=128),
        Variant("coarse", 22, degree=3, levels=3, sentences=128),
    ),
    keys=4,
    encrypted_keys=2,
    batch=64,
    config=EncoderConfig(
        layers=1, hidden=4, heads=1, ffn=4, sequence=4, vocabulary=12, pooler=(4,), classes=2
    ),
    recipe=Recipe(steps=20, polynomial_steps=0, batch=16, evaluate_every=20, save_every=20),
)


def sentences(n: int, seed: int) -> Batch:
    random = np.random.default_rng(seed)
    tokens = random.integers(2, 12, (n, 4)).astype(np.int32)
    return Batch(tokens, np.ones((n, 4), np.float32), (tokens[:, 1] > 6).astype(np.int32))


DATA = (sentences(128, 0), sentences(16, 1), sentences(128, 2))


def ranked(scale: int, simulated: float, encrypted: float) -> Ranked:
    errors, scores = (simulated, encrypted, 0.1, 0.1), (1.0, 0.5, 0.5, 0.01, 0.01, 0.0, 0.0)
    return Ranked(
        *errors, *scores, 1.0, variant=Variant("v", scale), depth=3, rescales=9, approximation=0.1
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_study_predicts_what_encryption_measures_and_resumes(tmp_path, monkeypatch):
    results, run = run_study(SMALL, tmp_path, data=DATA), blind._run
    for row in results:
        assert abs(np.log2(row.simulated_error / row.encrypted_error)) < 0.7
        assert 0 < row.encrypted_bits < 2 and 0 < row.simulated_bits < 2
        assert row.simulated_lost == row.encrypted_lost == 0.0
        assert 0 < row.depth < row.rescales
    assert results[1].encrypted_error > 2**12 * results[0].encrypted_error
    runs = []
    monkeypatch.setattr(blind, "_run", lambda *a: runs.append(a) or run(*a))
    assert run_study(SMALL, tmp_path, data=DATA) == results
    assert not runs  # nothing is encrypted a second time
    (tmp_path / "22-coarse.json").unlink()
    (tmp_path / "22-coarse" / "key-1-1.json").unlink()
    (tmp_path / "22-coarse" / "key-1-0.json.new").write_bytes(b"{")  # killed while writing
    again = run_study(SMALL, tmp_path, data=DATA)
    assert len(runs) == 1  # the batch that was missing, and no prediction
    assert again[0] == results[0] and again[1].simulated_error == results[1].simulated_error
    with pytest.raises(ExperimentError, match="another study"):
        run_study(dataclasses.replace(SMALL, keys=3), tmp_path, data=DATA)
    damaged = tmp_path / "22-coarse.json"
    damaged.write_bytes(damaged.read_bytes()[:9])
    with pytest.raises(ExperimentError, match=r"22-coarse\.json is damaged"):
        run_study(SMALL, tmp_path, data=DATA)
    write_csv(results, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().count("\n") == 3
    assert table(results).row_count == 2 and agreement_table(results).row_count == 3
    assert "coarse" in text(results) and "reachable" in text(results)
    assert len(plot(results).axes) == 2


def test_a_folder_that_is_no_study_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ExperimentError, match="no study"):
        blind.claim(tmp_path, SMALL, "slots", Ranked)
    old = tmp_path / "old"
    blind.claim(old, SMALL, "slots")
    with pytest.raises(ExperimentError, match="older version"):
        blind.claim(old, SMALL, "slots", Ranked)


def test_agreement_counts_what_the_simulation_would_have_missed():
    right = [ranked(40, 1.0 * i, 2.0 * i) for i in range(1, 9)]
    found = agreement(right)["all"]
    assert found["variants"] == 8 and found["missed"] == 0
    assert found["error"] == pytest.approx(1.0) and found["bits"] == pytest.approx(1.0)
    assert found["score"] == found["depth"] == found["rescales"] == found["approximation"] == 0.0
    reversed_ = [ranked(32, 1.0 * i, 9.0 - i) for i in range(1, 9)]
    assert agreement(reversed_)["2^32"]["error"] == pytest.approx(-1.0)
    assert agreement(reversed_)["2^32"]["missed"] == 2


def test_what_is_reachable_depends_on_the_noise_of_both_sides():
    rows = [
        dataclasses.replace(ranked(23, 1.0, 1.0), encrypted_score=0.5 + 0.02 * i) for i in range(8)
    ]
    clear, noisy, single = (
        agreement([dataclasses.replace(r, encrypted_points=p) for r in rows])["all"]
        for p in (1e-6, 0.1, np.inf)
    )
    assert 0.9 < clear["score at least"] < clear["score reachable"] <= 1.0
    assert noisy["score at least"] < noisy["score reachable"] < 0.8
    assert np.isnan(single["score reachable"])


def test_the_study_holds_variants_enough_in_groups_enough():
    scales = [v.scale_bits for v in STUDY.variants]
    assert len(scales) >= 24 and len(set(scales)) >= 3
    assert len({(v.scale_bits, v.name) for v in STUDY.variants}) == len(scales)
    for variant in STUDY.variants:
        assert STUDY.params(variant).levels == variant.levels  # there are primes enough
        assert variant.sentences % min(STUDY.batch, variant.sentences) == 0


def test_an_error_counts_for_no_more_than_the_spread_of_the_logits():
    clear = np.array([[0.0, 1.0], [-1.0, 0.5]])
    labels = np.array([1, 1])
    ran_away = clear + np.array([[0.0, 0.0], [1e30, 0.0]])
    found = blind._figures(ran_away, clear, labels, 2.0)
    assert found == {"square": pytest.approx(2.0**2 / 4), "score": 0.5, "lost": 0.0}
    ran_away[0, 0] = np.nan  # what the client refuses it refuses as a whole: guesses
    found = blind._figures(ran_away, clear, labels, 2.0)
    assert found == {"square": pytest.approx(2.0**2), "score": 0.5, "lost": 1.0}
    near = blind._figures(clear + 0.25, clear, labels, 2.0)
    assert near == {"square": pytest.approx(0.25**2), "score": 1.0, "lost": 0.0}


def test_standard_errors_count_what_differs_between_keys():
    values = np.array([[1.0, 5.0], [1.1, 5.1], [0.9, 4.9]])  # (keys, batches)
    assert blind.standard_error(values) == pytest.approx(0.1 / 6**0.5)
    assert blind.standard_error(values[:1]) == np.inf
