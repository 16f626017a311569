"""An owner's folder: of one bundle and one machine, and of one process at a time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from he_backend.errors import RunFolderError
from he_backend.processes.folders import read_json
from he_backend.processes.store import storing
from hesim.bundles.bundle import Bundle
from hesim.errors import FolderInUseError
from hesim.files import alone_in, write_whole

__all__ = ["claimed"]


@contextlib.contextmanager
def claimed(folder: Path, bundle: Bundle, machine: str) -> Iterator[None]:
    """Hold an owner's folder, which is made for its owner only if it is absent.

    Raises:
      RunFolderError: another process uses it, or it is another bundle's or machine's.
      StorageError: it cannot be written.
    """
    mine = {"bundle": bundle.evaluated, "machine": machine}
    with contextlib.ExitStack() as held:
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
        with storing(folder):
            try:
                held.enter_context(alone_in(folder))
            except FolderInUseError as error:
                raise RunFolderError(
                    f"another process is using {folder}; choose another folder"
                ) from error
        path = folder / "owner.json"
        if path.exists():
            known = read_json(path, f"choose another folder, or remove {folder}")
            differ = [name for name, value in mine.items() if known.get(name) != value]
            if differ:
                raise RunFolderError(
                    f"{folder} is of another {' and '.join(differ)}; choose another folder, or "
                    f"remove it"
                )
        with storing(path):
            write_whole(path, json.dumps(mine, indent=1).encode(), mode=0o600)
        yield
