"""The study of the range penalty: runs that resume, and the figures made of them."""

from __future__ import annotations

import csv
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from experiments.errors import ExperimentError
from experiments.lock import alone_in
from experiments.studies.penalty import Arm, PenaltyStudy, read_arms, run_penalty, write_csv
from experiments.studies.penalty_report import plot, scores, sites
from experiments.studies.tasks import Stopped
from experiments.training.finetune_settings import TaskSettings
from tests.experiments.conftest import write_encoder

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXP, NORM = "layer0.attention.exp", "layer0.ffn_norm.inv_sqrt"


def arm(task: str, seed: int, penalty: bool) -> Arm:
    lost = 0.0 if penalty else 2.0 + seed
    low = -4.0 if penalty else -12.0
    return Arm(
        task,
        seed,
        penalty,
        "accuracy",
        80.0,
        80.0 - lost,
        {EXP: (-8.0, 0.0), NORM: (0.1, 10.0)},
        {EXP: (low, 0.0), NORM: (0.5, 10.0)},
        {EXP: 0.0 if penalty else 0.02, NORM: 0.0},
        1.0,
    )


ARMS = [arm(task, s, on) for task in ("MRPC", "RTE") for s in (0, 1, 2) for on in (False, True)]


def test_tables_and_plot_tell_both_settings_apart():
    text = scores(ARMS).splitlines()
    assert len(text) == 5
    assert "off" in text[1] and "3.0 ± 2.5" in text[1] and f"2.000% {EXP}" in text[1]
    assert "on" in text[2] and "0.0 ± 0.0" in text[2] and "none" in text[2]
    rows = [line.split() for line in sites(ARMS).splitlines()]
    assert rows[1][:2] == ["MRPC", EXP]
    assert rows[1][2:8] == ["[-8,", "0]", "[-12,", "0]", "[-4,", "0]"]
    figure = plot(ARMS)
    below = figure.axes[2]
    ends = [np.asarray(line.get_xdata()) for line in below.lines]
    reach = {x[0] for x in ends if len(x) == 2}
    assert {2.0, 0.0} <= reach  # exponents down to -12 and -4 in half-widths of [-8, 0]


@pytest.fixture(scope="module")
def study(glue: Path, tmp_path_factory: pytest.TempPathFactory) -> PenaltyStudy:
    return PenaltyStudy(
        start=str(write_encoder(tmp_path_factory.mktemp("start") / "model", glue)),
        data_dir=str(glue),
        tasks=("SST-2",),
        seeds=(0,),
        weight=5.0,
        length=8,
        buckets=(8,),
        table={"SST-2": TaskSettings(epochs=4, full_rate=3e-2)},
    )


def test_the_penalty_keeps_values_inside_and_the_study_resumes(study: PenaltyStudy, tmp_path: Path):
    said: list[str] = []
    off, on = run_penalty(study, tmp_path, say=said.append)
    assert len(said) == 2 and (off.penalty, on.penalty) == (False, True)
    assert off.domains == on.domains
    assert sum(on.outside.values()) < 0.5 * sum(off.outside.values())
    assert run_penalty(study, tmp_path, say=said.append) == [off, on] and len(said) == 2
    write_csv([off, on], tmp_path / "penalty.csv")
    with open(tmp_path / "penalty.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(off.domains) and rows[0]["site"] in off.domains
    with pytest.raises(ExperimentError, match="another study.*weight is 5.0 there and 1.0 here"):
        run_penalty(dataclasses.replace(study, weight=1.0), tmp_path)


def test_a_stopped_study_saves_its_run_and_no_other_process_joins(
    study: PenaltyStudy, tmp_path: Path
):
    asked = itertools.count()
    with pytest.raises(Stopped):
        run_penalty(study, tmp_path, stop=lambda: next(asked) == 3)
    assert [path.name for path in (tmp_path / "SST-2-0-off").iterdir()] == ["2"]
    assert not list(tmp_path.glob("*-o*.json"))
    with alone_in(tmp_path), pytest.raises(ExperimentError, match="another process is working"):
        run_penalty(study, tmp_path)


def test_what_cannot_be_studied_is_refused(tmp_path: Path):
    with pytest.raises(ExperimentError, match="no task WNLI"):
        PenaltyStudy(tasks=("WNLI",))
    with pytest.raises(ExperimentError, match="positive"):
        PenaltyStudy(weight=0.0)
    (tmp_path / "RTE-0-off.json").write_text("{}")
    with pytest.raises(ExperimentError, match="no run of this study"):
        read_arms(tmp_path)
