"""The Python that has OpenFHE is found by trying, and what was tried is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from he_backend.errors import BackendError
from he_backend.machines.openfhe import interpreter
from he_backend.machines.table import MachineRow
from he_backend.processes.folders import clean_environment, module_command

GOOD = "echo OpenFHE 1.6.1.0 3 10"


def python(path: Path, script: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return str(path)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No Python is known, and none is at hand."""
    monkeypatch.delenv(interpreter.VARIABLE, raising=False)
    monkeypatch.setattr(interpreter, "__file__", str(tmp_path / "beside/a/b/c/d.py"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "executable", python(tmp_path / "own", "echo own says no >&2; exit 1"))
    interpreter._examined.cache_clear()


def test_what_the_variable_names_is_taken_or_refused(tmp_path, monkeypatch):
    python(tmp_path / "here/.venv-openfhe/bin/python", GOOD)
    named = python(tmp_path / "named", GOOD)
    monkeypatch.setenv(interpreter.VARIABLE, named)
    assert interpreter.find_interpreter() == named
    assert interpreter.version_of(named) == "OpenFHE 1.6.1.0, Python 3.10"
    bad = python(tmp_path / "bad", "echo 'ImportError: no module' >&2; exit 1")
    monkeypatch.setenv(interpreter.VARIABLE, bad)
    with pytest.raises(BackendError, match=f"{bad}: ImportError: no module.*make setup-openfhe"):
        interpreter.find_interpreter()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 0", "it is no Python: it was asked for its version and said something else"),
        ("echo hello, I am a program", "it is no Python"),
        ("echo OpenFHE 1.5.1.0 3 10", "OpenFHE 1.5.1.0, Python 3.10, and the machine knows .*1.6"),
        ("echo OpenFHE 1.6.1.0 3 9", "at least Python 3.10 is needed"),
        ("kill -11 $$", "it ended with status -11"),
    ],
)
def test_what_is_no_python_or_has_another_version_is_refused(tmp_path, monkeypatch, script, said):
    monkeypatch.setenv(interpreter.VARIABLE, python(tmp_path / "named", script))
    with pytest.raises(BackendError, match=f"{interpreter.VARIABLE} names no Python .*{said}"):
        interpreter.find_interpreter()


def test_a_folder_and_a_text_are_no_programs(tmp_path, monkeypatch):
    (tmp_path / "text").write_text("no program")
    for path in (tmp_path, tmp_path / "text"):
        monkeypatch.setenv(interpreter.VARIABLE, str(path))
        with pytest.raises(BackendError, match=f"{path}: it is no program that can be run"):
            interpreter.find_interpreter()


def test_folders_come_before_the_own_python(tmp_path):
    own = python(tmp_path / "own", GOOD)
    assert interpreter.find_interpreter() == own
    here = python(tmp_path / "here/.venv-openfhe/bin/python", GOOD)
    interpreter._examined.cache_clear()
    assert interpreter.find_interpreter() == here
    broken = python(tmp_path / "beside/.venv-openfhe/bin/python", "kill -9 $$")
    assert interpreter.find_interpreter() == here
    python(Path(broken), GOOD)
    interpreter._examined.cache_clear()
    assert interpreter.find_interpreter() == broken


def test_where_none_serves_each_says_why(tmp_path):
    python(tmp_path / "here/.venv-openfhe/bin/python", "echo wrong glibc >&2; exit 1")
    with pytest.raises(BackendError) as caught:
        interpreter.find_interpreter()
    message = str(caught.value)
    for said in ("there is no such file", "wrong glibc", "own says no", "make setup-openfhe"):
        assert said in message
    assert interpreter.VARIABLE in message


def test_a_row_asks_its_finder(tmp_path):
    row = MachineRow("m", "K", True, finder=f"{interpreter.__name__}:find_interpreter")
    with pytest.raises(BackendError, match="no Python that imports OpenFHE"):
        row.python()
    python(tmp_path / "own", GOOD)
    interpreter._examined.cache_clear()
    assert row.python() == sys.executable
    assert MachineRow("m", "K", True).python() is None


def test_another_python_runs_our_modules_with_its_own_packages_first(tmp_path, monkeypatch):
    monkeypatch.undo()
    installed, ours = tmp_path / "site-packages", tmp_path / "ours"
    installed.mkdir()
    ours.mkdir()
    (ours / "asked.py").write_text("import json, sys; print(json.dumps(sys.path))")
    (tmp_path / "json.py").write_text("raise ImportError('of the current folder')")
    (installed / "json.py").write_text("raise ImportError('of the other Python')")
    environment = {**clean_environment(), "PYTHONPATH": f"{installed}:{ours}"}
    command = module_command("asked", sys.executable)
    ran = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    path = json.loads(ran.stdout)
    assert path[0] == str(ours) and path[-1] == str(installed) and "" not in path
