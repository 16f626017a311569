"""What a server does before it has keys: it reads the Circuit, plans, and encodes plaintexts.

None of it needs a key, so it is done while keys are made, and what is encoded by then is shared
with the workers that are forked later.
"""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from he_backend.machines.table import find
from he_backend.processes.folders import Folders, read_manifest, verify_files, verify_written
from he_backend.processes.messages import receive
from he_backend.processes.tasks import Schedule, plan
from hesim.circuit.circuit import Circuit
from hesim.circuit.costs.memory import ENCODED_AHEAD, staying_bytes
from hesim.circuit.plain.execute import Executor
from hesim.circuit.sizes import available

if TYPE_CHECKING:
    from he_backend.machines.protocol import ServerMachine

__all__ = ["PLAIN_PART", "Prepared", "Stopped", "evaluator_of"]

PLAIN_PART = 4
"""Of the memory that is free, workers of a single batch keep encoded plaintexts in one part in so
many at most.
"""


class Stopped(Exception):
    """The caller asked to stop."""


class Prepared:
    """A session on the server's side, up to its keys.

    Args:
      config: folders, digests of what the caller wrote there, the machine's name, ciphertexts to
        decrypt, number of workers, seconds that a task should take, whether there will be several
        batches; plain data.

    Attributes:
      folders: the server's. circuit: what is run. schedule: its tasks, where a batch names no
        ciphertexts to decrypt.
      machine: computes, once `load_keys` was called.
      executor: on it, with the public operands of the batch at hand.
      encoded: plaintexts that were encoded here since this was last set to 0.

    Raises:
      RunFolderError: a file is not the one that the caller wrote for this run.
    """

    def __init__(self, config: dict[str, Any]):
        self.folders = Folders(Path(config["run"]), Path(os.devnull))
        verify_written([self.folders.circuit], [config["circuit_digest"]])
        self.circuit = circuit = Circuit.load(self.folders.circuit)
        self.machine = evaluator_of(circuit, str(config.get("machine", "pyfhel")))
        self._task_seconds = float(config["task_seconds"])
        self._schedules: dict[tuple[int, ...], Schedule] = {}
        self._decrypt = [int(c) for c in config["decrypt"]]
        self.schedule = self.scheduled(self._decrypt)
        self.encoded = 0
        self._components = circuit.components
        self._several = bool(config.get("several", False))
        self._staying = staying_bytes(circuit.spare_bytes, available())
        self._digests = list(config["operands"])
        self._changed: set[int] = set()
        room = self._staying // 3 if self._several else available() // PLAIN_PART
        kept = room // int(config["workers"])
        operands = self._read(self._digests)
        self.executor = Executor(circuit, self.machine, operands, plain_bytes=kept)

    def scheduled(self, decrypt: Sequence[int] | None, *, follows: bool = False) -> Schedule:
        """The tasks of a batch that decrypts these ciphertexts; by default those of `config`.

        follows: whether it goes on from what another batch left.
        """
        wanted = tuple(self._decrypt if decrypt is None else map(int, decrypt))
        key = (follows, *wanted)
        if key not in self._schedules:
            seconds = self._task_seconds
            self._schedules[key] = plan(self.circuit, wanted, seconds, follows=follows)
        return self._schedules[key]

    def size(self, i: int) -> int:
        """Bytes of ciphertext i."""
        return self.machine.cipher_size(int(self._components[i]), int(self.circuit.level[i]))

    def encode_until(self, control: socket.socket) -> dict[str, Any]:
        """Encode what is used first, until the caller has something to say, or enough is there; of
        several batches, all that has room.

        Returns:
          What the caller has to say.

        Raises:
          Stopped: that is to stop.
        """
        heard: list[dict[str, Any]] = []

        def hear() -> None:
            header, _ = receive(control)
            if header.get("type") == "stop":
                raise Stopped
            heard.append(header)

        with selectors.DefaultSelector() as selector:
            selector.register(control, selectors.EVENT_READ)

            def stop() -> bool:
                if selector.select(0):
                    hear()
                return bool(heard) and not self._several

            if self._several:
                self._encode_once(stop)
            else:
                limit = min(ENCODED_AHEAD, available() // PLAIN_PART)
                self.encoded += self.executor.encode_ahead(self._instructions(), limit, stop)
        if not heard:
            hear()
        return heard[0]

    def take(self, digests: Sequence[str]) -> None:
        """Go on with the operands of another batch: what depends on those that are the same stays
        encoded, or is encoded now for good. Others are left to the workers. Raises RunFolderError
        as above.
        """
        changed = {k for k, digest in enumerate(digests) if digest != self._digests[k]}
        if changed:
            fresh = dict(zip(sorted(changed), self._read([digests[k] for k in sorted(changed)])))
            held = enumerate(self.executor.operands)
            self.executor.replace_operands([fresh.get(k, operand) for k, operand in held])
            self._digests = list(digests)
        if self._several and changed != self._changed:
            self._changed = changed
            self._encode_once(lambda: False)

    def _encode_once(self, stop: Callable[[], bool]) -> None:
        """Encode what has room and is not known to change from batch to batch, to stay."""
        self.encoded += self.executor.encode_ahead(
            self._instructions(), self._staying, stop, stay=True, without=self._changed
        )

    def _read(self, digests: Sequence[str]) -> list[np.ndarray]:
        paths = [self.folders.operand(digest) for digest in digests]
        verify_written(paths, digests)
        return [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]

    def _instructions(self) -> Iterator[int]:
        """What workers execute, in the order in which they will."""
        tasks = (task for task in self.schedule.tasks if task.side == "worker")
        return (i for task in tasks for i in task.instructions)

    def load_keys(self) -> None:
        """Give the machine its keys. Raises BlobError if they are not those that were made."""
        manifest = read_manifest(self.folders.key_manifest)
        verify_files(self.folders.keys, manifest["files"])
        self.machine.load_keys(self.folders.keys, manifest["steps"])


def evaluator_of(circuit: Circuit, machine: str) -> ServerMachine:
    """The machine of this name that evaluates a Circuit, before it has keys."""
    levels = np.unique(circuit.plain_level[~circuit.scalars]).tolist()
    own = {} if circuit.bootstrap is None else {"bootstrap": circuit.bootstrap}
    return find(machine).load().evaluator(circuit.params, circuit.slots, levels, **own)
