"""The set-up itself: complete, hash-pinned locks without hosts, and Makefile targets that exist."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
LOCKS = [TOP / "requirements" / f"{name}.lock" for name in ("build", "dev", "docs", "evaluate")]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pins(lock: Path) -> dict[str, str]:
    """From package to the text of its entry."""
    entries = re.split(r"^(?=[a-z0-9])", lock.read_text(), flags=re.MULTILINE)[1:]
    return {_normal(entry.split("==")[0]): entry for entry in entries}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_pin_has_an_exact_version_and_a_hash(lock: Path) -> None:
    pins = _pins(lock)
    assert len(pins) > 5
    for entry in pins.values():
        assert re.match(r"[a-z0-9._-]+==[^\s;]+", entry), entry
        assert "--hash=sha256:" in entry, entry


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_locks_name_no_host_and_no_path(lock: Path) -> None:
    assert not re.search(r"://|file:|--index|find-links|^/|^-e", lock.read_text(), re.MULTILINE)


@pytest.mark.parametrize("extra", ["dev", "docs"])
def test_the_lock_covers_every_dependency(extra: str) -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"][extra]]
    names = {_normal(re.split(r"[\[<>=;! ]", line)[0]) for line in wanted}
    assert names <= set(_pins(TOP / "requirements" / f"{extra}.lock"))


def test_the_locks_agree() -> None:
    build, everything, docs, evaluate = (_pins(lock) for lock in LOCKS)
    assert set(build) | set(evaluate) <= set(everything)
    for name, entry in (*build.items(), *docs.items(), *evaluate.items()):
        assert entry.split()[0] == everything.get(name, entry).split()[0]


@pytest.mark.parametrize("version", ["310", "312"])
def test_openfhe_is_pinned_for_each_python_that_a_wheel_holds(version: str) -> None:
    lock = TOP / "requirements" / f"openfhe-py{version}.lock"
    assert set(_pins(lock)) == {"openfhe", "numpy"}
    for entry in _pins(lock).values():
        assert re.match(r"[a-z]+==[0-9.]+ ", entry) and entry.count("--hash=sha256:") == 1
    assert not re.search(r"://|file:|--index|find-links|^/|^-e", lock.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'shim: 3.10 is not installed' >&2; exit 127", "shim: 3.10 is not installed"),
        ("echo 311", "no wheel of OpenFHE holds its version"),
        ('[ "$1" = -c ] && echo 310', "has no venv/ensurepip"),
        (None, "there is no program"),
    ],
)
def test_a_python_that_openfhe_cannot_use_speaks_for_itself(
    tmp_path: Path, script: str | None, said: str
) -> None:
    shim = tmp_path / "python3.10"
    if script is not None:
        shim.write_text(f"#!/bin/sh\n{script}\n")
        shim.chmod(0o755)
    for name in ("Makefile", "requirements"):
        (tmp_path / name).symlink_to(TOP / name)
    command = ["make", "-C", str(tmp_path), "setup-openfhe", f"PYTHON={shim}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and f"OpenFHE is imported at {shim}" in done.stderr
    assert said in done.stderr
    assert not (tmp_path / ".venv-openfhe").exists()


def test_each_documented_target_exists() -> None:
    named = re.findall(r"`make ([a-z-]+)", (TOP / "README.md").read_text())
    assert {"setup", "test", "lint", "clean"} <= set(named)
    for target in sorted(set(named)):
        dry = subprocess.run(
            ["make", "--dry-run", target], cwd=TOP, capture_output=True, text=True, check=False
        )
        assert dry.returncode == 0, dry.stderr


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo 'shim: python3.12 is not installed' >&2; exit 127",
            "shim: python3.12 is not installed",
        ),
        ("echo it is Python 3.9.1; exit 1", "it is Python 3.9.1"),
        (None, "there is no program"),
    ],
)
def test_an_interpreter_that_does_not_serve_speaks_for_itself(
    tmp_path: Path, script: str | None, said: str
) -> None:
    shim = tmp_path / "python3.12"
    if script is not None:
        shim.write_text(f"#!/bin/sh\n{script}\n")
        shim.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "requirements"):
        (tmp_path / name).symlink_to(TOP / name)
    command = ["make", "-C", str(tmp_path), "setup", f"PYTHON={shim}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and f"no usable Python >= 3.11 found at {shim}" in done.stderr
    assert said in done.stderr
