"""`hesim finetune` and `hesim evaluate`: settings, log, stop and going on, scores, bad input."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.cli import main
from experiments.console import Display
from experiments.errors import ExperimentError
from experiments.lock import alone_in
from experiments.training.devices import Devices
from experiments.training.distil import read_distilling
from experiments.training.evaluate import AFTER_TRAINING, evaluate_folder
from experiments.training.evaluate import _task as task_of
from experiments.training.finetune import load_start, remember, remembered, run_finetuning
from experiments.training.finetune_settings import (
    GLUE_TABLE,
    job_template,
    read_job,
    read_table,
    task_spec,
)
from experiments.training.pretrain import read_job as read_pretraining
from experiments.training.twin import read_encryption, said_ring
from models.data.datasets import load
from models.data.tokenizer import Tokenizer
from models.errors import CheckpointError, DataError
from models.nn.encoder import Model
from models.recipes.finetune_settings import FineTune
from models.sites.sites import fit_ranges
from models.train.checkpoint import sites_to_json
from models.weights.folder import load_model, save_model
from tests.experiments.conftest import write_encoder

SETTINGS = """
[task]
task = "sst-2"
length = 8
[start]
attention = "gaussian"
start = "{start}"
[training]
epochs = 4
batch = 16
learning_rate = 2e-2
rank = 8
alpha = 64.0
pooling = "token"
buckets = [8]
"""

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def encoder(glue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("start") / "encoder", glue)


@pytest.fixture(scope="module")
def settings(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "s.toml"
    path.write_text(SETTINGS.format(start=encoder))
    return path


@pytest.fixture(scope="module")
def finished(settings: Path, glue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that SIGTERM stopped once and that then went on to its end."""
    out = tmp_path_factory.mktemp("run")
    job = read_job(settings)

    class Killing(Display):
        @contextlib.contextmanager
        def bar(self, title, total):
            del title, total
            yield lambda done, note, left: os.kill(os.getpid(), signal.SIGTERM)

    first = run_finetuning(job, out, Killing(quiet=True), str(glue))
    assert not first.finished and not (out / "model").exists()
    second = run_finetuning(job, out, Display(quiet=True), str(glue))
    assert second.finished and len(second.history) == 4
    return out


def test_the_log_has_each_report_once(finished: Path):
    with open(finished / "metrics.csv", newline="") as file:
        found = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in found]
    assert steps == sorted(set(steps)) and len(steps) >= 13
    assert sum(bool(row["accuracy"]) for row in found) == 4
    assert list((finished / "tensorboard").glob("events.out.tfevents.*"))


def test_a_finished_model_is_evaluated_three_ways(finished: Path, glue: Path, capsys):
    found = evaluate_folder(finished, data_dir=str(glue))
    twin = found.twin
    assert found.exact["accuracy"] > found.baseline["accuracy"]
    assert abs(found.exact["accuracy"] - twin.polynomial["accuracy"]) < 0.1
    assert abs(twin.polynomial["accuracy"] - twin.simulated["accuracy"]) < 0.1
    assert not twin.own and set(twin.fitted) == set(twin.noisy.ranges)
    assert twin.how.ckks == AFTER_TRAINING.ckks
    assert main_exits(["evaluate", str(finished), "--data-dir", str(glue)]) == 0
    said = capsys.readouterr().out
    assert "simulated noise" in said and "layer0.attention.exp" in said
    assert ("left their polynomial's range" in said) == bool(twin.outside)


@pytest.mark.parametrize("note", [{}, {"token_types": 2}])
def test_a_model_is_evaluated_with_the_token_types_that_it_was_trained_with(
    note: dict[str, int], finished: Path, tmp_path: Path
):
    (tmp_path / "RTE").mkdir()
    lines = [f"{n}\ta film\tthe film\t{'not_' * (n % 2)}entailment" for n in range(60)]
    for name in ("train", "dev"):
        text = "\n".join(["index\tsentence1\tsentence2\tlabel", *lines])
        (tmp_path / "RTE" / f"{name}.tsv").write_text(text)
    saved = load_model(finished / "model")
    notes = {**saved.notes, "task": "glue/RTE", **note}
    data, _ = task_of(saved._replace(notes=notes), tmp_path, str(tmp_path))
    assert (data.test.types is not None) == bool(note)


def test_the_twin_of_a_model_trained_in_the_clear_holds_what_it_meets(
    finished: Path, glue: Path, tmp_path: Path
):
    saved = load_model(finished / "model")
    for layer in saved.params["pooler"].values():
        layer["kernel"] = 20 * layer["kernel"]
    save_model(tmp_path / "m", saved.config, saved.params, saved.tokenizer, saved.notes)
    found = evaluate_folder(tmp_path / "m", data_dir=str(glue)).twin
    met, held = found.noisy.ranges["pooler.tanh"], found.fitted["pooler.tanh"]
    assert met[1] - met[0] > 10 and "pooler.tanh" not in dict(found.outside)
    assert held[0] < met[0] and met[1] < held[1]


def test_sites_that_are_left_and_rows_that_run_away_are_named(finished: Path, glue: Path):
    fit = dataclasses.replace(AFTER_TRAINING.fit, ranges=(("exp", (-1e-3, 0.0)),))
    narrow = dataclasses.replace(AFTER_TRAINING, fit=fit)
    found = evaluate_folder(finished, data_dir=str(glue), how=narrow).twin
    assert "layer0.attention.exp" in dict(found.outside)
    assert any("layer0.attention.exp" in line for line in found.warnings)
    assert any("range penalty" in line for line in found.warnings)
    trained = dataclasses.replace(found, own=True)
    assert any("Train again with a larger margin" in line for line in trained.warnings)
    gone = dataclasses.replace(found.noisy, logits=np.array([[1.0, 2.0], [np.nan, 0.0]]))
    lost = dataclasses.replace(found, noisy=gone)
    assert gone.lost.tolist() == [1] and gone.answers.tolist() == [[1.0, 2.0], [0.0, 0.0]]
    assert any("(rows 1)" in line for line in lost.warnings)


def main_exits(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert isinstance(done.value.code, int)
    return done.value.code


def test_the_command_line_wins_over_the_file_and_the_file_over_the_table(settings: Path):
    assert read_job(settings, {"training.method": "full"}).settings.method == "full"
    assert read_job(settings).settings.learning_rate == 2e-2
    row = read_table()[0]["RTE"]
    job = read_job(None, {"task.task": "rte"})
    assert (job.task, job.start) == ("glue/RTE", "tiny-gaussian")
    assert job.settings.learning_rate == row.lora_rate and job.settings.epochs == row.epochs
    full = read_job(None, {"task.task": "RTE", "training.method": "full"})
    assert full.settings.learning_rate == row.full_rate
    assert task_spec("sts_b") == "glue/STS-B" and task_spec("reviews") == "reviews"


def test_the_template_is_a_settings_file(tmp_path: Path):
    path = tmp_path / "t.toml"
    path.write_text(job_template())
    assert read_job(path).settings == FineTune() and read_job(path).task == "glue/RTE"


def test_settings_that_cannot_be_are_refused(tmp_path: Path):
    for text, said in (
        ("[training]\nmethod = 'some'", "'full' or 'lora'"),
        ("[training]\nrank = 0", "rank"),
        ("[training]\nbuckets = [16, 32]", "longest bucket"),
        ("[training]\nrates = 1.0", "rates"),
        ("[training]\nadapted = [1, 2]", "adapted"),
        ("[task]\ntrain_rows = -5", "train_rows"),
        ("[encrypted]\nsimulate = true\n[training]\nmethod = 'full'", "lora"),
    ):
        (tmp_path / "bad.toml").write_text(text)
        with pytest.raises(ExperimentError, match=said):
            read_job(tmp_path / "bad.toml")


def test_devices_are_in_every_trainings_file_and_too_few_are_named(
    settings: Path, glue: Path, tmp_path: Path, capsys
):
    section = "[devices]\ndata = 2\ntensor = 64\n"
    (tmp_path / "devices.toml").write_text(section)
    for read in (read_job, read_pretraining, read_distilling):
        assert read(None).devices.mesh() is None
        assert read(tmp_path / "devices.toml").devices == Devices(2, 64)
    (tmp_path / "s.toml").write_text(settings.read_text() + section)
    chosen = ["--config", str(tmp_path / "s.toml"), "--data-dir", str(glue)]
    assert main_exits(["finetune", *chosen, "--out", str(tmp_path / "x")]) == 2
    assert "no mesh of data=2 times tensor=64" in " ".join(capsys.readouterr().err.split())


def test_what_is_missing_is_named(
    settings: Path, finished: Path, glue: Path, encoder: Path, capsys
):
    out = ["--data-dir", str(glue), "--out", str(finished / "x"), "--config", str(settings)]
    assert main_exits(["finetune", "--start", "no-such-model", *out]) == 2
    assert "no pre-trained model 'no-such-model'" in capsys.readouterr().err
    assert main_exits(["finetune", "--task", "cola", *out]) == 2
    assert "no folder CoLA" in capsys.readouterr().err
    assert (
        main_exits(["finetune", *out[:2], "--out", str(finished), "--config", str(settings)]) == 2
    )
    assert "finished already" in capsys.readouterr().err
    assert main_exits(["evaluate", str(encoder), "--data-dir", str(glue)]) == 2
    assert "not written by `hesim finetune`" in capsys.readouterr().err


def test_a_folder_serves_one_process_and_is_no_file(
    settings: Path, finished: Path, glue: Path, tmp_path: Path, capsys
):
    command = ["finetune", "--data-dir", str(glue), "--config", str(settings), "--out"]
    with alone_in(tmp_path / "run"):
        assert main_exits([*command, str(tmp_path / "run")]) == 2
    assert "another process is working in" in capsys.readouterr().err
    assert main_exits([*command, str(settings)]) == 2
    assert "is a file" in capsys.readouterr().err


def test_options_that_do_not_go_with_the_file_are_blamed_and_not_the_file(tmp_path: Path):
    full = tmp_path / "full.toml"
    full.write_text('[training]\nmethod = "full"\n')
    with pytest.raises(ExperimentError, match=r"^--method full --simulate: "):
        read_job(None, {"training.method": "full", "encrypted.simulate": True})
    with pytest.raises(ExperimentError, match=rf"^--simulate with {full}: "):
        read_job(full, {"task.task": "rte", "encrypted.simulate": True})
    full.write_text('[training]\nmethod = "full"\n[encrypted]\nsimulate = true\n')
    with pytest.raises(ExperimentError, match=rf"^{full}: "):
        read_job(full, {"training.seed": 3})
    with pytest.raises(ExperimentError, match=r"^the settings: |^--seed"):
        read_job(None, {"training.seed": "x"})


def test_an_evaluation_knows_where_the_training_read_its_data(
    finished: Path, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HESIM_GLUE_DIR", raising=False)
    assert remembered(finished) == remembered(finished / "model") == str(glue.absolute())
    assert remembered(tmp_path) is None
    remember(tmp_path, None)
    assert remembered(tmp_path) is None
    remember(tmp_path, str(tmp_path / "gone"))
    assert remembered(tmp_path) is None
    monkeypatch.setenv("HESIM_GLUE_DIR", str(glue))
    remember(tmp_path, None)
    assert remembered(tmp_path) == str(glue)
    monkeypatch.delenv("HESIM_GLUE_DIR")
    assert evaluate_folder(finished).data.name == "glue/SST-2"


def test_a_start_of_somebody_else_is_sent_to_convert(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 8}')
    with pytest.raises(CheckpointError, match=rf"run `hesim convert {tmp_path} --out DIR` first"):
        load_start(str(tmp_path), "gaussian", "rte", 16, None)


def test_a_start_is_a_folder_or_scratch(encoder: Path, glue: Path):
    folder = load_start(str(encoder), "softmax", "glue/SST-2", 8, str(glue))
    assert folder.config.attention == "softmax" and folder.config.hidden == 8
    fresh = load_start("scratch", "gaussian", "glue/SST-2", 16, str(glue))
    assert fresh.config.sequence == 16 and fresh.config.vocabulary == fresh.tokenizer.size
    with pytest.raises(ExperimentError, match="unknown attention"):
        load_start("scratch", "linear", "glue/SST-2", 16, str(glue))


def test_a_task_without_a_train_file_divides_its_dev_file_and_says_so(glue: Path, tmp_path: Path):
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "dev.tsv").write_text((glue / "SST-2" / "train.tsv").read_text())
    with pytest.warns(UserWarning, match="do not compare"):
        found = load("glue/SST-2", data_dir=tmp_path)
    sizes = [len(part) for part in (found.train, found.validation, found.test)]
    assert sum(sizes) == 300 and min(sizes) > 0


def test_a_label_out_of_range_is_named_with_its_line(tmp_path: Path):
    (tmp_path / "SST-2").mkdir()
    for name in ("train", "dev"):
        text = "sentence\tlabel\na fine film\t1\na dull film\t7\n"
        (tmp_path / "SST-2" / f"{name}.tsv").write_text(text)
    with pytest.raises(DataError, match=r"dev\.tsv:3: label '7' is none"):
        load("glue/SST-2", data_dir=tmp_path)


def test_odd_texts_have_a_defined_encoding(encoder: Path):
    tokenizer = Tokenizer.load(encoder / "tokenizer.json")
    found = tokenizer.encode(["", "film " * 99, "☃☃ film"], length=8)
    assert list(found.ids[0][:2]) == [tokenizer.cls_id, tokenizer.sep_id]
    assert list(found.mask.sum(axis=1)) == [2, 8, 4] and list(found.truncated) == [
        False,
        True,
        False,
    ]
    assert tokenizer.unk_id in found.ids[2]
    saved = load_model(encoder)
    model, params = Model(saved.config), saved.params
    assert np.isfinite(np.asarray(model.predict(params, found.ids, found.mask))).all()


@pytest.mark.parametrize(
    ("attention", "activation"),
    [
        ("gaussian_normalised", "glu_gelu_tanh"),
        ("power_softmax", "glu_silu"),
        ("gaussian", "silu"),
        ("softmax", "glu_relu"),
    ],
)
def test_every_function_that_a_model_may_have_is_evaluated_through_polynomials(
    attention: str, activation: str, finished: Path, glue: Path, tmp_path: Path
):
    saved = load_model(finished / "model")
    config = saved.config.replace(attention=attention, activation=activation)
    params = Model(config).init(jax.random.key(0))
    save_model(tmp_path / "m", config, params, saved.tokenizer, saved.notes)
    found = evaluate_folder(tmp_path / "m", data_dir=str(glue))
    assert len(found.twin.fitted) == len(found.twin.noisy.ranges)
    assert abs(found.exact["accuracy"] - found.twin.polynomial["accuracy"]) < 0.2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[twin]\nexp_degree = -1", "degree of exp is -1"),
        ("[twin]\nroot_tol = 0.0", "root_tol"),
        ("[twin]\nrelu_degrees = []", "relu_degrees"),
        ("[twin]\nmargin = inf", "margin"),
        ("[twin]\nrange_rows = 0", "range_rows"),
        ("[twin]\nexp = [-inf, 0.0]", "range of exp"),
        ("[encrypted]\nprofile = 'foo'", "no noise profile 'foo'"),
        ("[encrypted]\nloss_scale = 0.0", "loss_scale"),
    ],
)
def test_a_twin_that_cannot_be_is_refused_when_read(text: str, said: str, tmp_path: Path):
    (tmp_path / "e.toml").write_text(text)
    with pytest.raises(ExperimentError, match=said):
        read_encryption(tmp_path / "e.toml", AFTER_TRAINING)


def test_the_ring_of_an_evaluation_is_the_trainings_or_a_files(
    finished: Path, glue: Path, tmp_path: Path
):
    saved = load_model(finished / "model")
    ring = said_ring(AFTER_TRAINING) | {"log_n": 15, "levels": 9, "scale_bits": 40}
    notes = saved.notes | {"encrypted": ring}
    save_model(tmp_path / "m", saved.config, saved.params, saved.tokenizer, notes)
    found = evaluate_folder(tmp_path / "m", data_dir=str(glue)).twin
    assert (found.how.ckks.log_n, found.how.ckks.levels, found.how.ckks.scale_bits) == (15, 9, 40)
    file = tmp_path / "e.toml"
    file.write_text("[encrypted]\nlevels = 5\n[twin]\nrelu_degree = 7\n")
    how = read_encryption(file, AFTER_TRAINING)
    assert how.ckks.levels == 5 and how.fit.margin == AFTER_TRAINING.fit.margin
    other = evaluate_folder(tmp_path / "m", data_dir=str(glue), how=file).twin
    assert not other.unused
    assert (other.how.ckks.log_n, other.how.ckks.levels, other.how.ckks.scale_bits) == (15, 5, 40)
    assert other.how.fit == how.fit
    sites = fit_ranges(saved.config, other.noisy.ranges, how.fit)
    notes = notes | {"sites": sites_to_json(sites)}
    save_model(tmp_path / "own", saved.config, saved.params, saved.tokenizer, notes)
    own = evaluate_folder(tmp_path / "own", data_dir=str(glue), how=file).twin
    assert own.own and own.unused
    assert own.how.ckks == other.how.ckks and "[twin]" in " ".join(own.warnings)


def test_the_papers_table_is_within_the_polynomial_roots_domain_and_serves_a_job():
    table = GLUE_TABLE.with_name("paper.toml")
    rows, how = read_table(table)
    for row in rows.values():
        assert row.multiplier is not None and row.epsilon * row.multiplier >= 0.0005
        assert (row.rank, row.batch, row.adapted) == (2, 16, ("query", "key", "value"))
    assert rows["RTE"].multiplier == 10 and rows["STS-B"].epsilon == 0.4
    knobs = dict(how.fit.composites)
    assert dict(knobs["exp"]) == {"squarings": 14, "degree": 1}
    assert dict(knobs["relu"]) == {"degrees": (15, 15, 27)}
    assert dict(how.fit.ranges)["loss.exp"] == (-2.0, 2.0)
    given = {"task.task": "rte", "encrypted.simulate": True}
    job = read_job(None, given, table)
    assert job.settings.multiplier == 10 and job.settings.encrypted == how
    own = read_job(None, given)
    assert own.settings.encrypted is not None and own.settings.encrypted.fit.composites != knobs


def test_a_penalty_of_the_settings_reaches_the_training(settings: Path, tmp_path: Path):
    text = settings.read_text().replace("[training]", '[training]\nmethod = "full"')
    (tmp_path / "p.toml").write_text(text + "[penalty]\npenalty = 0.5\nexp = [-3, 0]\n")
    found = read_job(tmp_path / "p.toml").settings
    assert found.penalty == 0.5 and dict(found.ranges)["exp"] == (-3.0, 0.0)
    (tmp_path / "p.toml").write_text(text + "[penalty]\npenalty = 0.5\nexp = [0, -3]\n")
    with pytest.raises(ExperimentError, match="the range of exp"):
        read_job(tmp_path / "p.toml")
