"""Ciphertexts as bytes: a header of ours and the residues, nothing of OpenFHE's own format.

OpenFHE reads what it wrote with a parser that trusts it, so bytes of another process never get
there: residues are cut out of what OpenFHE writes, and put into a skeleton that it wrote here.

What the Python module reads is an object of that module's own copy of the library's templates,
which is compiled without optimization, and so are its copies, and theirs: a bootstrap of it takes
1.8 times as long, most of the rest on one thread. A sum is an object of its first operand's kind.
So what was read is added to a zero that the library made.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from he_backend.errors import BlobError
from he_backend.machines.openfhe.library import openfhe
from he_backend.machines.openfhe.residues import cut, places, put
from hesim.circuit.plain.slots import identity
from hesim.params import CKKSParams

__all__ = ["Wire"]

_HEADER = struct.Struct("<8sQiiQd")
_MAGIC = b"heopen02"


@dataclass(frozen=True)
class _Skeleton:
    """What OpenFHE writes for a ciphertext of one shape, where each polynomial starts, and a zero
    of that shape, of the library's own kind and without noise.
    """

    text: bytes
    places: tuple[int, ...]
    zero: Any


class Wire:
    """Bytes of the ciphertexts of one machine.

    Args:
      params: its ring.
      blank: makes some ciphertext of (level, components), of the machine's key and slots.
    """

    def __init__(self, params: CKKSParams, blank: Callable[[int, int], Any]):
        self.params = params
        self._blank = blank
        self._skeletons: dict[tuple[int, int, int], _Skeleton] = {}

    def size(self, components: int, level: int) -> int:
        """Bytes of every ciphertext of this shape."""
        return _HEADER.size + self.params.ciphertext_bytes(level, components)

    def residues(self, handle: Any, level: int, components: int) -> np.ndarray:
        """uint64[components, level + 1, N] of a ciphertext."""
        text = openfhe.Serialize(handle, openfhe.BINARY)
        rows = cut(text, self.params.n, self._primes(level, components))
        return rows.reshape(components, level + 1, self.params.n)

    def write(self, residues: np.ndarray, level: int, scale: float, slots: int) -> bytes:
        """The bytes of these residues."""
        return self._header(level, scale, len(residues), slots) + residues.astype("<u8").tobytes()

    def read(self, blob: bytes, level: int, scale: float, components: int, slots: int) -> Any:
        """The ciphertext in `blob`; its level and scale are still the skeleton's. Raises as `check`
        does.
        """
        return self.handle(self.check(blob, level, scale, components, slots), slots)

    def check(
        self, blob: bytes, level: int, scale: float, components: int, slots: int
    ) -> np.ndarray:
        """The residues in `blob`, as `residues` returns them.

        Raises:
          BlobError: the bytes are not the ciphertext that was announced.
        """
        header = self._header(level, scale, components, slots)
        if len(blob) != self.size(components, level) or blob[: len(header)] != header:
            raise BlobError(
                "the bytes are not the ciphertext that was announced: truncated, or of another "
                "ring, level, scale or number of components"
            )
        found = np.frombuffer(blob, "<u8", offset=len(header))
        found = found.reshape(components, level + 1, self.params.n)
        primes = np.array(self.params.primes[: level + 1], np.uint64)
        if np.any(found.max(axis=2) >= primes):
            raise BlobError("the ciphertext has residues that no reduction leaves: it is damaged")
        return found

    def handle(self, residues: np.ndarray, slots: int) -> Any:
        """A ciphertext of these residues; its level is theirs, its scale still the skeleton's."""
        components, primes, n = residues.shape
        skeleton = self._skeleton(primes - 1, components, slots)
        text = put(skeleton.text, skeleton.places, residues.reshape(-1, n))
        found = openfhe.DeserializeCiphertextString(text, openfhe.BINARY)
        return found.GetCryptoContext().EvalAdd(skeleton.zero, found)

    def _header(self, level: int, scale: float, components: int, slots: int) -> bytes:
        return _HEADER.pack(_MAGIC, identity(self.params), level, components, slots, scale)

    def _skeleton(self, level: int, components: int, slots: int) -> _Skeleton:
        key = (level, components, slots)
        if key not in self._skeletons:
            blank = self._blank(level, components)
            text = openfhe.Serialize(blank, openfhe.BINARY)
            self._skeletons[key] = _Skeleton(
                text,
                places(text, self.params.n, self._primes(level, components)),
                blank.GetCryptoContext().EvalSub(blank, blank),
            )
        return self._skeletons[key]

    def _primes(self, level: int, components: int) -> tuple[int, ...]:
        return self.params.primes[: level + 1] * components
