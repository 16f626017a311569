"""The server's store: ciphertexts as files that appear whole or not at all, and a journal.

A run that is killed finds here what it had: the journal names the tasks that are done, the files
hold what later tasks need. Files of other runs never mix, since a run has a folder of its own.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from he_backend.errors import RunFolderError
from he_backend.execute import Spent
from hesim.files import sweep, write_whole

__all__ = ["Journal", "Store", "read_values", "write_values"]

_DIGEST_BYTES = 32


def write_values(folder: Path, cipher: int, vector: np.ndarray) -> None:
    """Keep the decrypted slot values of a ciphertext, with their SHA-256."""
    data = np.ascontiguousarray(vector, np.float64).tobytes()
    write_whole(folder / f"v{cipher}.f64", data + hashlib.sha256(data).digest())


def read_values(folder: Path, cipher: int) -> np.ndarray | None:
    """float64[slots]: what `write_values` kept; None if it is gone or damaged."""
    try:
        data = (folder / f"v{cipher}.f64").read_bytes()
    except FileNotFoundError:
        return None
    values, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    return np.frombuffer(values) if hashlib.sha256(values).digest() == digest else None


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
        write_whole(self.path(cipher), blob, durable=False)

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
        sweep(self.folder)


class Journal:
    """Finished tasks, one JSON line each; those on torn or damaged lines run again.

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
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        latest = 0.0
        for line in whole.split(b"\n"):
            try:
                record = json.loads(line)
                if "attempt" in record:
                    self.seconds, latest = self.seconds + latest, 0.0
                    continue
                number, wall = int(record["task"]), float(record["wall"])
                Spent.from_message(record)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
            latest = wall
            self.records[number] = record
        self.seconds += latest
        if len(whole) != len(data):
            write_whole(self.path, whole)

    def keep(self, tasks: int) -> None:
        """Drop records of tasks that do not exist; `tasks` are numbered from 0."""
        self.records = {k: record for k, record in self.records.items() if 0 <= k < tasks}

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
