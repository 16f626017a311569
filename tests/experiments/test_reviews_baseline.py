"""`python -m benchmarks.reviews`: the baseline is the textbook's, and the comparison is judged."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from benchmarks import reviews
from models.data.datasets import load

TEXTS = ("A good good film", "a bad film", "Good, bad!")


def test_rows_are_counts_by_rarity_and_of_length_1():
    count = reviews.TfIdf.of(TEXTS)
    assert sorted(count.columns) == [
        *("bad", "bad film", "film", "good"),
        *("good bad", "good film", "good good"),
    ]
    assert count.idf[count.columns["good"]] == pytest.approx(math.log(4 / 3) + 1)
    assert count.idf[count.columns["good film"]] == pytest.approx(math.log(4 / 2) + 1)
    rows = count([*TEXTS, "nothing known"]).toarray()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 1, 1, 0])
    good, film = (rows[0, count.columns[term]] for term in ("good", "film"))
    assert good / film == pytest.approx(2.0)  # twice, and both in two of the three texts


def test_the_regression_is_at_its_minimum():
    random = np.random.default_rng(0)
    rows = sparse.csr_array(random.standard_normal((60, 4)))
    labels = (rows @ np.array([1.0, -2.0, 0.0, 0.5]) + random.standard_normal(60) > 0).astype(int)
    w, b = reviews.fit_logistic(rows, labels, 3.0)

    def loss(w: np.ndarray, b: float) -> float:
        z = rows @ w + b
        each = np.logaddexp(0, -np.where(labels == 1, z, -z))
        return float(w @ w / 2 + 3.0 * each.sum())

    least = loss(w, b)
    for step in (*np.eye(5), *-np.eye(5)):
        assert loss(w + 0.01 * step[:4], b + 0.01 * step[4]) > least


def test_words_tell_the_classes_apart(glue: Path):
    found = reviews.baseline(load("glue/SST-2", data_dir=glue))
    assert found.test > 0.9 and found.fewer > 0.9 and found.strength in reviews.STRENGTHS


@pytest.mark.parametrize(("model", "held"), [(0.77, True), (0.76, False)])
def test_the_model_may_be_three_points_behind(
    model: float, held: bool, glue: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    data = load("glue/SST-2", data_dir=glue)
    seen = []
    monkeypatch.setattr(reviews, "load", lambda name: data)
    found = reviews.Baseline(10, 1.0, 0.78, 0.78, 0.799)
    monkeypatch.setattr(reviews, "baseline", lambda _: found)
    monkeypatch.setattr(reviews, "_fine_tuned", lambda *given: seen.append(given) or (0.7, model))
    assert reviews.main(["--seeds", "2", "--length", "48", "--epochs", "7"]) is held
    assert [given[-1].seed for given in seen] == [0, 1]
    settings = seen[0][-1]
    assert (settings.method, settings.epochs, settings.buckets) == ("full", 7, (16, 32, 48))
    assert ("DOES NOT HOLD" in capsys.readouterr().out) is not held
