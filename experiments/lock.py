"""One process at a time in the folder of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from experiments.errors import ExperimentError
from hesim import files
from hesim.errors import FolderInUseError

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
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(files.alone_in(folder))
        except FolderInUseError:
            raise ExperimentError(
                f"another process is working in {folder}; wait for it, or choose another {option}"
            ) from None
        except OSError as error:
            raise ExperimentError(
                f"{folder} cannot be written to ({error.strerror}): choose another {option}"
            ) from error
        yield
