"""Commands on OpenFHE: the ring and the bootstrap that they choose, and a validation in which no
key holder takes part.
"""

from __future__ import annotations

import dataclasses
import io
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import psutil
import pytest

from benchmarks.bootstrapped import SECURE, Case, Outcome, measure, planned, table
from experiments.cli import main
from experiments.cli.common import REFUSED
from experiments.console import Display, make_console
from experiments.demo import bootstrapping
from experiments.demo.run import run_demo
from experiments.demo.settings import Settings
from experiments.encrypted_training.settings import for_machine, read_job
from experiments.errors import ExperimentError
from experiments.machines import BOOTSTRAPPING, based, bootstrap_of, suited
from experiments.validation.bootstrapped import STAGE
from experiments.validation.encrypting import said_before
from experiments.validation.folder import RunFolder
from experiments.validation.report import page
from experiments.validation.results import Results
from experiments.validation.run import run_validation
from experiments.validation.settings import Validation
from experiments.validation.subject import find_subject
from experiments.validation.table import render, ways
from he_backend.machines.openfhe import interpreter
from hesim.circuit.refresher import KEY_HOLDER
from hesim.errors import ParameterError, ValueOverflowWarning
from models.encrypted.settings import EncryptionSettings
from models.weights.folder import load_model, save_model
from tests.experiments.conftest import write_encoder

pytestmark = pytest.mark.usefixtures("quick_compilation")

QUIET = Display(quiet=True)
SECURE_GB = 16
"""Of free memory, with which the secure ring is tried."""


def hesim(*arguments: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(arguments))
    return int(done.value.code or 0)


@pytest.fixture(scope="module")
def model(glue: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder as a training leaves it, its weights random."""
    bare = write_encoder(tmp_path_factory.mktemp("bare"), glue, heads=1, pooler=(4,))
    saved, folder = load_model(bare), tmp_path_factory.mktemp("tuned")
    params = saved.params
    head = np.asarray(params["head"]["kernel"])
    params["head"]["kernel"] = head + np.random.default_rng(0).normal(size=head.shape)
    notes = {"task": "glue/SST-2", "length": 8, "buckets": [8], "sites": "", "encrypted": ""}
    save_model(folder, saved.config, params, saved.tokenizer, notes)
    return str(folder)


def test_the_ring_is_the_machines_where_the_models_own_is_none_for_it() -> None:
    own = EncryptionSettings()
    assert based(own, "pyfhel") is own and based(own, "slots") is own
    assert suited(own, "pyfhel").refresher is KEY_HOLDER
    found = suited(based(own, "openfhe"), "openfhe", key_holder=True)
    assert found.how.ckks == BOOTSTRAPPING and found.how.profile == "openfhe"
    assert found.refresher is KEY_HOLDER and BOOTSTRAPPING.security == 128


def test_a_small_ring_has_the_same_chain_and_no_security(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = suited(based(EncryptionSettings(), "openfhe"), "openfhe", insecure=11)
    ring = found.how.ckks
    assert (ring.log_n, ring.levels, ring.security) == (11, BOOTSTRAPPING.levels, None)
    assert not found.refresher.interactive and found.refresher.min_input_level == 4
    assert based(found.how, "openfhe") is found.how  # a model's own ring, if it is one
    file = tmp_path / "settings.toml"
    file.write_text("[bootstrap]\nbudget = [2, 1]\ncorrection = 11\niterations = 2\n")
    other = suited(found.how, "slots", bootstrap_of(file))
    assert other.how is found.how and other.refresher.min_input_level == 2
    assert str(other.refresher.error).endswith("_cf11_x2")
    with pytest.raises(ExperimentError, match="--insecure 3"):
        suited(found.how, "openfhe", insecure=3)


def test_a_file_changes_the_machines_ring(tmp_path: Path, model: str) -> None:
    file = tmp_path / "settings.toml"
    ring = "[encrypted]\nlog_n = 10\nlevels = 5\ndigits = 3\nsecurity = 0\n"
    file.write_text(f"{ring}[bootstrap]\nbudget = [2, 2]\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = find_subject(model, file, "openfhe")
    found = suited(subject.how, "openfhe", bootstrap_of(file))
    ring = found.how.ckks
    assert (ring.log_n, ring.levels, ring.digits, ring.security) == (10, 5, 3, None)
    assert ring.scale_bits == BOOTSTRAPPING.scale_bits and found.refresher.chain(ring).levels == 17


def test_the_template_says_every_option_and_changes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hesim("validate", "--template") == 0
    shown = capsys.readouterr().out
    assert {"[encrypted]", "[twin]", "[bootstrap]"} <= set(shown.splitlines())
    file = tmp_path / "settings.toml"
    file.write_text(shown)
    assert bootstrap_of(file) == {} and bootstrap_of(None) == {}
    file.write_text("[bootstrap]\nbugdet = [3, 3]\n")
    with pytest.raises(ExperimentError, match="did you mean 'budget'"):
        bootstrap_of(file)


def test_without_the_library_a_command_says_so_before_it_does_anything(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = str(tmp_path / "python")
    monkeypatch.setenv(interpreter.VARIABLE, nowhere)
    out = tmp_path / "run"
    assert hesim("validate", model, "--backend", "openfhe", "--out", str(out)) == REFUSED
    said = " ".join(capsys.readouterr().err.split())
    assert f"{nowhere}: there is no such file" in said and "make setup-openfhe" in said
    assert not out.exists()


def test_a_validation_asks_no_key_holder_and_errs_as_simulated(
    model: str,
    glue: Path,
    tmp_path: Path,
    needs_openfhe: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where memory is short it is refused with the figure, and goes on once there is some."""
    asked = Validation(model, data_dir=str(glue), sentences=8, backend="openfhe", insecure=10)
    words = asked.command.split()[3:]
    with monkeypatch.context() as short:
        short.setattr("he_backend.processes.memory.available", lambda: 10**8)
        out = ("--data-dir", str(glue), "--out", str(tmp_path / "run"))
        assert hesim("validate", model, *words, *out) == REFUSED
    said = " ".join(capsys.readouterr().err.split())
    assert "0.1 GB are free, so no keys were made" in said and "GB are keys" in said
    results, folder = run_validation(asked, tmp_path / "run", display=QUIET)
    assert results.was_encrypted and results.broken == []
    assert results.total("refreshes") > 0 and not results.refresher.interactive
    simulated = np.sqrt(np.mean((results.simulated - results.reference) ** 2))
    assert abs(np.log2(results.ratio)) < 0.5  # of several keys, operation by operation
    assert abs(np.log2(results.measured_std / simulated)) < 2.5  # of one
    assert results.summary()["interactive"] is False
    assert "rotations + relinearization + bootstraps" in shown(results)
    page = (folder.path / "report.html").read_text()
    assert "The server bootstrapped" in page and "Interactive." not in page
    assert "--backend openfhe --insecure 10" in page
    assert "at refreshes intermediate values" not in page


def test_slots_that_no_bootstrap_is_made_for_are_said_at_once_and_once() -> None:
    file = io.StringIO()
    display = Display(make_console(file=file, width=200))
    with said_before(display) as said:
        for _ in range(2):
            warnings.warn("slots of up to 4", ValueOverflowWarning, stacklevel=2)
        warnings.warn("something else", UserWarning, stacklevel=2)
        assert file.getvalue().strip() == "warning: slots of up to 4"
    assert said == {"slots of up to 4"}


def test_an_encrypted_training_takes_the_machines_ring_and_bootstrap(tmp_path: Path) -> None:
    usual = read_job()
    own = for_machine(usual, "pyfhel")
    assert own.how == usual.how and own.plain("", "") == usual.plain("", "")
    with pytest.raises(ParameterError, match="bootstrap"):
        for_machine(usual, "openfhe", insecure=17)  # in which no law was measured
    file = tmp_path / "settings.toml"
    file.write_text("[bootstrap]\nbudget = [2, 1]\n")
    found = for_machine(read_job(file), "openfhe", insecure=11)
    assert found.how.ckks.levels == BOOTSTRAPPING.levels and found.how.profile == "openfhe"
    assert found.refresher.min_input_level == 2 and "refresher" in found.plain("", "")
    file.write_text("[encrypted]\nlevels = 5\n")
    with pytest.raises(ExperimentError, match="add digits = 2"):
        for_machine(read_job(file), "openfhe")


# The benchmark


def outcome(case: Case, std: float, same: int) -> Outcome:
    ledger = SimpleNamespace(seconds=4.0)
    plan = SimpleNamespace(case=case, circuit=SimpleNamespace(ledger=ledger))
    both = (2.0**-22, std)
    return Outcome(cast(Any, plan), (4.0, 5.0), (1e9, 1.25e9), both, 6.4, 2.0, 2.0**-20, same)


@pytest.mark.parametrize(
    ("std", "same", "sound"), [(2.0**-22.4, 4, True), (2.0**-21, 4, False), (2.0**-22, 3, False)]
)
def test_a_bootstrapped_encoder_is_judged_by_labels_and_errors(
    std: float, same: int, sound: bool
) -> None:
    found = outcome(Case(tokens=16, sentences=4), std, same)
    assert found.sound == sound
    text = table(found)
    assert "0.10 s a token" in text and f"{same} of 4 labels" in text and "2^-22 " in text


def test_a_plan_is_of_the_shape_that_was_asked_for() -> None:
    case = dataclasses.replace(SECURE, insecure=11, layers=1, hidden=8, tokens=4)
    assert SECURE.config.hidden == 128 and SECURE.insecure is None
    assert case.config.ffn == 16 and case.config.sequence == 4 and case.config.layers == 1


@pytest.mark.slow
def test_a_block_on_the_secure_ring_errs_as_predicted(needs_openfhe: str) -> None:
    free = psutil.virtual_memory().available / 1e9
    if free < SECURE_GB:
        pytest.skip(f"the secure ring takes {SECURE_GB} GB, and {free:.1f} are free")
    found = measure(planned(Case(insecure=None)))
    assert found.planned.circuit.params.security == 128
    assert found.planned.circuit.ledger.refreshes > 0 and found.sound, table(found)


# The demo's sentences that are bootstrapped besides


@pytest.fixture
def copied(finished: tuple[Results, RunFolder, str], tmp_path: Path) -> RunFolder:
    return RunFolder.find(shutil.copytree(finished[1].path, tmp_path / "copied"))


def shown(results: Results) -> str:
    console = make_console(file=io.StringIO(), width=200)
    console.print(render(results))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_demo_without_openfhe_says_why(copied: RunFolder) -> None:
    copied.save(STAGE, {"reason": "no Python that imports OpenFHE was found: /p: none"})
    results = Results.load(copied)
    assert results.broken == [] and len(ways(results)) == 4
    assert "OpenFHE" in shown(results) and "/p: none" in shown(results)
    text = page(results)
    assert "Not bootstrapped on OpenFHE: no Python that imports" in text and "four ways" in text


@pytest.mark.parametrize(("off", "kept"), [(2.0**-20, True), (2.0**-11, False)])
def test_a_demos_bootstrapped_sentences_are_a_fifth_way(
    copied: RunFolder, off: float, kept: bool
) -> None:
    reference = Results.load(copied).reference[:4]
    figures = {"log_n": 11, "levels": 9, "security": None, "refreshes": 23, "rounds": 9}
    figures |= {"seconds": 9.0, "key_seconds": 1.0, "core_seconds": 15.0, "peak_bytes": 1e9}
    figures |= {"measured_std": off, "predicted_std": off}
    copied.save(STAGE, figures, {"encrypted": reference + off, "reference": reference})
    results = Results.load(copied)
    last = ways(results)[-1]
    assert last.name == "the first 4 bootstrapped on OpenFHE, no key holder"
    assert last.agreement == "100.0%" and last.difference == f"{off:.1e}"
    assert (results.broken == []) == kept
    assert "NO SECURITY" in shown(results) and "five ways" in page(results)
    assert results.summary()["bootstrapped"]["refreshes"] == 23


def test_what_is_bootstrapped_besides_is_run_once_openfhe_is_there(
    settings: Settings, copied: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not bootstrapping.wanted(settings)  # on plain vectors nothing is encrypted
    own = dataclasses.replace(settings, backend="pyfhel")
    assert bootstrapping.wanted(own) and not bootstrapping.finished(own, copied)
    copied.save(STAGE, {"reason": "none is there"})
    monkeypatch.setattr("experiments.machines.missing", lambda name: "none is there")
    assert bootstrapping.finished(own, copied)
    monkeypatch.setattr("experiments.machines.missing", lambda name: None)
    assert not bootstrapping.finished(own, copied)
    assert not bootstrapping.wanted(dataclasses.replace(own, bootstrapped=0))


@pytest.mark.slow
def test_a_demo_bootstraps_its_first_sentences(
    settings: Settings, tmp_path: Path, needs_openfhe: str
) -> None:
    own = dataclasses.replace(settings, backend="pyfhel", sentences=8)
    results, folder = run_demo(own, tmp_path / "run", display=QUIET)
    beside = results.bootstrapped
    assert beside is not None and beside.reason == "" and beside.figures["refreshes"] > 0
    assert results.was_encrypted and results.refresher.interactive and results.broken == []
    measured, predicted = (beside.figures[f"{name}_std"] for name in ("measured", "predicted"))
    assert abs(np.log2(measured / predicted)) < 1.0
    again, _ = run_demo(own, folder.path, display=QUIET)
    assert np.array_equal(again.bootstrapped.encrypted, beside.encrypted)  # type: ignore[union-attr]
