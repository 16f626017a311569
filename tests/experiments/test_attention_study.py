"""The study of attention: twins that stand for their model, costs that are counted, runs that
resume.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

import approx
from experiments.errors import ExperimentError
from experiments.lock import alone_in
from experiments.studies.attention import (
    AttentionStudy,
    Cost,
    Run,
    Twin,
    read_runs,
    reciprocal_steps,
    run_attention,
    write_csv,
)
from experiments.studies.attention_report import plot, table
from experiments.studies.tasks import Stopped
from hesim.params import CKKSParams
from models.encrypted.settings import EncryptionSettings
from models.recipes.finetune_settings import FineTune
from models.sites.sites import FitSettings
from tests.experiments.conftest import write_encoder

pytestmark = pytest.mark.usefixtures("quick_compilation")


def twin(noise: float, depth: int) -> Twin:
    return Twin(70.0, 69.0, 0.02, noise, 0, 0.001, Cost(depth, 10, 5, 7, 1.5))


def runs_of(seed: int) -> list[Run]:
    def run(attention: str, exact: float, **twins: Twin) -> Run:
        named = {name.replace("_", "-"): found for name, found in twins.items()}
        return Run("reviews", attention, seed, "accuracy", exact + seed, 51.0, 2.0, 100, named, 1.0)

    return [
        run("softmax", 72.0),
        run("gaussian", 71.0, gaussian_minimax=twin(1e-6, 46), gaussian_squaring=twin(1e-5, 49)),
        run("power_softmax", 70.0, power_softmax=twin(1e-3, 1234)),
    ]


RUNS = [run for seed in (0, 1, 2) for run in runs_of(seed)]


def test_the_table_has_a_line_a_way_with_errors_by_the_logits_spread():
    lines = table(RUNS).splitlines()
    assert "51.0" in lines[2] and "softmax, exact only" in lines[3] and "73.0 ± 2.5" in lines[3]
    minimax, squaring, power = (line.split() for line in lines[4:7])
    assert "Gaussian," in minimax and "46" in minimax and "5e-07" in minimax and "0.01" in minimax
    assert "49" in squaring and "5e-06" in squaring
    assert "1,234" in power and "0.100%" in power


def test_the_plot_shows_each_score_and_no_cost_of_softmax():
    figure = plot(RUNS)
    scores, levels, _ = figure.axes
    assert [text.get_text() for text in levels.texts] == [" not encrypted", " 46", " 49", " 1,234"]
    dots = [np.asarray(line.get_xdata()) for line in scores.lines if line.get_marker() == "."]
    assert sorted(len(x) for x in dots) == [3] * 10  # four exact, three of each twin's two scores


@pytest.mark.parametrize("domain", [(0.0016, 0.16), (0.7, 900.0), (0.5, 0.9)])
def test_a_reciprocal_takes_the_fewest_steps_for_its_relative_error(domain: tuple[float, float]):
    x = np.geomspace(*domain, 2001)

    def error(steps: int) -> float:
        return float(np.abs(1 - x * np.asarray(made(steps)(x))).max())

    def made(steps: int) -> approx.Composite:
        return approx.composite("inv", domain, degree=7, steps=steps)

    study = AttentionStudy(relative=0.01)
    steps = reciprocal_steps(domain, 7, study)
    assert error(steps) < 0.0101
    assert steps == 1 or error(steps - 1) > 0.01


@pytest.fixture(scope="module")
def study(glue: Path, tmp_path_factory: pytest.TempPathFactory) -> AttentionStudy:
    top = tmp_path_factory.mktemp("starts")
    for attention in ("gaussian", "softmax"):
        write_encoder(top / attention, glue, attention=attention)
    return AttentionStudy(
        starts={name: str(top / name) for name in ("gaussian", "softmax")},
        tasks=("glue/SST-2",),
        data_dir=str(glue),
        attentions=("softmax", "gaussian"),
        seeds=(0,),
        length=8,
        training=FineTune(method="full", epochs=4, learning_rate=3e-2, buckets=(8,)),
        squarings=6,
        how=EncryptionSettings(
            ckks=CKKSParams(15, 12, 42, 50, 60),
            fit=FitSettings(
                degrees=(("exp", 7), ("inv_sqrt", 7), ("relu", 7), ("tanh", 7)), margin=0.25
            ),
        ),
        small=(("hidden", 4), ("ffn", 4), ("sequence", 4), ("pooler", (4,)), ("vocabulary", 16)),
        sentences=16,
    )


def test_a_stopped_study_goes_on_and_a_second_call_repeats_nothing(
    study: AttentionStudy, tmp_path: Path
):
    one = dataclasses.replace(study, attentions=("softmax",))
    said: list[str] = []
    asked = itertools.count()
    with pytest.raises(Stopped):
        run_attention(one, tmp_path, say=said.append, stop=lambda: next(asked) == 5)
    assert not said and list(tmp_path.glob("glue-SST-2-softmax-0.run/4"))
    (found,) = run_attention(one, tmp_path, say=said.append)
    assert found.exact > found.majority and not found.twins
    assert run_attention(one, tmp_path, say=said.append) == [found] and len(said) == 1
    assert not list(tmp_path.glob("*.run"))
    with alone_in(tmp_path), pytest.raises(ExperimentError, match="another process is working"):
        run_attention(one, tmp_path)
    with pytest.raises(ExperimentError, match="squarings is 6 there and 7 here"):
        run_attention(dataclasses.replace(one, squarings=7), tmp_path)


def test_a_line_a_way_is_written(tmp_path: Path):
    write_csv(runs_of(0), tmp_path / "attention.csv")
    with open(tmp_path / "attention.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["way"] for row in rows] == [
        *("softmax", "gaussian-minimax", "gaussian-squaring", "power-softmax")
    ]
    assert rows[1]["simulated"] == "69.0" and rows[1]["depth"] == "46" and rows[0]["depth"] == ""


@pytest.mark.slow
def test_the_twins_of_one_model_answer_as_it_does_at_their_own_cost(
    study: AttentionStudy, tmp_path: Path
):
    (gaussian,) = run_attention(dataclasses.replace(study, attentions=("gaussian",)), tmp_path)
    assert gaussian.exact > gaussian.majority
    minimax, squaring = (gaussian.twins[f"gaussian-{kind}"] for kind in ("minimax", "squaring"))
    for found in (minimax, squaring):
        assert abs(found.polynomial - gaussian.exact) < 10
        assert abs(found.simulated - found.polynomial) < 5
        assert 0 < found.noise < found.approximation < 0.5 * gaussian.spread
    assert squaring.cost.depth - minimax.cost.depth == 3  # 6 squarings, or 3 levels of degree 7
    assert squaring.noise > minimax.noise


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["gaussian_normalised", "power_softmax"])
def test_a_kernel_that_divides_costs_levels_for_it(
    attention: str, study: AttentionStudy, tmp_path: Path
):
    both = dataclasses.replace(study, attentions=("gaussian", attention))
    gaussian, other = run_attention(both, tmp_path)
    (found,) = other.twins.values()
    assert found.cost.depth > gaussian.twins["gaussian-minimax"].cost.depth
    assert found.approximation < 0.5 * other.spread and not found.lost
    assert abs(found.simulated - other.exact) < 10


def test_what_cannot_be_studied_is_refused(tmp_path: Path):
    with pytest.raises(ExperimentError, match="no attention cosine"):
        run_attention(AttentionStudy(attentions=("cosine",)), tmp_path)
    (tmp_path / "a.run.json").write_text("{}")
    with pytest.raises(ExperimentError, match="no run of this study"):
        read_runs(tmp_path)
