"""The command: exit codes, errors as one message, and the small commands."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from rich.table import Table

import experiments
from experiments.cli import common, main
from experiments.cli.app import app
from experiments.console import Display, make_console
from experiments.demo import run
from experiments.demo.settings import Settings
from experiments.validation.folder import RunFolder
from experiments.validation.results import Check, Results
from experiments.xla_cache import keep_compiled
from models.errors import DataError

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
        (("plan", "demo", "--answer", "words"), "answer 'words' is neither logits nor cosine"),
        (("plan", "nowhere"), "no model 'nowhere': give a preset"),
        (("report", "/nowhere"), "ExperimentError: /nowhere holds no run"),
        (("validate", "/nowhere"), "ExperimentError"),
        (("fit", "exp", "--json", "/nowhere/exp.json"), "FileNotFoundError: .*/nowhere/exp.json"),
    ],
)
def test_every_package_refuses_clearly(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hesim(*arguments) == common.REFUSED
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error


@pytest.mark.parametrize("command", ["pretrain", "publish x --to y"])
def test_a_folder_of_texts_has_one_name_in_all_commands(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--text, as of `hesim distil`; --data, its name before, is read too."""
    asked: list[Path] = []

    def note(*given: object, **_: object) -> None:
        asked.extend(path for path in given if isinstance(path, Path) and path == tmp_path)
        raise DataError("enough")

    monkeypatch.setattr("experiments.training.pretrain.run_pretraining", note)
    monkeypatch.setattr("experiments.training.publish.publish", note)
    for name in ("--text", "--data"):
        assert hesim(*command.split(), name, str(tmp_path)) == common.REFUSED
    assert asked == [tmp_path, tmp_path]


def test_debug_shows_where_an_error_came_from() -> None:
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
        code = hesim("validate", str(finished[1].path), "--clear")
    shown = capsys.readouterr().out
    for site in finished[0].sites:
        assert site.name in shown
    assert "40 held-out rows, exact: accuracy" in shown
    assert code == (0 if shown.count("none") == len(finished[0].sites) else common.BROKEN)


def commands() -> dict[str, Any]:
    """Every command by its words, studies included."""
    found: dict[str, Any] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        found[" ".join(words)] = command
        for name, child in getattr(command, "commands", {}).items():
            walk(child, (*words, name))

    walk(typer.main.get_command(app), ())
    return found


def test_there_are_all_the_commands() -> None:
    assert {"demo", "fit", "finetune", "distil", "study glue"} <= set(commands())


@pytest.mark.parametrize("name", commands())
def test_help_shows_every_description_and_default(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Brackets are no markup, and no option is without a description."""
    monkeypatch.setenv("COLUMNS", "400")
    assert hesim(*name.split(), "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    for option in commands()[name].params:
        text = getattr(option, "help", None)
        assert text, f"{option.name} has no description"
        assert text.split(" [")[0] in shown and text in shown
        default = getattr(option, "show_default", None)
        if isinstance(default, str):
            assert f"[default: ({default})]" in shown
        elif default and option.default is not None and option.default is not False:
            value = getattr(option.default, "value", option.default)
            said = ", ".join(map(str, value)) if isinstance(value, tuple) else value
            assert f"[default: {said}]" in shown


def test_a_machine_of_the_table_is_a_backend_of_the_command_line() -> None:
    code = (
        "import sys\n"
        "from he_backend.machines import table\n"
        "table.MACHINES = {**table.MACHINES, 'toy': table.MACHINES['slots']}\n"
        "from experiments.cli import main\n"
        "main(sys.argv[1:])"
    )
    shown, refused = (
        subprocess.run(
            [sys.executable, "-c", code, "demo", *words],
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
        )
        for words in (["--backend=toy", "--help"], ["--backend=toys"])
    )
    assert shown.returncode == 0 and "slots|pyfhel|openfhe|toy" in shown.stdout
    assert "encrypted but on slots and toy" in " ".join(shown.stdout.split())
    assert refused.returncode == 2 and "'toys' is unknown" in refused.stderr


def test_help_of_fit_names_every_target(capsys: pytest.CaptureFixture[str]) -> None:
    from approx.targets import NAMED

    assert hesim("fit", "--help") == 0
    shown = set(re.findall(r"\w+", capsys.readouterr().out))
    assert set(NAMED) <= shown


BRACKETS = "the section [twin], [default: x] [/] [bold]a[/bold] :sea: and a:b:c"


def test_what_is_shown_is_shown_as_it_is() -> None:
    """Brackets and colons of texts, names and settings are no markup, wherever they appear."""
    file = io.StringIO()
    console = make_console(file=file, width=200)
    table = Table(BRACKETS, title=BRACKETS)
    table.add_row(BRACKETS)
    console.print(BRACKETS)
    console.print(table)
    display = Display(Console(file=file, width=200))  # any console
    display.say(BRACKETS, dim=BRACKETS)
    display.warn(BRACKETS)
    display.stage(BRACKETS)
    with display.bar(BRACKETS, 2) as update:
        update(1, BRACKETS, None)
    with Display(Console(file=file, width=400, force_terminal=True, color_system=None)).bar(
        BRACKETS, 2
    ) as update:
        update(1, BRACKETS, None)
    assert file.getvalue().count(BRACKETS) >= 12


def test_consoles_are_made_in_one_place() -> None:
    assert experiments.__file__ is not None
    for path in Path(experiments.__file__).parent.rglob("*.py"):
        if path.name != "console.py":
            assert not re.search(r"(?<!make_)(?<!\w)Console\(", path.read_text()), path


def test_a_wait_before_the_work_is_no_part_of_the_estimate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("experiments.console.time.monotonic", lambda: now[0])
    file = io.StringIO()
    with Display(Console(file=file, width=120)).bar("full", 1.0) as update:
        update(0.0, "compiling the step ...", None)
        now[0] = 120.0
        update(0.0, "", None)
        now[0] = 140.0
        update(0.25, "step 5", None)
    lines = file.getvalue().splitlines()
    assert "compiling the step" in lines[0] and "? left" in lines[0]
    assert "2:20 so far, 1:00 left" in lines[-1]


def test_a_package_that_hides_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    top = Path(experiments.__file__ or "").parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "data", "reviews"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{top}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == common.REFUSED
    assert f"the package models at {tmp_path / 'models'}" in done.stderr
    assert "rename it" in done.stderr and "Traceback" not in done.stderr
