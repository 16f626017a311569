"""What a server does before it has keys: it reads the Circuit, plans, and encodes plaintexts.

None of it needs a key, so it is done while keys are made, and what is encoded by then is shared
with the workers that are forked later.
"""

from __future__ import annotations

import os
import selectors
import socket
from pathlib import Path
from typing import Any

import numpy as np

from he_backend.machines.table import find
from he_backend.processes.folders import Folders, read_manifest, verify_files, verify_written
from he_backend.processes.tasks import Schedule, plan
from hesim.circuit.circuit import Circuit
from hesim.circuit.costs.memory import ENCODED_AHEAD
from hesim.circuit.plain.execute import Executor
from hesim.circuit.sizes import available

__all__ = ["Prepared"]

_PLAIN_PART = 4
"""Of the memory that is free, workers keep encoded plaintexts in one part in so many at most."""


class Prepared:
    """A run on the server's side, up to its keys.

    Args:
      config: folders, digests of what the caller wrote there, the machine's name, ciphertexts to
        decrypt, number of workers, seconds that a task should take; plain data.

    Attributes:
      folders: the server's. circuit: what is run. schedule: its tasks.
      machine: computes, once `load_keys` was called. executor: on it, with the public operands.

    Raises:
      RunFolderError: a file is not the one that the caller wrote for this run.
    """

    def __init__(self, config: dict[str, Any]):
        self.folders = Folders(Path(config["run"]), Path(os.devnull))
        digests = list(config["digests"])
        verify_written([self.folders.circuit], digests[:1])
        self.circuit = circuit = Circuit.load(self.folders.circuit)
        paths = [self.folders.operands / f"{k}.npy" for k in range(circuit.operand_count)]
        verify_written(paths, digests[1:])
        operands = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
        kind = find(str(config.get("machine", "pyfhel"))).load()
        self.machine = kind.evaluator(circuit.params, circuit.slots, _levels(circuit))
        self.schedule: Schedule = plan(circuit, config["decrypt"], config["task_seconds"])
        kept = available() // (_PLAIN_PART * int(config["workers"]))
        self.executor = Executor(circuit, self.machine, operands, plain_bytes=kept)

    def encode_until(self, control: socket.socket) -> None:
        """Encode what is used first, until the caller has something to say, or enough is there."""
        with selectors.DefaultSelector() as selector:
            selector.register(control, selectors.EVENT_READ)
            work = (t.instructions for t in self.schedule.tasks if not t.client)
            self.executor.encode_ahead(
                (i for instructions in work for i in instructions),
                min(ENCODED_AHEAD, available() // _PLAIN_PART),
                stop=lambda: bool(selector.select(0)),
            )

    def load_keys(self) -> None:
        """Give the machine its keys. Raises BlobError if they are not those that were made."""
        manifest = read_manifest(self.folders.key_manifest)
        verify_files(self.folders.keys, manifest["files"])
        self.machine.load_keys(self.folders.keys, manifest["steps"])


def _levels(circuit: Circuit) -> list[int]:
    """Those at which vectors are encoded."""
    vectors = [not pack.scalar for pack in circuit.packs]
    used = np.array(vectors, dtype=bool)[circuit.plain_pack] if vectors else np.zeros(0, bool)
    return [int(level) for level in np.unique(circuit.plain_level[used])]
