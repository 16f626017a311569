"""One process at a time in the folder of a run."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from experiments.errors import ExperimentError

__all__ = ["alone_in"]


@contextlib.contextmanager
def alone_in(folder: Path, option: str = "--out") -> Iterator[None]:
    """Make the folder and keep other processes from working in it; ExperimentError if one does.

    option: of the command line, by which another folder is chosen.
    """
    if folder.exists() and not folder.is_dir():
        raise ExperimentError(
            f"{folder} is a file, not the folder of a run: choose another {option}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")  # noqa: SIM115  # closed by the "with" below
    except OSError as error:
        raise ExperimentError(
            f"{folder} cannot be written to ({error.strerror}): choose another {option}"
        ) from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ExperimentError(
                f"another process is working in {folder}; wait for it, or choose another {option}"
            ) from None
        yield
