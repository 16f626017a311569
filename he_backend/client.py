"""The key holder's process: encrypts inputs, refreshes and decrypts, alone with the secret key.

It is driven by two links: the caller's (configuration in, error details out) and the server's (one
request at a time). Whatever goes wrong on this side, the server sees the same message, "refused",
and the exchange ends; what went wrong, with the operation and its source line, goes to the caller.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from he_backend.errors import BackendError, BlobError, ProtocolError, ValueRangeError, to_message
from he_backend.execute import components_of, placed, rows_of
from he_backend.machines.checks import carried
from he_backend.machines.protocol import Machine
from he_backend.memory import peak_bytes
from he_backend.protocol import receive, send
from he_backend.store import write_values
from hesim.circuit.circuit import Circuit

__all__ = ["KeyHolder", "main"]


class KeyHolder:
    """What the client does with the secret key.

    Args:
      circuit: public; says level and scale of everything that is exchanged.
      machine: holds the secret and the public key.
      inputs: the secret inputs, one array for each encrypted leaf.
      ranges: calibrated range (low, high) of the slot values of a ciphertext, by number.
      values: folder for decrypted vectors, or None to keep them in `decrypted`.
    """

    def __init__(
        self,
        circuit: Circuit,
        machine: Machine,
        inputs: list[np.ndarray],
        ranges: Mapping[int, tuple[float, float]] | None = None,
        values: Path | None = None,
    ):
        self.circuit = circuit
        self.machine = machine
        self.inputs = inputs
        self.ranges = ranges or {}
        self.values = values
        self.decrypted: dict[int, np.ndarray] = {}

    def encrypt_input(self, i: int) -> Any:
        """The ciphertext of input instruction i."""
        circuit = self.circuit
        number, row = circuit.input_rows[int(circuit.param[i])]
        try:
            vector = circuit.inputs[number].vector(row, self.inputs)
            return self.machine.encrypt(vector, int(circuit.level[i]), float(circuit.scale[i]))
        except BackendError as error:
            leaf = circuit.inputs[number].operand
            label = circuit.input_labels[leaf] if leaf < len(circuit.input_labels) else "input"
            error.rows = rows_of(circuit, error.slots) if error.slots else ()
            raise error.at(f"input {label}", "") from error

    def refresh(self, i: int, cipher: Any) -> Any:
        """A fresh ciphertext, at the level of refresh instruction i, of what `cipher` holds."""
        argument = int(self.circuit.arg[self.circuit.args(i)][0])
        try:
            vector = self._checked(argument, cipher)
            return self.machine.encrypt(
                vector, int(self.circuit.level[i]), float(self.circuit.scale[i])
            )
        except BackendError as error:
            raise placed(error, self.circuit, i) from error

    def deliver(self, c: int, cipher: Any) -> None:
        """Decrypt ciphertext c and keep its slot values."""
        try:
            vector = self._checked(c, cipher)
        except BackendError as error:
            raise placed(error, self.circuit, c) from error
        if self.values is None:
            self.decrypted[c] = vector
        else:
            write_values(self.values, c, vector)

    def _checked(self, c: int, cipher: Any) -> np.ndarray:
        vector = self.machine.decrypt(cipher)
        carried(self.circuit.params, vector, cipher.level, cipher.scale)
        low, high = self.ranges.get(c, (-np.inf, np.inf))
        if float(vector.min()) < low or float(vector.max()) > high:
            error = ValueRangeError(
                f"decrypted values from {vector.min():.4g} to {vector.max():.4g} leave the "
                f"calibrated range [{low:.4g}, {high:.4g}]: an operation before overflowed, or the "
                f"data is unlike the calibration data"
            )
            error.slots = tuple(np.flatnonzero((vector < low) | (vector > high)).tolist())
            raise error
        return vector


class _Client:
    """One client process: a KeyHolder behind two sockets."""

    def __init__(self, control: socket.socket):
        from he_backend.keys import params_of
        from he_backend.machines.pyfhel import PyfhelMachine

        self.control = control
        config, _ = receive(control)
        folder = Path(config["client"])
        self.circuit = circuit = Circuit.load(config["circuit"])
        machine = PyfhelMachine(params_of(config["params"]), circuit.slots, cache_bytes=0)
        machine.load_public_key(folder / "public.key")
        machine.load_secret_key(folder / "secret.key")
        inputs = [np.load(folder / "inputs" / f"{k}.npy") for k in range(config["inputs"])]
        ranges = {int(c): (float(lo), float(hi)) for c, (lo, hi) in config["ranges"].items()}
        self.machine = machine
        self.components = components_of(circuit)
        self.holder = KeyHolder(circuit, machine, inputs, ranges, folder / "values")
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.server.connect(config["socket"])
        except OSError as error:
            raise ProtocolError(f"the server is gone: {error}") from error
        send(self.server, {"type": "hello", "role": "client"})
        send(control, {"type": "ready", "pid": os.getpid()})

    def serve(self) -> None:
        """Answer the server until it, or the caller, closes."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.control, selectors.EVENT_READ)
            selector.register(self.server, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self.control in ready:
                    header, _ = receive(self.control)
                    if header["type"] == "stop":
                        send(self.control, {"type": "stopped", "peak": peak_bytes()})
                        return
                elif self.server in ready:
                    self._answer()

    def _answer(self) -> None:
        try:
            header, blobs = receive(self.server)
        except ProtocolError:
            self.server.close()
            raise
        started = time.thread_time()
        try:
            replies = self._serve(header, blobs)
        except BackendError as error:
            send(self.control, {"type": "error", "error": to_message(error)})
            send(self.server, {"type": "refused"})
            return
        except Exception as error:  # whatever it is, the server must see the same word
            send(self.control, {"type": "error", "error": to_message(error)})
            send(self.server, {"type": "refused"})
            return
        send(self.server, {"type": "done", "seconds": time.thread_time() - started}, replies)

    def _serve(self, header: dict[str, Any], blobs: list[bytes]) -> list[bytes]:
        kind, numbers = header["type"], [int(i) for i in header["instructions"]]
        if kind == "input":
            return [self.machine.to_bytes(self.holder.encrypt_input(i)) for i in numbers]
        if len(blobs) != len(numbers):
            raise BlobError(f"the server sent {len(blobs)} ciphertexts for {len(numbers)} requests")
        if kind == "refresh":
            arguments = [int(self.circuit.arg[self.circuit.args(i)][0]) for i in numbers]
            return [
                self.machine.to_bytes(self.holder.refresh(i, self._parse(a, blob)))
                for i, a, blob in zip(numbers, arguments, blobs, strict=True)
            ]
        if kind == "deliver":
            for c, blob in zip(numbers, blobs, strict=True):
                self.holder.deliver(c, self._parse(c, blob))
            return []
        raise ProtocolError(f"the server asks for {kind!r}, which a client does not do")

    def _parse(self, c: int, blob: bytes) -> Any:
        level, scale = int(self.circuit.level[c]), float(self.circuit.scale[c])
        try:
            return self.machine.from_bytes(blob, level, scale, int(self.components[c]))
        except BackendError as error:
            op = int(self.circuit.source[c])
            if op >= 0:
                error.at(self.circuit.op_names[op], self.circuit.op_sources[op])
            raise


def main() -> None:
    """Entry of the client process; its control link is standard input."""
    os.umask(0o077)
    control = socket.socket(fileno=os.dup(0))
    try:
        client = _Client(control)
    except ProtocolError as error:  # the server, or the caller, knows why
        raise SystemExit(1) from error
    except Exception as error:
        with contextlib.suppress(ProtocolError):
            send(control, {"type": "error", "error": to_message(error)})
        raise
    try:
        client.serve()
    except ProtocolError:
        raise SystemExit(0) from None


if __name__ == "__main__":
    main()
