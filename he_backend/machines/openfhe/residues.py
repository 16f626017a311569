"""Residues in what OpenFHE writes: cut out, and put into what it wrote of the same shape."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from he_backend.errors import BackendError

if TYPE_CHECKING:
    from jaxtyping import UInt64

__all__ = ["cut", "places", "put"]


def places(text: bytes, n: int, primes: Sequence[int]) -> tuple[int, ...]:
    """Offsets of polynomials modulo these primes, one after the other: a count of N, N numbers of 8
    bytes, and the prime.

    Raises:
      BackendError: they are not there.
    """
    count, size = struct.pack("<Q", n), 8 * n
    found: list[int] = []
    start = 0
    for prime in primes:
        end = struct.pack("<Q", prime)
        place = text.find(count, start) + len(count)
        while text[place + size : place + size + 8] != end:
            place = text.find(count, place - len(count) + 1) + len(count)
            if place < len(count):
                raise BackendError("OpenFHE writes polynomials in a form that is not known")
        found.append(place)
        start = place + size
    return tuple(found)


def cut(text: bytes, n: int, primes: Sequence[int]) -> UInt64[np.ndarray, "primes n"]:
    """The polynomials that `places` finds."""
    rows = [np.frombuffer(text, "<u8", n, place) for place in places(text, n, primes)]
    return np.stack(rows)


def put(text: bytes, at: Sequence[int], rows: UInt64[np.ndarray, "primes n"]) -> bytes:
    """`text` with other polynomials at these places."""
    changed = bytearray(text)
    for place, row in zip(at, rows, strict=True):
        changed[place : place + row.nbytes] = row.astype("<u8", copy=False).tobytes()
    return bytes(changed)
