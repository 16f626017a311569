"""Files of a run that appear whole or not at all, each bound to its run and its name by a digest.

A run that is killed finds here what it had: the journal names the tasks that are done, the store
holds what later tasks need, the client's values are what was decrypted. A file that was altered, or
that lies under another's name, is taken for absent where it can be made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from he_backend.errors import BlobError, RunFolderError, StorageError
from hesim.circuit.plain.execute import Spent
from hesim.files import bound_digest, replacing, sweep, write_whole

__all__ = [
    "ArrayFile",
    "Journal",
    "Store",
    "bound_line",
    "note_finished",
    "read_bound",
    "read_finished",
    "read_line",
    "read_values",
    "storing",
    "write_bound",
    "write_values",
]

_DIGEST_BYTES = 32
_LINE_DIGITS = 32


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """StorageError that names the file and says what to do, for what the system refuses to write.

    path: what is written, unless the system's error names another file.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        name = error.filename2 or error.filename
        named = Path(name) if isinstance(name, str) else path
        raise StorageError(
            f"{named} cannot be written ({error.strerror or error}): {_room(named)}"
        ) from error


def _room(path: Path) -> str:
    """What to do about a file that cannot be written, with the room that is left on its disk."""
    advice = "make room there, or choose another run_dir (without one, TMPDIR says where)"
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(path.parent).free
        advice = f"{free / 1e6:,.1f} MB are free on that disk; {advice}"
    return f"{advice}. Finished tasks are kept in a run_dir: the same one goes on from there"


class ArrayFile:
    """A float64 array as the content of an .npy file.

    Attributes:
      digest: SHA-256 of it, in hex.
    """

    def __init__(self, values: np.ndarray):
        array = np.asarray(values, np.float64, order="C")
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
        self._parts = (head.getbuffer(), array.reshape(-1).view(np.uint8).data)
        total = hashlib.sha256()
        for part in self._parts:
            total.update(part)
        self.digest = total.hexdigest()

    def write(self, path: Path) -> None:
        """Write it, for its owner only. Raises StorageError."""
        with storing(path), replacing(path, mode=0o600) as file:
            for part in self._parts:
                file.write(part)


def write_values(folder: Path, run: str, cipher: int, vector: np.ndarray) -> None:
    """Keep the decrypted slot values of a ciphertext of a run. Raises StorageError."""
    data = np.ascontiguousarray(vector, np.float64).tobytes()
    write_bound(folder / f"v{cipher}.f64", run, data)


def read_values(folder: Path, run: str, cipher: int) -> np.ndarray | None:
    """float64[slots]: what `write_values` kept; None if it is gone, damaged, or another's."""
    data = read_bound(folder / f"v{cipher}.f64", run)
    return None if data is None or len(data) % 8 else np.frombuffer(data)


def write_bound(path: Path, run: str, data: bytes) -> None:
    """Write a file for its owner only, bound to its name and to a run. Raises StorageError."""
    with storing(path):
        write_whole(path, data + bound_digest(run, path.name, data), mode=0o600)


def read_bound(path: Path, run: str) -> bytes | None:
    """What `write_bound` wrote; None if it is gone, damaged, or another's."""
    try:
        return _read_bound(path, run)
    except FileNotFoundError:
        return None


def _read_bound(path: Path, run: str) -> bytes | None:
    """The content of a file that ends in its bound digest, None if it does not fit."""
    data = path.read_bytes()
    content = memoryview(data)[: max(0, len(data) - _DIGEST_BYTES)]
    fits = bound_digest(run, path.name, content) == data[-_DIGEST_BYTES:]
    return data[:-_DIGEST_BYTES] if fits else None


def bound_line(run: str, name: str, record: dict[str, Any]) -> str:
    """A record as a line of the file `name` of a run: JSON, a tab, part of its bound digest."""
    text = json.dumps(record)
    return f"{text}\t{_digits(run, name, text.encode())}\n"


def read_line(run: str, name: str, line: bytes) -> dict[str, Any]:
    """The record on a line, without its end. ValueError, of which BlobError is one, if it is not as
    the run wrote it.
    """
    text, _, digits = line.rpartition(b"\t")
    if digits != _digits(run, name, text).encode():
        raise BlobError("the line does not fit its digest")
    return json.loads(text)


def _digits(run: str, name: str, text: bytes) -> str:
    return bound_digest(run, name, text).hex()[:_LINE_DIGITS]


class Store:
    """A folder of ciphertext files.

    Args:
      folder: made if absent.
      run: name of the run; it belongs to one Circuit, so a ciphertext's number says its level.
    """

    def __init__(self, folder: Path, run: str):
        self.folder = folder
        self.run = run
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, cipher: int) -> Path:
        return self.folder / f"c{cipher}.ct"

    def write(self, cipher: int, blob: bytes) -> None:
        """Keep the bytes of a ciphertext. Raises StorageError."""
        # Not flushed to the disk: after a loss of power the digest tells, and it is made again.
        self._write(cipher, blob, durable=False)

    def _write(self, cipher: int, blob: bytes, *, durable: bool) -> None:
        path = self.path(cipher)
        with storing(path):
            digest = bound_digest(self.run, path.name, blob)
            write_whole(path, b"".join((blob, digest)), durable=durable)

    def read(self, cipher: int) -> bytes:
        """The bytes of a ciphertext. Raises RunFolderError if the file is gone or damaged."""
        path = self.path(cipher)
        try:
            blob = _read_bound(path, self.run)
        except OSError as error:
            raise RunFolderError(
                f"{path} cannot be read ({error.strerror}); run again with the same run_dir, which "
                f"computes anew what is missing"
            ) from error
        if blob is None:
            raise RunFolderError(
                f"{path} is damaged, or is another ciphertext's file; run again with the same "
                f"run_dir, which computes it anew"
            )
        return blob

    def holds(self, cipher: int) -> bool:
        """Whether the ciphertext is there and undamaged; reads the whole file."""
        with contextlib.suppress(OSError):
            return _read_bound(self.path(cipher), self.run) is not None
        return False

    def delete(self, ciphers: Iterable[int]) -> None:
        for cipher in ciphers:
            self.path(cipher).unlink(missing_ok=True)

    def ciphers(self) -> set[int]:
        """Those that there are files of, whole or not."""
        names = (path.stem.removeprefix("c") for path in self.folder.glob("c*.ct"))
        return {int(name) for name in names if name.isdecimal()}

    def clean(self) -> None:
        """Remove what killed writers left behind."""
        sweep(self.folder)


class Journal:
    """Finished tasks, one JSON line each, bound to its run; damaged ones run again.

    Args:
      path: made if absent. run: name of the run.
      plan: digest of its tasks; what was noted of others is left out.

    Attributes:
      records: of finished tasks, by number. sure: those of them that a checkpoint came after.
      lines: in the file.
      seconds: wall-clock seconds of the attempts before this one.
      attempts: before this one.
      damaged: lines that say nothing any more; the last, if it was cut off, is not one of them.
    """

    def __init__(self, path: Path, run: str, plan: str = ""):
        self.path = path
        self.run = run
        self.plan = plan
        self.seconds = 0.0
        self.attempts = self.damaged = 0
        self.records: dict[int, dict[str, Any]] = {}
        self.sure: frozenset[int] = frozenset()
        self.lines = 0
        self._started = time.monotonic()
        with storing(path):
            self._read()
            self._file = path.open("a", encoding="utf-8")
        self._write({"attempt": len(self.records), "plan": plan})

    def _read(self) -> None:
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        latest, tasks, own = 0.0, list[int](), not self.plan
        for line in whole.splitlines():
            self.lines += 1
            tasks.append(-1)
            try:
                record = read_line(self.run, self.path.name, line)
                if "finished" in record:
                    continue
                if "attempt" in record:
                    self.attempts += 1
                    self.seconds, latest = self.seconds + latest, 0.0
                    own = record.get("plan", "") == self.plan
                    continue
                if "kept" in record:
                    self.sure = frozenset(tasks[: int(record["kept"])]) - {-1}
                    continue
                number, wall = int(record["task"]), float(record["wall"])
                Spent.from_message(record)
            except (ValueError, TypeError, KeyError, AttributeError):
                self.damaged += 1
                continue
            latest = wall
            if own:
                self.records[number] = record
                tasks[-1] = number
        self.seconds += latest
        if len(whole) != len(data):
            write_whole(self.path, whole)

    def keep(self, tasks: int) -> None:
        """Drop records of tasks that do not exist; `tasks` are numbered from 0."""
        self.records = {k: record for k, record in self.records.items() if 0 <= k < tasks}
        self.sure &= self.records.keys()

    def checkpoint(self, lines: int) -> None:
        """Record that what is still needed of the tasks on the first `lines` is in the store."""
        self._write({"kept": lines})

    def finish(self, task: int, spent: dict[str, Any]) -> None:
        """Record that `task` is done and what it spent."""
        record = {"task": task, "wall": time.monotonic() - self._started, **spent}
        self.records[task] = record
        self._write(record)

    def _write(self, record: dict[str, Any]) -> None:
        with storing(self.path):
            self._file.write(bound_line(self.run, self.path.name, record))
            self._file.flush()
        self.lines += 1

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk, of which `finish` has told
            self._file.close()


def note_finished(path: Path, run: str, record: dict[str, Any]) -> None:
    """Say in a batch's journal that all its tasks are done and its outputs are decrypted.

    Args:
      path: of the journal, which nobody else writes to any more. run: name of the batch.
      record: what `read_finished` is to return.

    Raises:
      StorageError: it cannot be written.
    """
    line = bound_line(run, path.name, {"finished": record}).encode()
    with storing(path), path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_finished(path: Path, run: str) -> dict[str, Any] | None:
    """What `note_finished` noted; None if it did not, or the journal is gone or damaged there."""
    with contextlib.suppress(OSError, ValueError, LookupError, AttributeError):
        last = path.read_bytes().removesuffix(b"\n").rpartition(b"\n")[2]
        found = read_line(run, path.name, last).get("finished")
        return found if isinstance(found, dict) else None
    return None
