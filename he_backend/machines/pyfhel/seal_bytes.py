"""SEAL's uncompressed bytes: plaintexts built without an encoder, ciphertexts checked.

Layout (SEAL 4.1, `serialization.h`, `plaintext.cpp`, `ciphertext.cpp`), little-endian:

- header, 16 bytes: magic 0xA15E, header size 16, version 4.1, compression, reserved, total size;
- plaintext: parameter identity (32), coefficients (u64), scale (f64), array;
- ciphertext: parameter identity (32), NTT flag (u8), components, N, primes (u64), scale (f64),
  correction factor (u64), array;
- array: a header of its own, count (u64), residues (u64) by component, prime and NTT coefficient.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from he_backend.errors import BlobError
from hesim.params import CKKSParams

__all__ = ["SealBytes"]

_MAGIC = 0xA15E
_HEADER = struct.Struct("<HBBBBHQ")
_PLAIN = struct.Struct("<32sQd")
_CIPHER = struct.Struct("<32sBQQQdQ")
_COUNT = struct.Struct("<Q")
_PLAIN_OFFSET = _HEADER.size + _PLAIN.size + _HEADER.size + _COUNT.size
_CIPHER_OFFSET = _HEADER.size + _CIPHER.size + _HEADER.size + _COUNT.size


class SealBytes:
    """Reads and writes SEAL's bytes for one parameter set.

    Args:
      params: ring and primes.
      identities: SEAL's 32-byte parameter identity at each level, level 0 first.
      version: SEAL's (major, minor) version.
    """

    def __init__(self, params: CKKSParams, identities: Sequence[bytes], version: tuple[int, int]):
        self.params = params
        self.identities = tuple(identities)
        self.version = version
        self._primes = np.array(params.primes, dtype=np.uint64)

    @staticmethod
    def plain_identity(blob: bytes) -> tuple[bytes, tuple[int, int]]:
        """Parameter identity and SEAL version in the bytes of a plaintext."""
        _, _, major, minor, *_ = _HEADER.unpack_from(blob)
        return blob[_HEADER.size : _HEADER.size + 32], (major, minor)

    def scalar(self, integer: int, level: int, scale: float) -> bytes:
        """A plaintext whose slots all hold integer / scale: a constant, in NTT form too."""
        residues = np.empty((level + 1, self.params.n), dtype=np.uint64)
        for i in range(level + 1):
            residues[i] = integer % self.params.primes[i]
        return self.plain(residues, level, scale)

    def plain(self, residues: np.ndarray, level: int, scale: float) -> bytes:
        """A plaintext with `residues`, uint64[level + 1, N] in NTT form."""
        body = _PLAIN.pack(self.identities[level], residues.size, scale)
        return self._pack(body, residues)

    def cipher(self, residues: np.ndarray, level: int, scale: float) -> bytes:
        """A ciphertext with `residues`, uint64[components, level + 1, N] in NTT form."""
        body = _CIPHER.pack(
            self.identities[level], 1, residues.shape[0], self.params.n, level + 1, scale, 1
        )
        return self._pack(body, residues)

    def residues(self, blob: bytes, components: int, level: int) -> np.ndarray:
        """uint64[components, level + 1, N], a view into the bytes of a ciphertext of our own."""
        flat = np.frombuffer(blob, dtype=np.uint64, offset=_CIPHER_OFFSET)
        return flat.reshape(components, level + 1, self.params.n)

    def cipher_size(self, components: int, level: int) -> int:
        """Bytes of a ciphertext."""
        return _CIPHER_OFFSET + self.params.ciphertext_bytes(level, components)

    def check(self, blob: bytes, level: int, scale: float, components: int) -> None:
        """Raises BlobError unless `blob` is a well-formed ciphertext exactly as announced.

        Every header field is held against what this parameter set says, every residue against its
        prime, and a transparent ciphertext (nothing but its first component) is refused.
        """
        size = self.cipher_size(components, level)
        if len(blob) != size:
            raise BlobError(
                f"a ciphertext of {components} components at level {level} has {size} bytes, not "
                f"{len(blob)}: truncated, or of other parameters"
            )
        self._check_header(blob, 0, size)
        body = _CIPHER.unpack_from(blob, _HEADER.size)
        if body[0] != self.identities[level]:
            raise BlobError(
                f"the parameter identity is not the one of level {level}: foreign parameters"
            )
        expected = (1, components, self.params.n, level + 1)
        if body[1:5] != expected or body[6] != 1:
            raise BlobError("the ciphertext's dimensions are not what was announced")
        if not abs(body[5] / scale - 1.0) < 2.0**-40:
            raise BlobError(f"the ciphertext's scale {body[5]!r} is not the announced {scale!r}")
        inner = _HEADER.size + _CIPHER.size
        self._check_header(blob, inner, size - inner)
        count = components * (level + 1) * self.params.n
        if _COUNT.unpack_from(blob, inner + _HEADER.size)[0] != count:
            raise BlobError("the ciphertext announces another number of residues than it holds")
        residues = self.residues(blob, components, level)
        if not np.all(residues.max(axis=(0, 2)) < self._primes[: level + 1]):
            raise BlobError("a residue is not below its prime: the ciphertext was altered")
        if not residues[1:].any():
            raise BlobError("the ciphertext is transparent: it hides nothing")

    def _check_header(self, blob: bytes, offset: int, size: int) -> None:
        fields = _HEADER.unpack_from(blob, offset)
        if fields != (_MAGIC, _HEADER.size, *self.version, 0, 0, size):
            raise BlobError(
                "the bytes do not start like an uncompressed SEAL object of this version"
            )

    def _pack(self, body: bytes, residues: np.ndarray) -> bytes:
        inner = _HEADER.size + _COUNT.size + residues.nbytes
        return b"".join(
            (
                self._header(_HEADER.size + len(body) + inner),
                body,
                self._header(inner),
                _COUNT.pack(residues.size),
                residues.tobytes(),
            )
        )

    def _header(self, size: int) -> bytes:
        return _HEADER.pack(_MAGIC, _HEADER.size, *self.version, 0, 0, size)
