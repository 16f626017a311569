"""The Python that OpenFHE's wheel is installed in, found by trying. Imports no OpenFHE.

A wheel holds one version of CPython, often another than the caller's, so the processes of a run
that need it run under an interpreter of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from he_backend.errors import BackendError

__all__ = ["VARIABLE", "find_interpreter", "version_of"]

VARIABLE = "HESIM_OPENFHE_PYTHON"
"""Names the interpreter; then no other is tried."""

_FOLDER = ".venv-openfhe"
_IMPORT = "import sys, numpy, openfhe; print('OpenFHE', openfhe.__version__, *sys.version_info[:2])"
_KNOWN = "1.6."
"""Versions of OpenFHE whose parameters, levels and bytes the machine knows."""

_LEAST_PYTHON = (3, 10)
_SECONDS = 60.0
"""An import takes a quarter of a second; a machine that swaps may take long."""


def find_interpreter() -> str:
    """The path of a Python that imports OpenFHE: what the variable names, or else `.venv-openfhe`
    beside the packages or in the current folder, or else the caller's own.

    Raises:
      BackendError: none does, with what each said.
    """
    named = os.environ.get(VARIABLE)
    said = []
    for path in [named] if named else _places():
        reason = _refusal(path)
        if reason is None:
            return path
        said.append(f"{path}: {reason}")
    if named:
        raise BackendError(
            f"{VARIABLE} names no Python that imports OpenFHE: {'; '.join(said)}. Run `make "
            f"setup-openfhe` and unset {VARIABLE}, or name a Python that has it"
        )
    raise BackendError(
        f"no Python that imports OpenFHE was found: {'; '.join(said)}. Run `make setup-openfhe`, "
        f"or name a Python that has it in {VARIABLE}"
    )


def version_of(path: str) -> str:
    """What an interpreter that `find_interpreter` found has: the versions of both."""
    _, said = _examined(path)
    return said


def _places() -> Iterator[str]:
    beside = Path(__file__).resolve().parents[3]
    for folder in dict.fromkeys((beside, Path.cwd())):
        yield str(folder / _FOLDER / "bin" / "python")
    yield sys.executable


def _refusal(path: str) -> str | None:
    """Why an interpreter does not serve; None if it does."""
    return _examined(path)[0]


@cache
def _examined(path: str) -> tuple[str | None, str]:
    """Why an interpreter does not serve, None if it does, and the versions that it has."""
    if not Path(path).exists():
        return "there is no such file", ""
    if not Path(path).is_file() or not os.access(path, os.X_OK):
        return "it is no program that can be run", ""
    try:
        done = subprocess.run(
            [path, "-I", "-c", _IMPORT],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error), ""
    if done.returncode:
        how = f"it ended with status {done.returncode}"
        return (done.stderr.strip().splitlines() or [how])[-1], ""
    words = done.stdout.split()
    if len(words) != 4 or words[0] != "OpenFHE" or not all(map(str.isdigit, words[2:])):
        return "it is no Python: it was asked for its version and said something else", ""
    said = f"OpenFHE {words[1]}, Python {words[2]}.{words[3]}"
    if not words[1].startswith(_KNOWN):
        return f"it has {said}, and the machine knows OpenFHE {_KNOWN}x", said
    if (int(words[2]), int(words[3])) < _LEAST_PYTHON:
        return f"it has {said}, and at least Python 3.10 is needed", said
    return None, said
