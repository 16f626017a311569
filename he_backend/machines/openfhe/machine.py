"""A machine on OpenFHE 1.6, with its own level and scale tracking. Runs under the interpreter that
has OpenFHE.

What OpenFHE does on its own is kept from happening: it is shown every ciphertext as one product
deep, so that it rescales and adjusts nothing (see `contexts`). What it would do silently is refused
before: unequal levels and scales, overflow, NaN, missing keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from he_backend.errors import BackendError, CircuitError, EncodeError, ValueRangeError
from he_backend.machines.openfhe import files
from he_backend.machines.openfhe.bootstraps import Bootstraps
from he_backend.machines.openfhe.contexts import context
from he_backend.machines.openfhe.hoisting import Hoisted
from he_backend.machines.openfhe.pairs import Pair, shared_pairs
from he_backend.machines.openfhe.rounding import Rounding
from he_backend.machines.openfhe.wire import Wire
from hesim.circuit.plain import checks
from hesim.circuit.plain.slots import check_level_and_scale, missing_key
from hesim.circuit.refresher import Refresher
from hesim.params import CKKSParams

__all__ = ["NativeMachine", "OpenFHECipher", "OpenFHEPlain"]

_LARGEST_SCALAR = 2.0**120
"""A number is multiplied on as an integer of at most 127 bits; larger ones are encoded."""


@dataclass(frozen=True, eq=False)
class OpenFHECipher:
    """A ciphertext of OpenFHE with the level, exact scale and components that we track."""

    handle: Any
    level: int
    scale: float
    components: int = 2


@dataclass(frozen=True, eq=False)
class OpenFHEPlain:
    """An encoded vector, or a number, which needs no encoding before it is multiplied on."""

    handle: Any
    level: int
    scale: float
    zero: bool
    nbytes: int
    number: float | None = None


class NativeMachine:
    """The machine; see `he_backend.machines.protocol.Machine` for the methods.

    Args:
      params: ring and primes, with `digits`.
      slots: values to a vector; default params.slots.
      bootstrap: by what it refreshes, if it does.
    """

    name = "openfhe"
    encrypts = True
    threads = True

    def __init__(
        self, params: CKKSParams, slots: int | None = None, bootstrap: Refresher | None = None
    ):
        self.params = params
        self.slots = slots or params.slots
        self.rotation_steps: frozenset[int] = frozenset()
        self._cc = context(params)
        self._public: Any = None
        self._secret: Any = None
        self._wire = Wire(params, self._blank)
        self._hoisted = Hoisted(self._cc)
        self._rounding = Rounding(self._cc, self._wire, self.slots)
        self._bootstraps = bootstrap and Bootstraps(params, bootstrap)

    # Keys

    @classmethod
    def generate(
        cls,
        params: CKKSParams,
        rotation_steps: Iterable[int] = (),
        slots: int | None = None,
        bootstrap: Refresher | None = None,
    ) -> NativeMachine:
        """A machine with fresh keys of every kind, the secret one included: for the key holder."""
        machine = cls(params, slots, bootstrap)
        own = machine._new_pairs()
        machine._make_keys(rotation_steps)
        if machine._bootstraps:
            machine._bootstraps.make_keys(own)
        return machine

    def _new_pairs(self) -> Pair:
        """Take a new key pair; that of the bootstraps, if there are any, is of the same secret."""
        if self._bootstraps is None:
            made = self._cc.KeyGen()
            own = Pair(made.publicKey, made.secretKey)
            self._public, self._secret = own.public, own.secret
            return own
        boots = self._bootstraps
        given, own = shared_pairs(self._cc, self.params.levels, boots.cc, boots.chain)
        self._public, self._secret = given.public, given.secret
        return own

    def _make_keys(self, rotation_steps: Iterable[int]) -> None:
        """Make the Circuit's evaluation keys."""
        steps = sorted({int(s) for s in rotation_steps} - {0})
        if any(not 0 < s < self.params.slots for s in steps):
            last = self.params.slots - 1
            raise CircuitError(f"rotation steps {steps} are not between 1 and {last}")
        self._cc.EvalMultKeyGen(self._secret)
        if steps:
            self._cc.EvalRotateKeyGen(self._secret, steps)
        self.rotation_steps = frozenset(steps)

    @classmethod
    def make_keys(
        cls,
        params: CKKSParams,
        rotation_steps: Iterable[int],
        server: Path,
        client: Path,
        bootstrap: Refresher | None = None,
    ) -> None:
        """Write fresh keys: all but the secret one to the server's folder, that and the public one
        to the client's. Raises OSError if it cannot.
        """
        slots = bootstrap.slots if bootstrap else None
        machine = cls(params, slots, bootstrap)
        own = machine._new_pairs()
        machine._make_keys(rotation_steps)
        for folder in (server, client):
            files.write_public(folder / "public.key", machine._public)
        files.write_secret(client / "secret.key", machine._secret)
        tag = machine._secret.GetKeyTag()
        files.write_relinearization(server / "relin.key", tag, params)
        if machine.rotation_steps:
            files.write_rotations(server / "rotation.key", tag)
        files.forget()
        if machine._bootstraps:
            machine._bootstraps.make_keys(own)
            machine._bootstraps.write_keys(server, own.secret.GetKeyTag())

    @classmethod
    def key_sizes(cls, params: CKKSParams, rotation_steps: Iterable[int]) -> dict[str, int]:
        """Raises BackendError: key files of another owner are not taken."""
        raise _trusted_keys_only()

    @classmethod
    def check_keys(cls, params: CKKSParams, rotation_steps: Iterable[int], server: Path) -> None:
        """Raises BackendError: key files of another owner are not taken."""
        raise _trusted_keys_only()

    @classmethod
    def key_holder(
        cls, params: CKKSParams, slots: int, client: Path, bootstrap: Refresher | None = None
    ) -> NativeMachine:
        """A machine with the keys that encrypt and decrypt; it refreshes nothing itself."""
        machine = cls(params, slots)
        machine._public = files.read_public(client / "public.key")
        machine._secret = files.read_secret(client / "secret.key")
        return machine

    @classmethod
    def evaluator(
        cls,
        params: CKKSParams,
        slots: int,
        levels: Iterable[int] = (),
        bootstrap: Refresher | None = None,
    ) -> NativeMachine:
        """A machine without keys, ready to bootstrap once it has them."""
        return cls(params, slots, bootstrap)

    def load_keys(self, server: Path, rotation_steps: Iterable[int]) -> None:
        """Load all keys but the secret one. Raises BlobError if OpenFHE finds one malformed."""
        self._public = files.read_public(server / "public.key")
        files.read_relinearization(server / "relin.key")
        self.rotation_steps = frozenset(int(s) for s in rotation_steps) - {0}
        if self.rotation_steps:
            files.read_rotations(server / "rotation.key")
        if self._bootstraps:
            self._bootstraps.load_keys(server)

    # Encoding and encryption

    def encode(self, values: np.ndarray | float, level: int, scale: float) -> OpenFHEPlain:
        array = checks.checked_values(self.params, self.slots, values, level, scale)
        if array.ndim == 0:
            integer = round(float(array) * scale)
            if abs(integer) < _LARGEST_SCALAR:
                number = integer / self._scale(level)
                return OpenFHEPlain(None, level, scale, integer == 0, 64, number)
            array = np.full(self.slots, float(array))
        handle = self._encoded(array, level, scale)
        size = 0 if handle is None else self.params.plaintext_bytes(level)
        return OpenFHEPlain(handle, level, scale, handle is None, size)

    def encrypt(self, values: np.ndarray | float, level: int, scale: float) -> OpenFHECipher:
        array = checks.checked_values(self.params, self.slots, values, level, scale)
        handle = self._encoded(np.broadcast_to(array, (self.slots,)), level, scale)
        if handle is None:
            return self._zero(level, scale, 2)
        if self._public is None:
            raise BackendError("this machine holds no public key: load the keys first")
        return self._cipher(self._cc.Encrypt(self._public, handle), level, scale)

    def decrypt(self, cipher: OpenFHECipher) -> np.ndarray:
        if self._secret is None:
            raise BackendError("this machine holds no secret key: only the client decrypts")
        handle = cipher.handle
        handle.SetSlots(self.params.slots)  # or else all copies would be read, and averaged
        try:
            plain = self._cc.Decrypt(handle, self._secret)
        except RuntimeError as error:
            if "approximation error" not in str(error):
                raise
            raise ValueRangeError(
                f"the ciphertext holds no numbers, or too large ones: values at level "
                f"{cipher.level} are below "
                f"{2.0 ** (self.params.log_q(cipher.level) - 1) / cipher.scale:.4g}; refresh "
                f"earlier, or multiply at a higher level"
            ) from error
        finally:
            handle.SetSlots(self.slots)
        return np.array(plain.GetRealPackedValueArray(), np.float64)[: self.slots]

    # Arithmetic

    def add(self, ciphers: Sequence[OpenFHECipher], factors: Sequence[int]) -> OpenFHECipher:
        level = checks.same_level(ciphers)
        total = _Sum(self._cc)
        for cipher, factor in zip(ciphers, factors, strict=True):
            checks.same_scale(ciphers[0].scale, cipher.scale)
            total.add(cipher.handle, int(factor))
        return self._total(total, level, ciphers[0].scale, max(c.components for c in ciphers))

    def add_plain(self, cipher: OpenFHECipher, plain: OpenFHEPlain) -> OpenFHECipher:
        level = checks.same_level((cipher, plain))
        checks.same_scale(cipher.scale, plain.scale)
        if plain.zero:
            return cipher
        handle = plain.handle
        if plain.number is not None:
            value = plain.number * self._scale(level) / plain.scale
            handle = self._encoded(np.full(self.slots, value), level, plain.scale)
        added = self._cc.EvalAdd(cipher.handle, handle)
        return self._cipher(added, level, cipher.scale, cipher.components)

    def dot(
        self, left: Sequence[OpenFHECipher], right: Sequence[OpenFHECipher], factors: Sequence[int]
    ) -> OpenFHECipher:
        level = checks.same_level((*left, *right))
        scale = checks.product_fits(self.params, level, left[0].scale, right[0].scale)
        total = _Sum(self._cc)
        for a, b, factor in zip(left, right, factors, strict=True):
            checks.components_are(a, (2,), "a product")
            checks.components_are(b, (2,), "a product")
            checks.same_scale(scale, a.scale * b.scale)
            product = self._cc.EvalMultNoRelin(a.handle, b.handle)
            total.take(self._shown(product, level, scale), int(factor))
        return self._total(total, level, scale, 3)

    def dot_plain(
        self, ciphers: Sequence[OpenFHECipher], plains: Iterable[OpenFHEPlain]
    ) -> OpenFHECipher:
        level, scale, total = checks.same_level(ciphers), 0.0, _Sum(self._cc)
        for cipher, plain in zip(ciphers, plains, strict=True):
            checks.same_level((cipher, plain))
            scale = scale or checks.product_fits(self.params, level, cipher.scale, plain.scale)
            checks.same_scale(scale, cipher.scale * plain.scale)
            if not plain.zero:
                by = plain.number if plain.handle is None else plain.handle
                product = self._cc.EvalMult(cipher.handle, by)
                total.take(self._shown(product, level, scale), 1)
        return self._total(total, level, scale, max(c.components for c in ciphers))

    def dot_scalars(
        self, ciphers: Sequence[OpenFHECipher], rows: np.ndarray, scale: float
    ) -> list[OpenFHECipher]:
        level = checks.same_level(ciphers)
        components = max(c.components for c in ciphers)
        for cipher in ciphers:
            checks.same_scale(ciphers[0].scale, cipher.scale)
            checks.components_are(cipher, (components,), "one sum")
        for value in (float(np.max(rows, initial=0.0)), float(np.min(rows, initial=0.0))):
            checks.checked_values(self.params, self.slots, value, level, scale)
        encoded = ([self.encode(float(v), level, scale) for v in row] for row in rows)
        return [self.dot_plain(ciphers, plains) for plains in encoded]

    def rotate(self, cipher: OpenFHECipher, step: int) -> OpenFHECipher:
        checks.components_are(cipher, (2,), "a rotation")
        step %= self.slots
        if step == 0:
            return cipher
        if step not in self.rotation_steps:
            raise missing_key(step, self.rotation_steps)
        return self._switched(self._hoisted.rotate(cipher, step), cipher, step)

    def relinearize(self, cipher: OpenFHECipher) -> OpenFHECipher:
        checks.components_are(cipher, (2, 3), "relinearization")
        if cipher.components == 2:
            return cipher
        return self._switched(self._cc.Relinearize(cipher.handle), cipher)

    def rescale(self, cipher: OpenFHECipher) -> OpenFHECipher:
        if cipher.level == 0:
            raise CircuitError("no level is left to rescale; refresh, or take more levels")
        level, scale = cipher.level - 1, cipher.scale / self.params.primes[cipher.level]
        checks.fits_level(self.params, level, scale)
        cipher.handle.SetNoiseScaleDeg(2)  # of two products, one is divided away
        handle = self._cc.Compress(cipher.handle, level + 1, 1)
        cipher.handle.SetNoiseScaleDeg(1)
        return self._cipher(handle, level, scale, cipher.components)

    def drop(self, cipher: OpenFHECipher, level: int) -> OpenFHECipher:
        if not 0 <= level <= cipher.level:
            raise CircuitError(f"cannot drop from level {cipher.level} to level {level}")
        checks.fits_level(self.params, level, cipher.scale)
        handle = self._cc.Compress(cipher.handle, level + 1, 1)
        return self._cipher(handle, level, cipher.scale, cipher.components)

    def bootstrap(self, cipher: OpenFHECipher, level: int) -> OpenFHECipher:
        """`cipher` with fresh levels; see `hesim.circuit.plain.machine.Bootstrapper`."""
        if self._bootstraps is None:
            raise BackendError("the machine was not made to bootstrap")
        self._bootstraps.check(cipher, level)
        if self._bootstraps.slots != self.slots:
            raise CircuitError(
                f"bootstraps were prepared for {self._bootstraps.slots} slots, not {self.slots}"
            )
        low = self.drop(cipher, self._bootstraps.refresher.min_input_level)
        wanted = self.params.scale(level)
        found = self._bootstraps.run(low.handle, self._wire, wanted)
        return self.drop(self._cipher(found, self._bootstraps.highest, wanted), level)

    def set_exact_scale(self, cipher: OpenFHECipher, level: int, scale: float) -> OpenFHECipher:
        check_level_and_scale(cipher, level, scale)
        cipher.handle.SetScalingFactor(scale)
        return OpenFHECipher(cipher.handle, level, scale, cipher.components)

    # Bytes

    def to_bytes(self, cipher: OpenFHECipher) -> bytes:
        residues = self._wire.residues(cipher.handle, cipher.level, cipher.components)
        if not residues[1:].any():  # anybody could read it
            zero = self._zero(cipher.level, cipher.scale, cipher.components)
            hidden = self.add([cipher, zero], [1, 1])
            residues = self._wire.residues(hidden.handle, cipher.level, cipher.components)
        return self._wire.write(residues, cipher.level, cipher.scale, self.slots)

    def from_bytes(
        self, blob: bytes, level: int, scale: float, components: int = 2
    ) -> OpenFHECipher:
        checks.fits_level(self.params, level, scale)
        handle = self._wire.read(blob, level, scale, components, self.slots)
        return self._cipher(handle, level, scale, components)

    def check_bytes(self, blob: bytes, level: int, scale: float, components: int = 2) -> None:
        checks.fits_level(self.params, level, scale)
        self._wire.check(blob, level, scale, components, self.slots)

    def cipher_size(self, components: int, level: int) -> int:
        return self._wire.size(components, level)

    # Inside

    def _scale(self, level: int) -> float:
        """At which OpenFHE encodes at this level."""
        return self.params.scale(level)

    def _encoded(self, array: np.ndarray, level: int, scale: float) -> Any:
        """A plaintext of float64[slots], or None if it rounds to nothing.

        OpenFHE encodes at its own scale, then multiplies by powers of it: values make up for the
        rest, in that they are made larger, since what is below its scale is lost.
        """
        power = max(1, math.floor(math.log2(scale) / self.params.scale_bits + 0.1))
        values = array * (scale / self._scale(level) ** power)
        above = self.params.levels - level
        try:
            made = self._cc.MakeCKKSPackedPlaintext(values, power, above, None, self.slots)
        except RuntimeError as error:
            if "too small" in str(error):
                return None
            raise EncodeError(f"OpenFHE refuses the values: {error}") from error
        if not array.any():
            return None
        made.SetNoiseScaleDeg(1)
        made.SetScalingFactor(scale)
        return made

    def _shown(self, handle: Any, level: int, scale: float) -> Any:
        """The handle as OpenFHE is to see it: one product deep, at its scale."""
        if handle.GetLevel() != self.params.levels - level:
            raise BackendError(
                f"OpenFHE went to level {self.params.levels - handle.GetLevel()} where the Circuit "
                f"says {level}"
            )
        handle.SetNoiseScaleDeg(1)
        handle.SetScalingFactor(scale)
        return handle

    def _cipher(self, handle: Any, level: int, scale: float, components: int = 2) -> OpenFHECipher:
        return OpenFHECipher(self._shown(handle, level, scale), level, scale, components)

    def _switched(self, handle: Any, cipher: OpenFHECipher, step: int = 0) -> OpenFHECipher:
        """The result of a key switch of a ciphertext, of a rotation by `step`."""
        found = self._cipher(handle, cipher.level, cipher.scale)
        self._rounding.correct(found.handle, found.level, step)
        return found

    def _total(self, total: _Sum, level: int, scale: float, components: int) -> OpenFHECipher:
        """The sum as a ciphertext of so many components."""
        if total.handle is None:
            return self._zero(level, scale, components)
        if total.handle.NumberCiphertextElements() < components:
            total.take(self._zero(level, scale, components).handle, 1)
        return self._cipher(total.handle, level, scale, components)

    def _zero(self, level: int, scale: float, components: int) -> OpenFHECipher:
        """A fresh encryption of zero, which looks like any other ciphertext."""
        handle = self._blank(level, components)
        return self._cipher(handle, level, scale, components)

    def _blank(self, level: int, components: int) -> Any:
        if self._public is None:
            raise BackendError("this machine holds no public key: load the keys first")
        above = self.params.levels - level
        zeros = np.zeros(self.slots)
        plain = self._cc.MakeCKKSPackedPlaintext(zeros, 1, above, None, self.slots)
        handle = self._cc.Encrypt(self._public, plain)
        return handle if components == 2 else self._cc.EvalMultNoRelin(handle, handle)


class _Sum:
    """A running sum of ciphertexts at one level and scale.

    Attributes:
      handle: the sum; None before the first term, and of terms that all have factor 0.
    """

    def __init__(self, cc: Any):
        self._cc = cc
        self.handle: Any = None

    def take(self, handle: Any, factor: int) -> None:
        """Add factor · handle, which belongs to the sum from now on."""
        if factor not in (1, -1):
            self.add(handle, factor)
        elif self.handle is None:
            self.handle = handle if factor == 1 else self._cc.EvalNegate(handle)
        elif factor == 1:
            self._cc.EvalAddInPlace(self.handle, handle)
        else:
            self._cc.EvalSubInPlace(self.handle, handle)

    def add(self, handle: Any, factor: int) -> None:
        """Add factor · handle; `handle` stays as it is."""
        if factor == 0:
            return
        if abs(factor) != 1:
            self.take(self._cc.EvalMultNoCheck(handle, abs(factor)), 1 if factor > 0 else -1)
        elif self.handle is None:
            self.take(handle.Clone(), factor)
        else:
            self.take(handle, factor)


def _trusted_keys_only() -> BackendError:
    return BackendError(
        "OpenFHE reads key files with a parser that trusts them, so those of another owner are not "
        "taken: use backend='pyfhel' between two owners"
    )
