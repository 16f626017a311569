"""Commands on OpenFHE: the ring and the bootstrap that they choose, and a validation in which no
key holder takes part.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from experiments.cli import main
from experiments.cli.common import REFUSED
from experiments.console import Display
from experiments.errors import ExperimentError
from experiments.machines import BOOTSTRAPPING, based, suited
from experiments.validation.run import run_validation
from experiments.validation.settings import Validation
from experiments.validation.subject import find_subject
from he_backend.errors import BackendError
from he_backend.machines.openfhe import interpreter
from hesim.circuit.refresher import KEY_HOLDER
from models.encrypted.settings import EncryptionSettings
from models.weights.folder import load_model, save_model
from tests.experiments.conftest import write_encoder

pytestmark = pytest.mark.usefixtures("quick_compilation")

QUIET = Display(quiet=True)


def hesim(*arguments: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(arguments))
    return int(done.value.code or 0)


@pytest.fixture(scope="module")
def needs_openfhe() -> str:
    try:
        return interpreter.find_interpreter()
    except BackendError as error:
        pytest.skip(str(error))


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
    file.write_text("[bootstrap]\nbudget = [2, 1]\ncorrection = 11\n")
    other = suited(found.how, "slots", file)
    assert other.how is found.how and other.refresher.min_input_level == 2
    assert str(other.refresher.error).endswith("_cf11")
    with pytest.raises(ExperimentError, match="--insecure 3"):
        suited(found.how, "openfhe", insecure=3)


def test_a_file_changes_the_machines_ring(tmp_path: Path, model: str) -> None:
    file = tmp_path / "settings.toml"
    ring = "[encrypted]\nlog_n = 10\nlevels = 17\ndigits = 3\nsecurity = 0\n"
    file.write_text(f"{ring}[bootstrap]\nbudget = [2, 2]\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = find_subject(model, file, "openfhe")
    found = suited(subject.how, "openfhe", file)
    ring = found.how.ckks
    assert (ring.log_n, ring.levels, ring.digits, ring.security) == (10, 17, 3, None)
    assert ring.scale_bits == BOOTSTRAPPING.scale_bits and found.refresher.highest(17) == 5


def test_the_template_says_every_option_and_changes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hesim("validate", "--template") == 0
    shown = capsys.readouterr().out
    assert {"[encrypted]", "[twin]", "[bootstrap]"} <= set(shown.splitlines())
    file = tmp_path / "settings.toml"
    file.write_text(shown)
    own = based(EncryptionSettings(), "openfhe")
    assert suited(own, "openfhe", file, insecure=11) == suited(own, "openfhe", insecure=11)
    file.write_text("[bootstrap]\nbugdet = [3, 3]\n")
    with pytest.raises(ExperimentError, match="did you mean 'budget'"):
        suited(own, "openfhe", file, insecure=11)


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
    model: str, glue: Path, tmp_path: Path, needs_openfhe: str
) -> None:
    asked = Validation(
        model, data_dir=str(glue), sentences=8, backend="openfhe", insecure=10, compare="none"
    )
    results, folder = run_validation(asked, tmp_path / "run", display=QUIET)
    assert results.was_encrypted and results.broken == []
    assert results.total("refreshes") > 0 and not results.refresher.interactive
    simulated = np.sqrt(np.mean((results.simulated - results.reference) ** 2))
    assert abs(np.log2(results.measured_std / simulated)) < 1.5
    assert results.summary()["interactive"] is False
    page = (folder.path / "report.html").read_text()
    assert "The server bootstrapped" in page and "Interactive." not in page
    assert "--backend openfhe --insecure 10" in page
    assert "at refreshes intermediate values" not in page
