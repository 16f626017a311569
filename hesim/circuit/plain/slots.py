"""A machine on plain NumPy vectors: no encryption, every rule of levels, scales and keys enforced.

It refuses what SEAL would refuse (and the silent overflow that SEAL would not notice), so a Circuit
that is wrong for SEAL fails here too, exactly and in milliseconds. Nothing it returns is encrypted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hesim.circuit.plain import checks
from hesim.circuit.plain.errors import BlobError, CircuitError, MissingRotationKey
from hesim.circuit.plain.machine import Cipher
from hesim.params import CKKSParams

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "PlainMachine",
    "SlotsCipher",
    "SlotsPlain",
    "check_level_and_scale",
    "identity",
    "missing_key",
]

_HEADER = struct.Struct("<8sQiiQd")
_MAGIC = b"heslots1"


@dataclass(frozen=True, eq=False)
class SlotsCipher:
    """The message itself, float64[slots], with the level, scale and components it would have."""

    values: Float[np.ndarray, " slots"]
    level: int
    scale: float
    components: int = 2


@dataclass(frozen=True, eq=False)
class SlotsPlain:
    """A plaintext vector float64[slots] (or float64[] for a scalar)."""

    values: Float[np.ndarray, " slots"]
    level: int
    scale: float
    zero: bool

    @property
    def nbytes(self) -> int:
        return self.values.nbytes


class PlainMachine:
    """The machine; see `hesim.circuit.plain.machine` for the methods. It encrypts nothing.

    Args:
      params: ring and primes that the Circuit was compiled for.
      slots: values to a vector; default params.slots.
      rotation_steps: steps that have a key; None allows all.
    """

    name = "slots"
    encrypts = False

    def __init__(
        self,
        params: CKKSParams,
        slots: int | None = None,
        rotation_steps: Iterable[int] | None = None,
    ):
        self.params = params
        self.slots = slots or params.slots
        self.rotation_steps = None if rotation_steps is None else frozenset(rotation_steps)

    def encode(
        self, values: Float[np.ndarray, " slots"] | float, level: int, scale: float
    ) -> SlotsPlain:
        array = checks.checked_values(self.params, self.slots, values, level, scale)
        return SlotsPlain(array, level, scale, not np.any(array))

    def encrypt(
        self, values: Float[np.ndarray, " slots"] | float, level: int, scale: float
    ) -> SlotsCipher:
        array = checks.checked_values(self.params, self.slots, values, level, scale)
        return SlotsCipher(np.broadcast_to(array, (self.slots,)), level, scale)

    def decrypt(self, cipher: SlotsCipher) -> Float[np.ndarray, " slots"]:
        return np.array(cipher.values)

    def add(self, ciphers: Sequence[SlotsCipher], factors: Sequence[int]) -> SlotsCipher:
        level = checks.same_level(ciphers)
        for cipher in ciphers:
            checks.same_scale(ciphers[0].scale, cipher.scale)
        total = _sum(f * c.values for c, f in zip(ciphers, factors, strict=True))
        return self._result(total, level, ciphers[0].scale, max(c.components for c in ciphers))

    def add_plain(self, cipher: SlotsCipher, plain: SlotsPlain) -> SlotsCipher:
        level = checks.same_level((cipher, plain))
        checks.same_scale(cipher.scale, plain.scale)
        return self._result(cipher.values + plain.values, level, cipher.scale, cipher.components)

    def dot(
        self, left: Sequence[SlotsCipher], right: Sequence[SlotsCipher], factors: Sequence[int]
    ) -> SlotsCipher:
        level = checks.same_level((*left, *right))
        scale = self._products_scale(left, right, level)
        for cipher in (*left, *right):
            checks.components_are(cipher, (2,), "a product")
        total = _sum(f * a.values * b.values for a, b, f in zip(left, right, factors, strict=True))
        return self._result(total, level, scale, 3)

    def dot_plain(
        self, ciphers: Sequence[SlotsCipher], plains: Iterable[SlotsPlain]
    ) -> SlotsCipher:
        level, scale = checks.same_level(ciphers), 0.0
        total = np.zeros(self.slots)
        for cipher, plain in zip(ciphers, plains, strict=True):
            checks.same_level((cipher, plain))
            scale = scale or checks.product_fits(self.params, level, cipher.scale, plain.scale)
            checks.same_scale(scale, cipher.scale * plain.scale)
            total += cipher.values * plain.values
        return self._result(total, level, scale, max(c.components for c in ciphers))

    def dot_scalars(
        self, ciphers: Sequence[SlotsCipher], rows: Float[np.ndarray, "rows ciphers"], scale: float
    ) -> list[SlotsCipher]:
        level = checks.same_level(ciphers)
        for cipher in ciphers:
            checks.same_scale(ciphers[0].scale, cipher.scale)
        for value in (float(np.max(rows, initial=0.0)), float(np.min(rows, initial=0.0))):
            checks.checked_values(self.params, self.slots, value, level, scale)
        product = checks.product_fits(self.params, level, ciphers[0].scale, scale)
        values = np.asarray(rows, dtype=np.float64) @ np.stack([c.values for c in ciphers])
        components = max(c.components for c in ciphers)
        return [self._result(row, level, product, components) for row in values]

    def rotate(self, cipher: SlotsCipher, step: int) -> SlotsCipher:
        checks.components_are(cipher, (2,), "a rotation")
        step %= self.slots
        if self.rotation_steps is not None and step and step not in self.rotation_steps:
            raise missing_key(step, self.rotation_steps)
        return self._result(np.roll(cipher.values, -step), cipher.level, cipher.scale, 2)

    def relinearize(self, cipher: SlotsCipher) -> SlotsCipher:
        checks.components_are(cipher, (2, 3), "relinearization")
        return SlotsCipher(cipher.values, cipher.level, cipher.scale)

    def rescale(self, cipher: SlotsCipher) -> SlotsCipher:
        if cipher.level == 0:
            raise CircuitError("no level is left to rescale; refresh, or take more levels")
        scale = cipher.scale / self.params.primes[cipher.level]
        return self._result(cipher.values, cipher.level - 1, scale, cipher.components)

    def drop(self, cipher: SlotsCipher, level: int) -> SlotsCipher:
        if not 0 <= level <= cipher.level:
            raise CircuitError(f"cannot drop from level {cipher.level} to level {level}")
        return self._result(cipher.values, level, cipher.scale, cipher.components)

    def set_exact_scale(self, cipher: SlotsCipher, level: int, scale: float) -> SlotsCipher:
        check_level_and_scale(cipher, level, scale)
        return SlotsCipher(cipher.values, level, scale, cipher.components)

    def to_bytes(self, cipher: SlotsCipher) -> bytes:
        header = _HEADER.pack(
            _MAGIC, identity(self.params), cipher.level, cipher.components, self.slots, cipher.scale
        )
        return header + np.ascontiguousarray(cipher.values).tobytes()

    def from_bytes(self, blob: bytes, level: int, scale: float, components: int = 2) -> SlotsCipher:
        self.check_bytes(blob, level, scale, components)
        return SlotsCipher(
            np.frombuffer(blob, np.float64, offset=_HEADER.size), level, scale, components
        )

    def check_bytes(self, blob: bytes, level: int, scale: float, components: int = 2) -> None:
        expected = _HEADER.pack(_MAGIC, identity(self.params), level, components, self.slots, scale)
        if len(blob) != len(expected) + 8 * self.slots or blob[: len(expected)] != expected:
            raise BlobError("the bytes are not the vector that was announced: truncated or foreign")

    def cipher_size(self, components: int, level: int) -> int:
        return _HEADER.size + 8 * self.slots

    def _products_scale(self, left: Sequence, right: Sequence, level: int) -> float:
        scale = checks.product_fits(self.params, level, left[0].scale, right[0].scale)
        for a, b in zip(left, right, strict=True):
            checks.same_scale(scale, a.scale * b.scale)
        return scale

    def _result(self, values: np.ndarray, level: int, scale: float, components: int) -> SlotsCipher:
        checks.fits_level(self.params, level, scale)
        checks.check_range(self.params, values, level, scale)
        return SlotsCipher(values, level, scale, components)


def check_level_and_scale(cipher: Cipher, level: int, scale: float) -> None:
    """Raises CircuitError unless `cipher` is at `level` and, up to dust, at `scale`."""
    if cipher.level != level:
        raise CircuitError(f"the Circuit says level {level}, the ciphertext is at {cipher.level}")
    checks.same_scale(cipher.scale, scale)


def missing_key(step: int, steps: Iterable[int]) -> MissingRotationKey:
    """The error for a rotation without its key."""
    known = sorted(steps)
    shown = ", ".join(map(str, known[:8])) + (", ..." if len(known) > 8 else "")
    return MissingRotationKey(
        f"there is no rotation key for step {step}; keys exist for {len(known)} steps ({shown}). "
        f"Generate keys for all of circuit.rotation_steps in one call",
        step,
    )


def identity(params: CKKSParams) -> int:
    """64 bits that two equal parameter sets share."""
    value = params.log_n
    for q in params.moduli:
        value = (value * 0x9E3779B97F4A7C15 + q) % (1 << 64)
    return value


def _sum(terms: Iterable[np.ndarray]) -> np.ndarray:
    total: np.ndarray | None = None
    for term in terms:
        if total is None:
            total = np.array(term)
        else:
            total += term
    assert total is not None, "an instruction has at least one term"
    return total
