"""The study of GLUE: runs that resume, what counts, and the figures made of them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import signal
from pathlib import Path

import pytest

from experiments.cli import common, main
from experiments.errors import ExperimentError
from experiments.lock import alone_in
from experiments.studies import glue as glue_study
from experiments.studies.glue import COLUMNS, GlueStudy, Run, read_runs, run_glue, write_csv
from experiments.studies.glue_report import counted_tasks, loss, plot, summary, table
from experiments.studies.shown import interval
from experiments.studies.tasks import Stopped
from experiments.training.distil import read_distilling
from experiments.training.finetune_settings import GLUE_TABLE, TaskSettings, read_table
from tests.experiments.conftest import write_encoder

pytestmark = pytest.mark.usefixtures("quick_compilation")


def run(task: str, column: str, seed: int, score: float, majority: float = 0.5) -> Run:
    found, base = {"accuracy": score}, {"accuracy": majority}
    return Run(
        task, column, seed, "accuracy", found, base, {}, found, 10, 100, ["a note"], 1.0, "x"
    )


RUNS = [
    run(task, column, seed, score + 0.01 * seed, 0.5)
    for task, scores in (("SST-2", (0.8, 0.77, 0.768)), ("RTE", (0.53, 0.5, 0.5)))
    for column, score in zip(
        ("full-softmax", "lora-gaussian", "lora-simulated"), scores, strict=True
    )
    for seed in (0, 1, 2)
]


def test_the_interval_is_students():
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.half == pytest.approx(4.302653 / 3**0.5)
    assert interval([5.0]).half == float("inf")


def test_losses_are_paired_and_counted_where_something_was_learnt():
    assert counted_tasks(RUNS) == ["SST-2"]
    found = loss(RUNS, "full-softmax", "lora-simulated")
    assert found is not None and found.tasks == ("SST-2",)
    assert found.average.mean == pytest.approx(3.2) and found.average.half == pytest.approx(0)
    partial = [r for r in RUNS if (r.column, r.seed) != ("lora-simulated", 2)]
    fewer = loss(partial, "full-softmax", "lora-simulated")
    assert fewer is not None and fewer.average.count == 2
    assert loss(RUNS, "full-softmax", "lora-softmax") is None


def test_the_table_states_baseline_means_and_intervals():
    text = table(RUNS)
    assert "SST-2 (accuracy)" in text and "50.0" in text and "81.0 ± 2.5" in text
    said = summary(RUNS)
    assert "counted, Full with softmax 5 points above the most frequent label: SST-2" in said
    assert "3.2 ± 0.0 points" in said and "SST-2: a note" in said
    assert len(plot(RUNS).axes) == 2


@pytest.fixture(scope="module")
def study(glue: Path, tmp_path_factory: pytest.TempPathFactory) -> GlueStudy:
    top = tmp_path_factory.mktemp("starts")
    for attention in ("gaussian", "softmax"):
        write_encoder(top / attention, glue, attention=attention)
    return GlueStudy(
        starts={name: str(top / name) for name in ("gaussian", "softmax")},
        data_dir=str(glue),
        tasks=("SST-2",),
        columns=("full-softmax", "lora-gaussian"),
        seeds=(0,),
        table={"SST-2": TaskSettings(epochs=1, lora_rate=1e-2, buckets=(8,))},
        length=8,
    )


def test_a_study_goes_on_from_what_its_folder_holds(study: GlueStudy, tmp_path: Path):
    said: list[str] = []
    first = run_glue(study, tmp_path, say=said.append)
    assert [r.column for r in first] == ["full-softmax", "lora-gaussian"] and len(said) == 2
    assert first[0].trainable > first[1].trainable > 0
    assert all(0 < r.scores["accuracy"] < 1 and r.rows > 200 for r in first)
    longer = dataclasses.replace(study, seeds=(0, 1), columns=("lora-gaussian",))
    assert len(run_glue(longer, tmp_path, say=said.append)) == 3 and len(said) == 3
    write_csv(read_runs(tmp_path), tmp_path / "glue.csv")
    assert len((tmp_path / "glue.csv").read_text().splitlines()) == 4
    other = dataclasses.replace(study, table={"SST-2": TaskSettings(epochs=2, buckets=(8,))})
    with pytest.raises(ExperimentError, match=r"settings.epochs is 1 there and 2 here"):
        run_glue(other, tmp_path)


def test_a_run_keeps_its_validity_when_a_setting_is_added(study: GlueStudy, tmp_path: Path):
    one = dataclasses.replace(study, columns=("full-softmax",))
    run_glue(one, tmp_path)
    path = tmp_path / "runs" / "SST-2-full-softmax-0.json"
    stored = json.loads(path.read_text())
    identity = json.loads(stored["identity"])
    del identity["settings"]["pooling"], identity["start"]["pooling"]  # as if written before them
    path.write_text(json.dumps(stored | {"identity": json.dumps(identity)}))
    assert len(run_glue(one, tmp_path)) == 1
    identity["weights"] = "others"
    path.write_text(json.dumps(stored | {"identity": json.dumps(identity)}))
    with pytest.raises(ExperimentError, match="another start.*weights"):
        run_glue(one, tmp_path)
    path.write_text(json.dumps(stored | {"identity": "0123456789abcdef"}))
    with pytest.raises(ExperimentError, match="older version"):
        run_glue(one, tmp_path)


def test_a_stopped_study_saves_its_run_and_goes_on_from_there(study: GlueStudy, tmp_path: Path):
    one = dataclasses.replace(study, columns=("lora-gaussian",))
    asked = itertools.count()
    with pytest.raises(Stopped):
        run_glue(one, tmp_path / "parts", stop=lambda: next(asked) == 5)
    assert not list((tmp_path / "parts" / "runs").iterdir())
    steps = list((tmp_path / "parts" / "checkpoints" / "SST-2-lora-gaussian-0").iterdir())
    assert [path.name for path in steps] == ["4"]  # asked once before the run, then before steps
    asked = itertools.count()
    parts = run_glue(one, tmp_path / "parts", stop=lambda: next(asked) < 0)
    assert next(asked) < 10  # ten steps less the four that were saved
    whole = run_glue(one, tmp_path / "whole")
    assert [r.scores for r in parts] == [r.scores for r in whole]


def test_ctrl_c_ends_the_command_with_a_word_on_how_to_go_on(
    study: GlueStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    (tmp_path / "table.toml").write_text("[SST-2]\nepochs = 1\nbuckets = [8]\n")
    train = glue_study.finetune

    def interrupted(*arguments, **options):
        signal.raise_signal(signal.SIGINT)
        return train(*arguments, **options)

    monkeypatch.setattr(glue_study, "finetune", interrupted)
    out = tmp_path / "out"
    options = {
        "--start-softmax": study.starts["softmax"],
        "--tasks": "sst-2",
        "--columns": "full-softmax",
        "--seeds": 1,
        "--length": 8,
        "--settings": tmp_path / "table.toml",
        "--data-dir": study.data_dir,
        "--out": out,
    }
    with pytest.raises(SystemExit) as done:
        main(["study", "glue", *(str(part) for pair in options.items() for part in pair)])
    assert done.value.code == common.INTERRUPTED
    said = capsys.readouterr().err
    assert f"the same command goes on from {out}" in said
    assert list((out / "checkpoints" / "SST-2-full-softmax-0").iterdir())


def test_two_processes_share_no_folder(study: GlueStudy, tmp_path: Path):
    with alone_in(tmp_path), pytest.raises(ExperimentError, match="another process is working"):
        run_glue(study, tmp_path)


def test_what_cannot_be_studied_is_refused(study: GlueStudy):
    for changes, said in (
        ({"tasks": ("WNLI",)}, "no task WNLI"),
        ({"columns": ("half",)}, "no column half"),
        ({"starts": {"softmax": "x"}}, "no model to start from with gaussian"),
        ({"starts": {"gaussian": "scratch", "softmax": "x"}}, "pre-trained"),
        ({"length": 9}, "SST-2: the longest bucket has 8 tokens"),
        (
            {"table": {"SST-2": TaskSettings(buckets=(8,), pairs="bi-encoder")}},
            "SST-2 has single sentences",
        ),
    ):
        with pytest.raises(ExperimentError, match=said):
            dataclasses.replace(study, **changes)


def test_the_table_of_settings_has_every_task_and_every_column_its_settings():
    rows, twin = read_table()
    assert dict(twin.fit.ranges)["exp"][1] == 0.0
    assert set(rows) == {"CoLA", "MRPC", "RTE", "STS-B", "SST-2", "QNLI"}
    study = GlueStudy(starts={"gaussian": "a", "softmax": "b"}, data_dir="")
    simulated = study.settings("RTE", "lora-simulated", 1)
    exact = study.settings("RTE", "lora-gaussian", 1)
    assert simulated.encrypted is not None
    assert dataclasses.replace(simulated, encrypted=None) == exact
    assert study.settings("RTE", "full-softmax", 1).method == "full"
    assert len(COLUMNS) == 5


def test_adapters_may_take_epochs_of_their_own(tmp_path: Path):
    (tmp_path / "table.toml").write_text("[RTE]\nepochs = 2\nlora_epochs = 5\n[CoLA]\nepochs = 2\n")
    rows, _ = read_table(tmp_path / "table.toml")
    assert [rows["RTE"].fine_tune(method).epochs for method in ("full", "lora")] == [2, 5]
    assert [rows["CoLA"].fine_tune(method).epochs for method in ("full", "lora")] == [2, 2]


@pytest.mark.parametrize(
    "line",
    ['pairs = "separate"', "batch = 0", "buckets = []", "lora_epochs = -1", "train_rows = -7"],
)
def test_a_row_of_the_table_that_cannot_be_is_named(line: str, tmp_path: Path):
    (tmp_path / "table.toml").write_text(f"[RTE]\n{line}\n")
    with pytest.raises(ExperimentError, match=f"table.toml: RTE: .*{line.split()[0]}"):
        read_table(tmp_path / "table.toml")


def test_the_settings_of_a_converted_minilm_are_of_pairs_read_apart():
    rows, twin = read_table(GLUE_TABLE.with_name("minilm.toml"))
    tasks = ("STS-B", "MRPC", "RTE")
    study = GlueStudy({"gaussian": "a", "softmax": "b"}, "", tasks, table=rows, length=64)
    assert dict(twin.fit.ranges)["gelu"] == (-14.0, 14.0)
    for task in tasks:
        settings = [study.settings(task, column, 0) for column in COLUMNS]
        assert {s.pairs for s in settings} == {"bi-encoder"} and {s.batch for s in settings} == {32}
    assert read_distilling(GLUE_TABLE.with_name("minilm-distil.toml")).settings.states == 1.0
