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

__all__ = ["VARIABLE", "find_interpreter"]

VARIABLE = "HESIM_OPENFHE_PYTHON"
"""Names the interpreter; then no other is tried."""

_FOLDER = ".venv-openfhe"
_IMPORT = "import numpy, openfhe; openfhe.CCParamsCKKSRNS"
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
    also = "" if named else f", or name a Python that has it in {VARIABLE}"
    raise BackendError(
        f"no Python that imports OpenFHE was found: {'; '.join(said)}. Run `make setup-openfhe`"
        f"{also}"
    )


def _places() -> Iterator[str]:
    beside = Path(__file__).resolve().parents[3]
    for folder in dict.fromkeys((beside, Path.cwd())):
        yield str(folder / _FOLDER / "bin" / "python")
    yield sys.executable


@cache
def _refusal(path: str) -> str | None:
    """What an interpreter says that does not import OpenFHE; None if it does."""
    if not Path(path).exists():
        return "there is no such file"
    try:
        done = subprocess.run(
            [path, "-I", "-c", _IMPORT],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if not done.returncode:
        return None
    return (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
