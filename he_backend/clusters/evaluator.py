"""The process beside a worker of Dask that evaluates. Imports neither JAX nor Dask.

An encryption library lets no other thread of its process run while it computes. So a worker that
evaluated by itself would keep those waiting that want its results, for as long as an operation
takes and each time that they have something to say. This process has the keys and the encoded
plaintexts; it does one piece of work after the other, and, where there is more than one batch,
encodes while there is none. It ends when the worker does.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from he_backend.clusters.hostfiles import read, remove_in_a_moment, written
from he_backend.errors import BackendError, PeerGoneError, to_message
from he_backend.machines.cache import ByteCache
from he_backend.processes.memory import peak_bytes, resident_bytes
from he_backend.processes.messages import receive, send
from he_backend.processes.prepared import evaluator_of
from hesim.circuit.circuit import Circuit, Kind
from hesim.circuit.costs.memory import KEPT_CIPHERTEXTS
from hesim.circuit.plain.execute import Executor
from hesim.circuit.sizes import available

__all__ = ["main"]

_CACHE_PART = 4
"""Of what a limit leaves for plaintexts and ciphertexts, one part in so many is for the latter."""

_AHEAD_PART = 0.75
"""Of the room for plaintexts, what is encoded ahead takes so much at most."""


class _Evaluator:
    """Evaluates a Circuit, batch after batch.

    Args:
      config: files of Circuit and keys, name of the machine, steps that the keys rotate by, bytes
        that this may take (None: a part of what is free), whether there is more than one batch, and
        the folder that it shares; plain data.
      operands: files of the first batch's public operands.

    Raises:
      BackendError: keys and tables leave no room, or a file is not what it should be.
    """

    def __init__(self, config: dict[str, Any], operands: Iterable[str]):
        self.circuit = Circuit.load(Path(config["circuit"]))
        machine = evaluator_of(self.circuit, config["machine"])
        machine.load_keys(Path(config["keys"]), config["steps"])
        room = _room(config["limit"], config["total"])
        limited = config["limit"] is not None
        self._cache = min(KEPT_CIPHERTEXTS, room // _CACHE_PART) if limited else KEPT_CIPHERTEXTS
        room -= self._cache if limited else 0
        self._repeated = bool(config["repeated"])
        self._ahead = int(room * _AHEAD_PART) if self._repeated else 0
        self._paths = list(operands)
        self.executor = Executor(
            self.circuit,
            machine,
            list(map(_read, self._paths)),
            plain_bytes=room - self._ahead,
            repeated=self._repeated,
        )
        kinds = np.isin(self.circuit.kind, (Kind.DOT_PLAIN, Kind.ADD_PLAIN))
        self._plain = np.flatnonzero(kinds & ~self.circuit.of_key_holder).tolist()
        self._next = 0 if self._repeated else len(self._plain)
        self._encoded, self._changed = 0, set[int]()
        self._batch = ""
        self._opened = ByteCache[Any](self._cache)

    def encode_until(self, link: socket.socket) -> None:
        """Encode what has room, to stay, until there is something to read."""
        if self._next < len(self._plain):
            self._encoded += self.executor.encode_ahead(
                self._left(),
                self._ahead,
                lambda: bool(select.select([link], [], [], 0)[0]),
                stay=True,
                without=self._changed,
            )

    def _left(self) -> Iterator[int]:
        """Instructions whose plaintexts are to be encoded; the one at hand comes again."""
        while self._next < len(self._plain):
            yield self._plain[self._next]
            self._next += 1

    def run(self, order: dict[str, Any], blobs: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
        """What is to be said of a piece of work, and its results that found no room in a file."""
        if order["batch"] != self._batch:
            self._batch, self._opened = order["batch"], ByteCache[Any](self._cache)
            self._take(order["operands"])
        files = {int(c): str(path) for c, path in order["files"]}
        given = dict(zip(order["loose"], blobs, strict=True))
        made: dict[int, Any] = {}
        told: list[tuple[int, dict[str, Any]]] = []
        for number, instructions, needs, gives in order["tasks"]:
            ciphers = {
                c: made[c] if c in made else self._open(c, files.get(c), given) for c in needs
            }
            spent = self.executor.run(instructions, ciphers, set(gives).__contains__)
            made.update((c, ciphers[c]) for c in gives)
            spent.encoded, self._encoded = spent.encoded + self._encoded, 0
            told.append((number, spent.to_message()))
        loose: dict[int, bytes] = {}
        for c in order["gives"]:
            blob = self.executor.machine.to_bytes(made[c])
            self._opened.put(c, made[c], len(blob))
            if c not in files or not written(files[c], blob):
                loose[c] = blob
        jax = "jax" in sys.modules
        said = {"tasks": told, "peak": peak_bytes(), "jax": jax, "loose": list(loose)}
        return said, list(loose.values())

    def _open(self, c: int, path: str | None, given: Mapping[int, bytes]) -> Any:
        """A ciphertext from elsewhere, as the machine has it. Raises BlobError, ClusterError."""
        held = self._opened.find(c)
        if held is None:
            circuit = self.circuit
            blob = given[c] if path is None else read(path)
            level, parts = int(circuit.level[c]), int(circuit.components[c])
            held = self.executor.machine.from_bytes(blob, level, float(circuit.scale[c]), parts)
            self._opened.put(c, held, len(blob))
        return held

    def _take(self, paths: list[str]) -> None:
        """Go on with the operands of another batch."""
        changed = {k for k, path in enumerate(paths) if path != self._paths[k]}
        if changed:
            held = enumerate(self.executor.operands)
            self.executor.replace_operands(
                [_read(paths[k]) if k in changed else operand for k, operand in held]
            )
            self._paths = paths
            self._changed |= changed
            self._next = 0 if self._repeated else len(self._plain)


def _room(limit: int | None, total: int | None) -> int:
    """Bytes for encoded plaintexts and opened ciphertexts, now that the keys are there.

    Args:
      limit: that this process may take. total: that it and the worker may.

    Raises:
      BackendError: what is there is too much already.
    """
    free = available()
    if limit is None or total is None:
        return free // max(4, os.cpu_count() or 1)
    held = resident_bytes()
    if held > limit:
        needed = held * total / limit
        raise BackendError(
            f"keys and tables leave a worker no room: {held / 1e9:.2f} GB are held, and its limit "
            f"is {total / 1e9:.2f} GB. Give workers at least {needed / 1e9 + 0.1:.1f} GB each: "
            "dask worker --memory-limit, or LocalCluster(memory_limit=...)"
        )
    return min(limit - held, free // 4)


def _read(path: str) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def main() -> None:
    """Entry of the process; its link to the worker is standard input."""
    os.umask(0o077)
    link = socket.socket(fileno=os.dup(0))
    evaluator: _Evaluator | None = None
    config, _ = receive(link)
    try:
        while True:
            if evaluator is not None:
                evaluator.encode_until(link)
            order, blobs = receive(link)
            found: list[bytes] = []
            try:
                if evaluator is None:
                    evaluator = _Evaluator(config, order["operands"])
                said, found = evaluator.run(order, blobs)
            except Exception as error:
                said = {"error": to_message(error)}
            send(link, said, found)
    except PeerGoneError:  # the worker was killed
        remove_in_a_moment(config["folder"], config["own"], int(config["lock"]))


if __name__ == "__main__":
    main()
