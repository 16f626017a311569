"""`hesim encrypted-finetune`: settings, rehearsal, training on plain vectors and encrypted, values
that would leave a domain, and the model that comes of it.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.cli import main
from experiments.console import Display
from experiments.encrypted_training.margins import Margin, thin
from experiments.encrypted_training.rehearsing import EXACT, REHEARSED
from experiments.encrypted_training.report import Found, write_report
from experiments.encrypted_training.run import run_encrypted_training
from experiments.encrypted_training.running import Running
from experiments.encrypted_training.settings import EncryptedJob, job_template, read_job
from experiments.encrypted_training.states import saved_steps
from experiments.errors import ExperimentError
from experiments.training.evaluate import evaluate_folder
from experiments.validation.folder import RunFolder
from hesim.params import CKKSParams
from models.weights.folder import load_model
from tests.experiments.conftest import write_encoder

SETTINGS = """
[task]
task = "sst-2"
length = 8
[start]
attention = "gaussian"
start = "{start}"
[training]
batch = 4
steps = 6
save_every = 2
learning_rate = 2e-2
epsilon = 2e-3
rank = 1
alpha = 4.0
pooling = "token"
dropout = 0.1
[penalty]
penalty = 0.5
"""

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def encoder(glue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("start") / "encoder", glue, ffn=4)


@pytest.fixture(scope="module")
def settings(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "s.toml"
    path.write_text(SETTINGS.format(start=encoder))
    return path


@pytest.fixture(scope="module")
def job(settings: Path) -> EncryptedJob:
    read = read_job(settings)
    return dataclasses.replace(read, how=dataclasses.replace(read.how, range_rows=64))


def run(job: EncryptedJob, out: Path, how: Running | None, glue: Path) -> tuple[bool, RunFolder]:
    return run_encrypted_training(job, out, how, data_dir=str(glue), display=Display(quiet=True))


def metrics(path: Path) -> dict[int, dict[str, str]]:
    with open(path / "metrics.csv", newline="", encoding="utf-8") as file:
        return {int(row["step"]): row for row in csv.DictReader(file)}


ON_VECTORS = Running("slots", workers=1, every=2)


@pytest.fixture(scope="module")
def rehearsed(job: EncryptedJob, glue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("training") / "run"
    done, _ = run(job, out, None, glue)
    assert done
    return out


@pytest.fixture(scope="module")
def trained(rehearsed: Path, job: EncryptedJob, glue: Path) -> Path:
    """On plain vectors, from the first step, in the folder of the rehearsal."""
    done, _ = run(job, rehearsed, ON_VECTORS, glue)
    assert done
    return rehearsed


# Settings


def test_a_file_of_finetune_is_read_and_what_encryption_cannot_do_is_off(settings: Path):
    job = read_job(settings)
    assert job.settings.dropout == 0 and job.settings.penalty == 0
    assert [line.split(" ")[0] for line in job.off] == ["dropout", "the"]
    assert job.settings.buckets == (8,) and job.steps == 6
    assert job.how.ckks == CKKSParams(14, 4, 40, 50, 60)


def test_the_template_is_a_file_of_defaults(tmp_path: Path):
    path = tmp_path / "all.toml"
    path.write_text(job_template())
    assert read_job(path).how == read_job().how
    assert read_job().settings.rank == 2


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[training]\nsteps = -1", "steps is -1"),
        ("[devices]\ndata = 2", "--workers"),
        ("[training]\nbatches = 3", "batches"),
        ("[training]\nmethod = 'none'", "method"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, text: str, what: str):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ExperimentError, match=what):
        read_job(path)


def test_options_of_the_command_win_over_the_file(settings: Path, monkeypatch):
    from experiments.encrypted_training import run as running

    jobs: list[EncryptedJob] = []
    monkeypatch.setattr(
        running, "run_encrypted_training", lambda job, *_, **__: (jobs.append(job) or True, None)
    )
    options = ("--rank", "3", "--batch", "2", "--length", "16", "--rehearse")
    with pytest.raises(SystemExit) as ended:
        main(["encrypted-finetune", "--config", str(settings), *options])
    assert ended.value.code == 0
    assert (jobs[0].settings.rank, jobs[0].settings.batch, jobs[0].length) == (3, 2, 16)


# Rehearsal


def test_a_rehearsal_keeps_both_trainings_and_says_what_to_expect(rehearsed: Path):
    rows = metrics(rehearsed / "rehearsal")
    assert list(rows) == [1, 2, 3, 4, 5, 6]
    for row in rows.values():
        assert abs(float(row["loss"]) - float(row["exact_loss"])) < 2**-6
        assert float(row["error_bits"]) < -6
        assert float(row["outside"]) == 0
    assert rows[6]["accuracy"] and rows[6]["exact_accuracy"]
    folder = RunFolder.find(rehearsed)
    assert saved_steps(folder, REHEARSED) == saved_steps(folder, EXACT) == [1, 2, 3, 4, 5, 6]
    found = json.loads((rehearsed / "report.json").read_text())
    assert found["plan"]["ledger"]["seconds"] > 0
    assert {row["name"] for row in found["rehearsal"]["margins"]} >= {"loss.exp", "pooler.tanh"}
    page = (rehearsed / "report.html").read_text()
    assert "Room in the polynomials" in page and "simulated" in page
    assert "encrypted</h1>" not in page


def test_a_rehearsal_goes_on_to_the_same_numbers(
    rehearsed: Path, job: EncryptedJob, glue: Path, tmp_path: Path, monkeypatch
):
    asked = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) > 3

    from experiments.encrypted_training import run as running

    with monkeypatch.context() as patched:
        patched.setattr(running, "until_signalled", lambda: _Always(stop))
        done, folder = run(job, tmp_path / "run", None, glue)
    assert not done and saved_steps(folder, REHEARSED) == [1, 2, 3]
    circuit = (folder.path / "step.npz").stat().st_mtime_ns
    done, _ = run(job, tmp_path / "run", None, glue)
    assert done and (folder.path / "step.npz").stat().st_mtime_ns == circuit
    whole, parts = metrics(rehearsed / "rehearsal"), metrics(tmp_path / "run" / "rehearsal")
    assert [row["loss"] for row in whole.values()] == [row["loss"] for row in parts.values()]


class _Always:
    def __init__(self, stop) -> None:
        self.stop = stop

    def __enter__(self):
        return self.stop

    def __exit__(self, *error: object) -> None:
        pass


# Runs


def test_a_training_on_plain_vectors_goes_as_the_exact_one(trained: Path):
    rows = metrics(trained / "plain")
    assert list(rows) == [1, 2, 3, 4, 5, 6]
    for row in rows.values():
        assert float(row["loss"]) == pytest.approx(float(row["exact_loss"]), abs=1e-5)
    figures = RunFolder.find(trained).figures("plain")
    assert figures["error_bits"] < -12 and not figures["encrypted"]
    assert figures["test"].keys() == figures["exact_test"].keys()
    assert "on plain vectors" in (trained / "report.html").read_text()


def test_its_model_is_evaluated_as_of_a_fine_tuning(trained: Path, glue: Path):
    saved = load_model(trained / "plain" / "model")
    assert saved.notes["task"] == "glue/SST-2" and saved.notes["step"] == 6
    found = evaluate_folder(trained / "plain", data_dir=str(glue))
    assert found.twin.own
    assert found.twin.polynomial == pytest.approx(RunFolder.find(trained).figures("plain")["test"])


def test_its_report_is_written_again(trained: Path, capsys):
    (trained / "report.html").unlink()
    with pytest.raises(SystemExit) as ended:
        main(["report", str(trained)])
    assert ended.value.code == 0 and "simulated" in capsys.readouterr().out
    assert "Room in the polynomials" in (trained / "report.html").read_text()


def test_its_page_says_what_was_predicted_and_how_sure_that_is(trained: Path, tmp_path: Path):
    shutil.copytree(trained, tmp_path / "run")
    folder = RunFolder.find(tmp_path / "run")
    shutil.copytree(folder.path / "plain", folder.path / "encrypted-from-4")
    own = {"error_bits": -17.7, "predicted_bits": -17.9, "predicted_spread": 0.41}
    folder.save("encrypted-from-4", folder.figures("plain") | {"encrypted": True, "start": 4} | own)
    page = write_report(Found.of(folder), folder).read_text()
    assert "2<sup>-17.9</sup> ± 0.4 bit" in page and "2<sup>-17.7</sup>" in page


def test_it_may_begin_with_a_state_of_the_rehearsal(trained: Path, job: EncryptedJob, glue: Path):
    done, folder = run(job, trained, dataclasses.replace(ON_VECTORS, start=4), glue)
    assert done
    rows, before = metrics(trained / "plain-from-4"), metrics(trained / "rehearsal")
    assert list(rows) == [5, 6]
    for step, row in rows.items():
        assert float(row["loss"]) == pytest.approx(float(before[step]["loss"]), abs=2**-8)
    with pytest.raises(ExperimentError, match="no state after step 5 .* there are: none"):
        run(job, trained.parent / "other", dataclasses.replace(ON_VECTORS, start=5), glue)


def test_a_step_that_would_leave_a_domain_is_not_run(job: EncryptedJob, glue: Path, tmp_path: Path):
    fit = dataclasses.replace(job.how.fit, ranges=(("pooler.tanh", (-0.01, 0.01)),))
    narrow = dataclasses.replace(job, how=dataclasses.replace(job.how, fit=fit))
    with pytest.raises(
        ExperimentError, match=r"step 1 would leave the domain of pooler.tanh.*tanh ="
    ):
        run(narrow, tmp_path / "run", ON_VECTORS, glue)


@pytest.mark.slow
def test_softmax_attention_is_trained_by_squarings(job: EncryptedJob, glue: Path, tmp_path: Path):
    soft = dataclasses.replace(job, attention="softmax", steps=1)
    done, folder = run(soft, tmp_path / "run", None, glue)
    assert done
    assert "softmax_inv" in folder.figures("twin")["sites"]


@pytest.mark.slow
def test_all_weights_are_trained(job: EncryptedJob, glue: Path, tmp_path: Path):
    full = dataclasses.replace(job.settings, method="full")
    done, folder = run(
        dataclasses.replace(job, settings=full, steps=2), tmp_path / "run", ON_VECTORS, glue
    )
    assert done
    saved, start = load_model(folder.path / "plain" / "model"), load_model(job.start)
    moved = jax.tree.map(
        lambda a, b: bool(np.any(a != b)), saved.params["blocks"], start.params["blocks"]
    )
    assert all(jax.tree.leaves(moved))


@pytest.mark.slow
def test_the_last_steps_of_a_rehearsal_run_encrypted(job: EncryptedJob, glue: Path, tmp_path: Path):
    # With 40 bits, errors would be units of the last place of the float32 states.
    ckks = dataclasses.replace(job.how.ckks, scale_bits=34)
    coarse = dataclasses.replace(job, how=dataclasses.replace(job.how, ckks=ckks))
    rehearsed = tmp_path / "run"
    done, _ = run(coarse, rehearsed, None, glue)
    assert done
    how = Running(workers=2, start=4, every=1)
    done, folder = run(coarse, rehearsed, how, glue)
    assert done
    rows = metrics(rehearsed / "encrypted-from-4")
    for row in rows.values():
        assert float(row["loss"]) == pytest.approx(float(row["exact_loss"]), abs=2**-6)
    figures = folder.figures("encrypted-from-4")
    # The largest of few errors: simulated runs have a standard deviation of 0.4 bit.
    assert 0.1 < figures["predicted_spread"] < 0.9
    assert abs(figures["error_bits"] - figures["predicted_bits"]) < 1.25
    page = (rehearsed / "report.html").read_text()
    for name in ("error_bits", "predicted_bits"):
        assert f"2<sup>{figures[name]:.1f}</sup>" in page


# Margins


def test_room_is_measured_where_a_value_can_leave():
    row = Margin("layer0.attention.exp", (-6.0, -0.01), (-8.0, 0.0), 0.5)
    assert row.option == "exp" and "exp = [-9, 0]" in row.remedy
    assert thin([row]) == []
    assert thin([dataclasses.replace(row, room=0.05)]) != []


def test_the_command_prints_its_template(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["encrypted-finetune", "--template"])
    assert ended.value.code == 0
    assert "save_every" in capsys.readouterr().out
