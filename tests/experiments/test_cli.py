"""The command: exit codes, errors as one message, and the small commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli import common, main
from experiments.demo import run
from experiments.demo.folder import RunFolder
from experiments.demo.results import Check, Results
from experiments.demo.settings import Settings
from experiments.xla_cache import keep_compiled

Finished = tuple[Results, RunFolder, str]


def hesim(*arguments: str) -> int:
    """Exit code of the command."""
    with pytest.raises(SystemExit) as done:
        main(list(arguments))
    assert isinstance(done.value.code, int)
    return done.value.code


def test_a_named_error_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert hesim("data", "glue/Nonsense", "--data-dir", "/nowhere") == common.REFUSED
    shown = capsys.readouterr()
    assert shown.err.startswith("hesim: DataError: No GLUE task is called 'Nonsense'")
    assert "Traceback" not in shown.err and shown.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "nonsense"), "nonsense"),
        (("fit", "gelu", "--range", "3", "-3"), "ApproxError|DomainError"),
        (("plan", "--levels", "40"), "ParameterError"),
        (("report", "/nowhere"), "ExperimentError: /nowhere holds no run"),
        (("validate", "/nowhere"), "ExperimentError"),
        (("fit", "exp", "--json", "/nowhere/exp.json"), "FileNotFoundError: .*/nowhere/exp.json"),
    ],
)
def test_every_package_refuses_clearly(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    assert hesim(*arguments) == common.REFUSED
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error


def test_debug_shows_where_an_error_came_from() -> None:
    from models.data.datasets import DataError

    with pytest.raises(DataError):
        main(["data", "nonsense", "--debug"])


def test_an_error_that_is_not_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("models.data.datasets.load", broken)
    with pytest.raises(ZeroDivisionError):
        main(["data"])


@pytest.mark.parametrize("price", ["cheap", "-1", "nan"])
def test_a_price_must_be_seconds(price: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert hesim("demo", "--refresh-price", price) == 2
    assert "neither 'bootstrap' nor seconds" in " ".join(capsys.readouterr().err.split())


def test_the_version_needs_no_jax() -> None:
    code = (
        "import sys\nfrom experiments.cli import main\n"
        "try: main(['--version'])\nexcept SystemExit as e: assert not e.code\n"
        "assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("hesim")


def test_fit_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import approx

    figure, out = tmp_path / "gelu.png", tmp_path / "gelu.json"
    arguments = ("fit", "gelu", "--range", "-8", "8", "--depth", "5")
    assert hesim(*arguments, "--plot", str(figure), "--json", str(out)) == 0
    expected = approx.fit("gelu", (-8, 8), depth=5)
    written = json.loads(out.read_text())
    assert written["coefficients"] == list(expected.coefficients)
    assert written["max_error"] == expected.max_error
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert f"{expected.max_error:.3e}" in capsys.readouterr().out


def test_fit_prints_json_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert hesim("fit", "tanh", "--range", "-2", "2", "--degree", "3", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["depth"] == 3


def _faked(monkeypatch: pytest.MonkeyPatch, finished: Finished, broken: bool) -> list[Settings]:
    asked = []

    def fake(settings: Settings, *_: object, **__: object) -> tuple[Results, RunFolder]:
        asked.append(settings)
        return finished[0], finished[1]

    failing = [Check("labels", False, "none equal")] if broken else []
    monkeypatch.setattr(Results, "broken", property(lambda _: failing))
    monkeypatch.setattr(run, "run_demo", fake)
    return asked


@pytest.mark.parametrize(("broken", "code"), [(False, 0), (True, common.BROKEN)])
def test_a_broken_guarantee_fails_the_demo(
    broken: bool, code: int, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _faked(monkeypatch, finished, broken)
    assert hesim("demo", "--sentences", "300", "--seed", "4", "--refresh-price", "2.5") == code
    assert asked[0] == Settings(sentences=300, seed=4, refresh_price=2.5)


def test_an_interrupted_demo_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_demo", interrupted)
    assert hesim("demo", "--run-dir", "/some/place") == common.INTERRUPTED
    assert "same command goes on" in capsys.readouterr().err


def test_report_writes_the_page_again(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished[1].path, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    assert hesim("report", str(tmp_path / "run")) == 0
    assert (tmp_path / "run" / "report.html").exists()
    assert "refreshed ciphertexts" in capsys.readouterr().out


def test_validate_looks_at_every_polynomial(
    finished: Finished, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with keep_compiled(shared / "compiled"):
        code = hesim("validate", str(finished[1].path))
    shown = capsys.readouterr().out
    for site in finished[0].sites:
        assert site.name in shown
    assert "40 held-out sentences" in shown
    assert code == (0 if shown.count("none") == len(finished[0].sites) else common.BROKEN)
