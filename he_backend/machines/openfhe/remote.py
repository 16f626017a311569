"""The machine, from a Python that has no OpenFHE: it lives in a process of the one that has.

Arguments and results cross as bytes; ciphertexts and plaintexts stay there and have numbers here,
until they are let go. A process that dies in a call is an error of that call.
"""

from __future__ import annotations

import socket
import subprocess
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from he_backend.errors import BackendError, PeerGoneError, from_message
from he_backend.machines.openfhe.interpreter import find_interpreter
from he_backend.machines.openfhe.values import Remote, packed, unpacked
from he_backend.processes.folders import clean_environment, module_command
from he_backend.processes.messages import receive, send
from hesim.circuit.refresher import Refresher
from hesim.params import CKKSParams

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["RemoteMachine"]

_SERVING = "he_backend.machines.openfhe.serving"
_END_SECONDS = 5.0


class RemoteMachine:
    """`NativeMachine` of another process; see `he_backend.machines.protocol.Machine`.

    It is made by its class methods, and its process ends with it, or with the caller.
    """

    name = "openfhe"
    encrypts = True

    def __init__(self, process: _Process, params: CKKSParams, slots: int | None):
        self._process = process
        self.params = params
        self.slots = slots or params.slots

    @classmethod
    def generate(
        cls,
        params: CKKSParams,
        rotation_steps: Iterable[int] = (),
        slots: int | None = None,
        bootstrap: Refresher | None = None,
    ) -> RemoteMachine:
        """A machine with fresh keys of every kind: rotations by these steps."""
        made = _made("generate", params, sorted(rotation_steps), slots, bootstrap)
        return cls(made, params, slots)

    @classmethod
    def make_keys(
        cls,
        params: CKKSParams,
        rotation_steps: Iterable[int],
        server: Path,
        client: Path,
        bootstrap: Refresher | None = None,
    ) -> None:
        """Write fresh keys to files in both folders."""
        _made("make_keys", params, sorted(rotation_steps), server, client, bootstrap).end()

    @classmethod
    def key_sizes(cls, params: CKKSParams, rotation_steps: Iterable[int]) -> dict[str, int]:
        """Raises BackendError: key files of another owner are not taken."""
        _made("key_sizes", params, sorted(rotation_steps))
        return {}

    @classmethod
    def check_keys(cls, params: CKKSParams, rotation_steps: Iterable[int], server: Path) -> None:
        """Raises BackendError: key files of another owner are not taken."""
        _made("check_keys", params, sorted(rotation_steps), server)

    @classmethod
    def key_holder(
        cls, params: CKKSParams, slots: int, client: Path, bootstrap: Refresher | None = None
    ) -> RemoteMachine:
        """A machine with the keys that encrypt and decrypt."""
        return cls(_made("key_holder", params, slots, client, bootstrap), params, slots)

    @classmethod
    def evaluator(
        cls,
        params: CKKSParams,
        slots: int,
        levels: Iterable[int] = (),
        bootstrap: Refresher | None = None,
    ) -> RemoteMachine:
        """A machine without keys."""
        return cls(_made("evaluator", params, slots, sorted(levels), bootstrap), params, slots)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Where the machine is."""
        return self._process.process

    def resized(self, slots: int) -> RemoteMachine:
        """The same keys, for vectors of another length: all that the process makes from now on."""
        self._call("resize", slots)
        return RemoteMachine(self._process, self.params, slots)

    def load_keys(self, server: Path, rotation_steps: Iterable[int]) -> None:
        self._call("load_keys", server, sorted(rotation_steps))

    def encode(self, values: Float[np.ndarray, " slots"] | float, level: int, scale: float) -> Any:
        return self._call("encode", values, level, scale)

    def encrypt(self, values: Float[np.ndarray, " slots"] | float, level: int, scale: float) -> Any:
        return self._call("encrypt", values, level, scale)

    def decrypt(self, cipher: Any) -> Float[np.ndarray, " slots"]:
        return self._call("decrypt", cipher)

    def add(self, ciphers: Sequence[Any], factors: Sequence[int]) -> Any:
        return self._call("add", list(ciphers), [int(f) for f in factors])

    def add_plain(self, cipher: Any, plain: Any) -> Any:
        return self._call("add_plain", cipher, plain)

    def dot(self, left: Sequence[Any], right: Sequence[Any], factors: Sequence[int]) -> Any:
        return self._call("dot", list(left), list(right), [int(f) for f in factors])

    def dot_plain(self, ciphers: Sequence[Any], plains: Iterable[Any]) -> Any:
        return self._call("dot_plain", list(ciphers), list(plains))

    def dot_scalars(
        self, ciphers: Sequence[Any], rows: Float[np.ndarray, "rows ciphers"], scale: float
    ) -> list[Any]:
        return self._call("dot_scalars", list(ciphers), np.asarray(rows, np.float64), scale)

    def rotate(self, cipher: Any, step: int) -> Any:
        return self._call("rotate", cipher, int(step))

    def relinearize(self, cipher: Any) -> Any:
        return self._call("relinearize", cipher)

    def rescale(self, cipher: Any) -> Any:
        return self._call("rescale", cipher)

    def drop(self, cipher: Any, level: int) -> Any:
        return self._call("drop", cipher, int(level))

    def bootstrap(self, cipher: Any, level: int) -> Any:
        return self._call("bootstrap", cipher, int(level))

    def set_exact_scale(self, cipher: Any, level: int, scale: float) -> Any:
        return self._call("set_exact_scale", cipher, level, scale)

    def to_bytes(self, cipher: Any) -> bytes:
        return self._call("to_bytes", cipher)

    def from_bytes(self, blob: bytes, level: int, scale: float, components: int = 2) -> Any:
        return self._call("from_bytes", bytes(blob), level, scale, components)

    def check_bytes(self, blob: bytes, level: int, scale: float, components: int = 2) -> None:
        self._call("check_bytes", bytes(blob), level, scale, components)

    def cipher_size(self, components: int, level: int) -> int:
        return self._call("cipher_size", components, level)

    def _call(self, name: str, *arguments: Any) -> Any:
        return self._process.call(name, *arguments)


class _Process:
    """The other process, and what it is asked; it ends when this is let go."""

    def __init__(self) -> None:
        self.link, theirs = socket.socketpair()
        command = module_command(_SERVING, find_interpreter())
        self.process = subprocess.Popen(command, stdin=theirs.fileno(), env=clean_environment())
        theirs.close()
        self._gone: list[int] = []
        self._finalizer = weakref.finalize(self, _end, self.link, self.process)

    def call(self, name: str, *arguments: Any) -> Any:
        blobs: list[bytes] = []
        gone, self._gone = self._gone, []
        asked = {"call": name, "args": packed(list(arguments), blobs), "gone": gone}
        try:
            send(self.link, asked, blobs)
            header, results = receive(self.link)
        except PeerGoneError as error:
            raise BackendError(f"OpenFHE's process ended in {name!r}{self._status()}") from error
        if "error" in header:
            raise from_message(header["error"])
        return unpacked(header["result"], results, self._kept)

    def _kept(self, value: Remote) -> Remote:
        weakref.finalize(value, self._gone_later, value.number)
        return value

    def _gone_later(self, number: int) -> None:
        self._gone.append(number)

    def _status(self) -> str:
        try:
            status = self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return ""
        return f" (signal {-status})" if status < 0 else f" (status {status})"

    def end(self) -> None:
        """End the process now."""
        self._finalizer()


def _end(link: socket.socket, process: subprocess.Popen[bytes]) -> None:
    link.close()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _made(name: str, *arguments: Any) -> _Process:
    """A process in which a class method of `NativeMachine` was called."""
    process = _Process()
    process.call(f"class {name}", *arguments)
    return process
