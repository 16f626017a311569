"""The server's store: ciphertexts as files that appear whole or not at all, and a journal.

A run that is killed finds here what it had: the journal names the tasks that are done, the files
hold what later tasks need. Files of other runs never mix, since a run has a folder of its own.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from he_backend.errors import RunFolderError

__all__ = ["Journal", "Store", "write_whole"]


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that other processes see all of it or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)


class Store:
    """A folder of ciphertext files.

    Args:
      folder: made if absent.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, cipher: int) -> Path:
        return self.folder / f"c{cipher}.ct"

    def write(self, cipher: int, blob: bytes) -> None:
        write_whole(self.path(cipher), blob)

    def read(self, cipher: int) -> bytes:
        """The bytes of a ciphertext. Raises RunFolderError if the file is gone."""
        try:
            return self.path(cipher).read_bytes()
        except FileNotFoundError:
            raise RunFolderError(
                f"ciphertext {cipher} is missing from {self.folder}; remove the run folder and "
                f"start again"
            ) from None

    def holds(self, cipher: int) -> bool:
        return self.path(cipher).exists()

    def delete(self, ciphers: Iterable[int]) -> None:
        for cipher in ciphers:
            self.path(cipher).unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove what killed writers left behind."""
        for left in self.folder.glob(".c*"):
            left.unlink(missing_ok=True)


class Journal:
    """Finished tasks, one JSON line each; a torn last line is ignored.

    Attributes:
      seconds: wall-clock seconds of the attempts before this one.
    """

    def __init__(self, path: Path):
        self.path = path
        self.seconds = 0.0
        self.records: dict[int, dict[str, Any]] = {}
        self._started = time.monotonic()
        self._read()
        self._file = path.open("a", encoding="utf-8")
        self._write({"attempt": len(self.records)})

    def _read(self) -> None:
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        latest = 0.0
        for line in whole.splitlines():
            record = json.loads(line)
            if "attempt" in record:
                self.seconds, latest = self.seconds + latest, 0.0
            else:
                latest = float(record["wall"])
                self.records[int(record["task"])] = record
        self.seconds += latest
        if len(whole) != len(text):
            write_whole(self.path, whole.encode())

    def finish(self, task: int, spent: dict[str, Any]) -> None:
        """Record that `task` is done and what it spent; its results are in the store by now."""
        record = {"task": task, "wall": time.monotonic() - self._started, **spent}
        self.records[task] = record
        self._write(record)

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
