"""SEAL's uncompressed key files, checked before SEAL reads them: it loads damaged ones.

Layout (SEAL 4.1, `publickey.h`, `kswitchkeys.cpp`, `galoiskeys.h`), little-endian: a public key is
a ciphertext of two components over all primes and the special one. Switching keys are a header, the
parameter identity (32), the number of places (u64), and in each place a count (u64) of public keys:
none, or one for each prime but the special one. A relinearization key has one place, rotation keys
have N, of which that of step s is number (3^s - 1) / 2 modulo N.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from he_backend.errors import BlobError
from hesim.params import CKKSParams

__all__ = ["check_keys", "key_sizes"]

_MAGIC = 0xA15E
_VERSION = (4, 1)
_HEADER = struct.Struct("<HBBBBHQ")
_CIPHER = struct.Struct("<32sBQQQdQ")
_PLACES = struct.Struct("<32sQ")
_COUNT = struct.Struct("<Q")
_CKKS = 2
_BEFORE_RESIDUES = _HEADER.size + _CIPHER.size + _HEADER.size + _COUNT.size


def key_sizes(params: CKKSParams, steps: Iterable[int]) -> dict[str, int]:
    """Bytes of each file of keys that evaluate, by its name."""
    one, held = _public_bytes(params), _steps(steps)
    key = _COUNT.size + (params.levels + 1) * one
    around = _HEADER.size + _PLACES.size
    sizes = {"public.key": one, "relin.key": around + key}
    if held:
        sizes["rotation.key"] = around + len(held) * key + (params.n - len(held)) * _COUNT.size
    return sizes


def check_keys(params: CKKSParams, steps: Iterable[int], folder: Path) -> None:
    """Hold every header field and every residue of the key files against the parameters.

    Args:
      params: ring and primes. steps: rotation steps, those that there must be keys for and no
        others.
      folder: of the files that `key_sizes` names.

    Raises:
      BlobError: one is missing, of another size, or no key of these parameters.
    """
    held = _steps(steps)
    for name, size in key_sizes(params, held).items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise BlobError(f"the key file {name} is missing, or has not the {size:,} bytes it has")
        data = np.memmap(path, np.uint8, "r").data
        try:
            if name == "public.key":
                _check_public(params, data, 0)
            elif name == "relin.key":
                _check_places(params, data, 1, {0})
            else:
                places = {(pow(3, s, 2 * params.n) - 1) // 2 for s in held}
                _check_places(params, data, params.n, places)
        except BlobError as error:
            raise BlobError(f"the key file {name}: {error}") from error


def _steps(steps: Iterable[int]) -> list[int]:
    return sorted({int(s) for s in steps} - {0})


def _public_bytes(params: CKKSParams) -> int:
    return _BEFORE_RESIDUES + 16 * params.n * len(params.moduli)


def _identity(params: CKKSParams) -> bytes:
    """SEAL's hash of scheme, ring, all primes, and a plain modulus that CKKS does not have."""
    numbers = (_CKKS, params.n, *params.moduli, 0)
    return hashlib.blake2b(struct.pack(f"<{len(numbers)}Q", *numbers), digest_size=32).digest()


def _check_places(params: CKKSParams, data: memoryview, count: int, filled: set[int]) -> None:
    """Switching keys, in `filled` of `count` places and in no other."""
    _check_header(data, 0, len(data))
    if _PLACES.unpack_from(data, _HEADER.size) != (_identity(params), count):
        raise BlobError("it is of other parameters, or of another kind")
    one, at = _public_bytes(params), _HEADER.size + _PLACES.size
    for place in range(count):
        keys = params.levels + 1 if place in filled else 0
        if at + _COUNT.size > len(data) or _COUNT.unpack_from(data, at)[0] != keys:
            raise BlobError("it holds keys of other rotations than those of the Circuit")
        at += _COUNT.size
        for _ in range(keys):
            _check_public(params, data[at : at + one], 0)
            at += one


def _check_public(params: CKKSParams, data: memoryview, at: int) -> None:
    primes, size = params.moduli, _public_bytes(params)
    if len(data) - at < size:
        raise BlobError("it is cut off")
    _check_header(data, at, size)
    body = _CIPHER.unpack_from(data, at + _HEADER.size)
    inner = at + _HEADER.size + _CIPHER.size
    if body != (_identity(params), 1, 2, params.n, len(primes), 1.0, 1):
        raise BlobError("a key is of other parameters, or of other dimensions")
    _check_header(data, inner, size - (inner - at))
    if _COUNT.unpack_from(data, inner + _HEADER.size)[0] != 2 * params.n * len(primes):
        raise BlobError("a key announces another number of residues than it holds")
    flat = np.frombuffer(data[at + _BEFORE_RESIDUES : at + size], np.uint64)
    residues = flat.reshape(2, len(primes), params.n)
    if not np.all(residues.max(axis=(0, 2)) < np.array(primes, np.uint64)):
        raise BlobError("a residue is not below its prime: the key was altered")
    if not np.all(residues.any(axis=2)):
        raise BlobError("a component of a key is zero: it hides nothing")


def _check_header(data: memoryview, at: int, size: int) -> None:
    expected = (_MAGIC, _HEADER.size, *_VERSION, 0, 0, size)
    if _HEADER.unpack_from(data, at) != expected:
        raise BlobError("it does not start like an uncompressed SEAL object of this version")
