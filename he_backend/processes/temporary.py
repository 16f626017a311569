"""Folders of a run that has none of its own: they go with the caller, however it ends.

They hold a secret key and clear inputs. What the caller does not live to remove, a process that
watches it does; should that one be killed too, the next run without a folder finds them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from he_backend.errors import RunFolderError
from he_backend.processes.folders import Folders
from he_backend.processes.store import storing
from hesim.errors import FolderInUseError
from hesim.files import alone_in

__all__ = ["temporary_folders"]

_PREFIX = "he-run-"
_WARDEN = Path(__file__).with_name("warden.py")
_END_SECONDS = 10.0
_ATTEMPTS = 10


@contextlib.contextmanager
def temporary_folders(
    run_dir: str | os.PathLike | None, client_dir: str | os.PathLike | None
) -> Iterator[Folders]:
    """The folders asked for, or temporary ones that are removed at the end.

    Raises:
      RunFolderError: they cannot be made or written.
    """
    if run_dir is not None:
        yield Folders.of(run_dir, client_dir)
        return
    with _made() as top, _watched(top):
        try:
            yield Folders.of(top / "run", client_dir)
        finally:
            shutil.rmtree(top, ignore_errors=True)


@contextlib.contextmanager
def _made() -> Iterator[Path]:
    """A new folder, held as long as this process needs it; those that nobody holds are removed."""
    place = Path(tempfile.gettempdir())
    _sweep(place)
    with contextlib.ExitStack() as held:
        for _ in range(_ATTEMPTS):
            with storing(place / _PREFIX):
                top = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
            swept = contextlib.suppress(FolderInUseError, FileNotFoundError)  # by another run
            with storing(top), swept:
                held.enter_context(alone_in(top))
                if top.exists():
                    break
        else:
            raise RunFolderError(
                f"no folder for this run could be kept in {place}: other runs' clean-up removed "
                f"each of {_ATTEMPTS}. Set TMPDIR to another folder, or give run_dir."
            )
        yield top


@contextlib.contextmanager
def _watched(top: Path) -> Iterator[None]:
    """Have `top` removed when this process ends, by one that signals to this one do not reach."""
    warden = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_WARDEN), str(top), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
        env={},
    )
    try:
        yield
    finally:
        assert warden.stdin is not None
        warden.stdin.close()
        try:
            warden.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            warden.kill()
            warden.wait()


def _sweep(place: Path) -> None:
    """Remove the folders in `place` of processes of this user that have ended."""
    for folder in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, FolderInUseError), contextlib.ExitStack() as held:
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            for part in (folder, folder / "run"):
                if part.is_dir():
                    held.enter_context(alone_in(part))
            shutil.rmtree(folder, ignore_errors=True)
