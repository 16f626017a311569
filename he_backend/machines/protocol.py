"""What a machine can do: what executing a Circuit takes, and what the two sides of a run add.

`Evaluator`, of `hesim.circuit.plain.machine`, is the server's part, `Machine` adds what the key
holder does, `ServerMachine` that keys come later, and `KeyMaker` is the class of a machine as the
processes of a run use it: it writes key files and opens with them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from hesim.circuit.plain.machine import Cipher, Evaluator, Plain
from hesim.params import CKKSParams

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Cipher", "Evaluator", "KeyMaker", "Machine", "Plain", "ServerMachine"]


@runtime_checkable
class Machine(Evaluator, Protocol):
    """An Evaluator that holds keys to encrypt and decrypt with, all of them or the client's."""

    def encrypt(self, values: Float[np.ndarray, " slots"] | float, level: int, scale: float) -> Any:
        """A fresh two-component Cipher at `level` and `scale`, under the public key."""
        ...

    def decrypt(self, cipher: Any) -> Float[np.ndarray, " slots"]:
        """float64[slots]. Raises BackendError where there is no secret key."""
        ...


@runtime_checkable
class ServerMachine(Evaluator, Protocol):
    """The server's Evaluator, which encodes before it has keys. Workers are forked from it."""

    def load_keys(self, server: Path, rotation_steps: Iterable[int]) -> None:
        """Take the keys from the server's folder.

        Raises BlobError if the library refuses a key file.
        """
        ...


class KeyMaker(Protocol):
    """The class of a machine: makes keys, and machines that hold some of them.

    Where the server bootstraps, the class methods of a machine whose row says that it can are also
    given `bootstrap`: the Refresher, its slots those of the Circuit.

    Only the key process of the client and the client itself are given what decrypts. Files are
    named in the machine's row of `he_backend.machines.table`.
    """

    def generate(
        self, params: CKKSParams, rotation_steps: Iterable[int] = (), slots: int | None = None
    ) -> Machine:
        """A machine with fresh keys of every kind, in this process: rotations by these steps."""
        ...

    def make_keys(
        self, params: CKKSParams, rotation_steps: Iterable[int], server: Path, client: Path
    ) -> None:
        """Write fresh keys to the row's files in both folders. Raises OSError if it cannot."""
        ...

    def key_sizes(self, params: CKKSParams, rotation_steps: Iterable[int]) -> dict[str, int]:
        """Bytes of each key file that `make_keys` writes to the server's folder, by its name."""
        ...

    def check_keys(self, params: CKKSParams, rotation_steps: Iterable[int], server: Path) -> None:
        """Hold key files that somebody else made against what they must be, before they are loaded.

        Raises BlobError if one is no key of these parameters, or of other rotations.
        """
        ...

    def key_holder(self, params: CKKSParams, slots: int, client: Path) -> Machine:
        """The client's machine. Raises BlobError if its library refuses a key file."""
        ...

    def evaluator(
        self,
        params: CKKSParams,
        slots: int,
        levels: Iterable[int] = (),
    ) -> ServerMachine:
        """The server's machine, ready to encode vectors at `levels`, without keys as yet."""
        ...
