"""A machine on Pyfhel 3.5 (Microsoft SEAL 4.1), with its own level and scale tracking.

What Pyfhel leaves to its caller and this file takes care of: `mod_level` is not trusted; every call
that works in place gets a copy; a missing rotation key is an error instead of a silent default key
set; NaN, infinite and too large values are refused; where the ciphertexts of a sum cancel, what is
left of it (zero, or public values that were added) is hidden by a fresh encryption of zero instead
of being "transparent"; plaintexts are encoded at the level of use, by a context that has only the
primes left; scalars need no encoder at all.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import shutil
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from Pyfhel import PyCtxt, Pyfhel, PyPtxt

from he_backend.errors import BackendError, BlobError, CircuitError, EncodeError
from he_backend.machines.cache import ByteCache
from he_backend.machines.pyfhel import key_bytes, residues
from he_backend.machines.pyfhel.seal_bytes import SealBytes
from hesim.circuit.costs.memory import KEPT_PLAINTEXTS
from hesim.circuit.plain import checks
from hesim.circuit.plain.slots import check_level_and_scale, missing_key
from hesim.params import CKKSParams

__all__ = ["PyfhelCipher", "PyfhelMachine", "PyfhelPlain"]

_ENCODER_BYTES = 1 << 29
_TABLE_BYTES_PER_COEFFICIENT = 96


@dataclass(frozen=True, eq=False)
class PyfhelCipher:
    """A SEAL ciphertext with the level, exact scale and components that we track ourselves."""

    handle: Any
    level: int
    scale: float
    components: int = 2


@dataclass(frozen=True, eq=False)
class PyfhelPlain:
    """An encoded plaintext; an all-zero one has no handle."""

    handle: Any
    level: int
    scale: float
    zero: bool
    nbytes: int


class PyfhelMachine:
    """The machine; see `he_backend.machines.protocol.Machine` for the methods.

    Args:
      params: ring and primes; every SEAL object is checked against them.
      slots: values to a vector; default params.slots.
      cache_bytes: memory for encoded plaintexts.

    Keys come from `generate` (all of them, in this process) or `load_evaluation_keys` and
    `load_secret_key`. Without a secret key `decrypt` raises.
    """

    name = "pyfhel"
    encrypts = True

    def __init__(
        self, params: CKKSParams, slots: int | None = None, cache_bytes: int = KEPT_PLAINTEXTS
    ):
        self.params = params
        self.slots = slots or params.slots
        self.rotation_steps: frozenset[int] = frozenset()
        self._has_relin = False
        self._has_secret = False
        self._he = _context(params, params.moduli)
        self._encoders: dict[int, Any] = {params.levels: self._he}
        self._encoder_room = _ENCODER_BYTES
        self._cache: ByteCache[PyfhelPlain] = ByteCache(cache_bytes)
        self._bytes = self._read_identities()

    # Keys

    @classmethod
    def generate(
        cls, params: CKKSParams, rotation_steps: Iterable[int] = (), slots: int | None = None
    ) -> PyfhelMachine:
        """A machine with fresh keys of every kind, the secret one included: for the key holder."""
        machine = cls(params, slots)
        steps = sorted({int(s) for s in rotation_steps} - {0})
        if any(not 0 < s < params.slots for s in steps):
            raise CircuitError(f"rotation steps {steps} are not between 1 and {params.slots - 1}")
        machine._he.keyGen()
        machine._he.relinKeyGen()
        if steps:
            machine._he.rotateKeyGen(rot_steps=steps)
        machine.rotation_steps = frozenset(steps)
        machine._has_relin = machine._has_secret = True
        return machine

    def save_keys(self, public: Path, relin: Path, rotation: Path, secret: Path) -> None:
        """Write the four key files, uncompressed. The caller sees to modes and folders."""
        self._he.save_public_key(str(public), "none")
        self._he.save_relin_key(str(relin), "none")
        if self.rotation_steps:
            self._he.save_rotate_key(str(rotation), "none")
        self._he.save_secret_key(str(secret), "none")

    @classmethod
    def make_keys(
        cls, params: CKKSParams, rotation_steps: Iterable[int], server: Path, client: Path
    ) -> None:
        """Write fresh keys: all but the secret one to the server's folder, that and the public one
        to the client's. Raises OSError, of which SEAL says nothing but that there was one.
        """
        machine = cls.generate(params, rotation_steps)
        public, relin, rotation = (server / f"{k}.key" for k in ("public", "relin", "rotation"))
        paths = (public, relin, rotation, client / "secret.key")
        try:
            machine.save_keys(*paths)
        except RuntimeError as error:
            begun = [path for path in paths if path.exists()] or [public]
            raise OSError(errno.EIO, str(error), str(begun[-1])) from error
        shutil.copyfile(public, client / "public.key")

    @classmethod
    def key_sizes(cls, params: CKKSParams, rotation_steps: Iterable[int]) -> dict[str, int]:
        """Bytes of each key file in the server's folder, by its name."""
        return key_bytes.key_sizes(params, rotation_steps)

    @classmethod
    def check_keys(cls, params: CKKSParams, rotation_steps: Iterable[int], server: Path) -> None:
        """Raise BlobError unless the server's key files are what SEAL writes for these steps."""
        key_bytes.check_keys(params, rotation_steps, server)

    @classmethod
    def key_holder(cls, params: CKKSParams, slots: int, client: Path) -> PyfhelMachine:
        """A machine with the keys that encrypt and decrypt. It encodes nothing twice."""
        machine = cls(params, slots, cache_bytes=0)
        machine.load_public_key(client / "public.key")
        machine.load_secret_key(client / "secret.key")
        return machine

    @classmethod
    def evaluator(
        cls,
        params: CKKSParams,
        slots: int,
        levels: Iterable[int] = (),
    ) -> PyfhelMachine:
        """A machine without keys, its encoders for `levels` made."""
        machine = cls(params, slots)
        machine.prepare_encoders(levels)
        return machine

    def load_keys(self, server: Path, rotation_steps: Iterable[int]) -> None:
        """Load all keys but the secret one. Raises BlobError if SEAL finds one malformed."""
        self.load_public_key(server / "public.key")
        self.load_evaluation_keys(server / "relin.key", server / "rotation.key", rotation_steps)

    def load_public_key(self, public: Path) -> None:
        """Load the key that encrypts. Raises BlobError if SEAL finds it malformed."""
        with _as_blob_error(public):
            self._he.load_public_key(str(public))

    def load_evaluation_keys(self, relin: Path, rotation: Path, steps: Iterable[int]) -> None:
        """Load relinearization and rotation keys. Raises BlobError if SEAL finds them malformed."""
        with _as_blob_error(relin):
            self._he.load_relin_key(str(relin))
        self._has_relin = True
        self.rotation_steps = frozenset(int(s) for s in steps)
        if self.rotation_steps:
            with _as_blob_error(rotation):
                self._he.load_rotate_key(str(rotation))

    def load_secret_key(self, secret: Path) -> None:
        """Load the secret key: the client only."""
        with _as_blob_error(secret):
            self._he.load_secret_key(str(secret))
        self._has_secret = True

    # Encoding and encryption

    def encode(self, values: np.ndarray | float, level: int, scale: float) -> PyfhelPlain:
        array = checks.checked_values(self.params, self.slots, values, level, scale)
        if array.ndim == 0:
            integer = round(float(array) * scale)
            key = (integer, level, scale)
            return self._cache.get(key, lambda: _sized(self._scalar(integer, level, scale)))
        if not array.any():
            return PyfhelPlain(None, level, scale, True, 0)
        digest = hashlib.blake2b(array.tobytes(), digest_size=16).digest()
        return self._cache.get(
            (digest, level, scale), lambda: _sized(self._vector(array, level, scale))
        )

    def encrypt(self, values: np.ndarray | float, level: int, scale: float) -> PyfhelCipher:
        array = checks.checked_values(self.params, self.slots, values, level, scale)
        vector = np.broadcast_to(array, (self.slots,))
        handle = self._encode_handle(vector, level, scale)
        return PyfhelCipher(self._he.encryptPtxt(handle), level, scale)

    def decrypt(self, cipher: PyfhelCipher) -> np.ndarray:
        if not self._has_secret:
            raise BackendError("this machine holds no secret key: only the client decrypts")
        return np.array(self._he.decryptFrac(cipher.handle))[: self.slots]

    # Arithmetic

    def add(self, ciphers: Sequence[PyfhelCipher], factors: Sequence[int]) -> PyfhelCipher:
        level = checks.same_level(ciphers)
        scale = ciphers[0].scale
        total = _Sum(self._he, scale)
        for cipher, factor in zip(ciphers, factors, strict=True):
            checks.same_scale(scale, cipher.scale)
            total.add(cipher.handle, int(factor))
        return self._total(total, level, scale, max(c.components for c in ciphers))

    def add_plain(self, cipher: PyfhelCipher, plain: PyfhelPlain) -> PyfhelCipher:
        level = checks.same_level((cipher, plain))
        checks.same_scale(cipher.scale, plain.scale)
        handle = PyCtxt(copy_ctxt=cipher.handle)
        if not plain.zero:
            handle.set_scale(plain.handle.scale)
            self._he.add_plain(handle, plain.handle)
        return PyfhelCipher(handle, level, cipher.scale, cipher.components)

    def dot(
        self, left: Sequence[PyfhelCipher], right: Sequence[PyfhelCipher], factors: Sequence[int]
    ) -> PyfhelCipher:
        level = checks.same_level((*left, *right))
        scale = checks.product_fits(self.params, level, left[0].scale, right[0].scale)
        sums = {f: _Sum(self._he, scale) for f in sorted({abs(int(f)) for f in factors})}
        for a, b, factor in zip(left, right, factors, strict=True):
            checks.components_are(a, (2,), "a product")
            checks.components_are(b, (2,), "a product")
            checks.same_scale(scale, a.scale * b.scale)
            if a.handle is b.handle:
                product = self._he.square(a.handle, in_new_ctxt=True)
            else:
                product = self._he.multiply(a.handle, b.handle, in_new_ctxt=True)
            sums[abs(int(factor))].take(product, negative=factor < 0)
        total = sums.pop(1, None) or _Sum(self._he, scale)
        for factor, part in sums.items():
            total.add(self._total(part, level, scale, 3).handle, factor)
        return self._total(total, level, scale, 3)

    def dot_plain(
        self, ciphers: Sequence[PyfhelCipher], plains: Iterable[PyfhelPlain]
    ) -> PyfhelCipher:
        level, total, scale = checks.same_level(ciphers), None, 0.0
        for cipher, plain in zip(ciphers, plains, strict=True):
            checks.same_level((cipher, plain))
            if total is None:
                scale = checks.product_fits(self.params, level, cipher.scale, plain.scale)
                total = _Sum(self._he, scale)
            checks.same_scale(scale, cipher.scale * plain.scale)
            if not plain.zero:
                product = self._he.multiply_plain(cipher.handle, plain.handle, in_new_ctxt=True)
                total.take(product)
        assert total is not None, "an instruction has at least one term"
        return self._total(total, level, scale, max(c.components for c in ciphers))

    def dot_scalars(
        self, ciphers: Sequence[PyfhelCipher], rows: np.ndarray, scale: float
    ) -> list[PyfhelCipher]:
        level = checks.same_level(ciphers)
        components = max(c.components for c in ciphers)
        product = checks.product_fits(self.params, level, ciphers[0].scale, scale)
        for cipher in ciphers:
            checks.same_scale(ciphers[0].scale, cipher.scale)
            checks.components_are(cipher, (components,), "one sum")
        for value in (float(np.max(rows, initial=0.0)), float(np.min(rows, initial=0.0))):
            checks.checked_values(self.params, self.slots, value, level, scale)
        integers = np.rint(np.asarray(rows, dtype=np.float64) * scale)

        def column(component: int, prime: int) -> np.ndarray:
            blobs = (c.handle.to_bytes() for c in ciphers)
            read = (self._bytes.residues(b, components, level)[component, prime] for b in blobs)
            return np.stack([each.copy() for each in read])

        primes = self.params.primes[: level + 1]
        shape = (components, self.params.n)
        sums = residues.linear_combinations(column, shape, integers, primes)[::-1]
        results = []
        while sums:
            summed = sums.pop()  # its memory is free when the ciphertext is there
            handle = self._load(self._bytes.cipher(summed, level, product))
            total = _Sum(self._he, product)
            total.take(handle, bare=not summed[1:].any())
            results.append(self._total(total, level, product, components))
        return results

    def rotate(self, cipher: PyfhelCipher, step: int) -> PyfhelCipher:
        checks.components_are(cipher, (2,), "a rotation")
        step %= self.slots
        if step == 0:
            return cipher
        if step not in self.rotation_steps:
            raise missing_key(step, self.rotation_steps)
        handle = self._he.rotate(cipher.handle, step, in_new_ctxt=True)
        return PyfhelCipher(handle, cipher.level, cipher.scale)

    def relinearize(self, cipher: PyfhelCipher) -> PyfhelCipher:
        checks.components_are(cipher, (2, 3), "relinearization")
        if cipher.components == 2:
            return cipher
        if not self._has_relin:
            raise BackendError("no relinearization key was loaded; load the evaluation keys first")
        handle = PyCtxt(copy_ctxt=cipher.handle)
        self._he.relinearize(handle)
        return PyfhelCipher(handle, cipher.level, cipher.scale)

    def rescale(self, cipher: PyfhelCipher) -> PyfhelCipher:
        if cipher.level == 0:
            raise CircuitError("no level is left to rescale; refresh, or take more levels")
        handle = PyCtxt(copy_ctxt=cipher.handle)
        self._he.rescale_to_next(handle)
        level, scale = cipher.level - 1, cipher.scale / self.params.primes[cipher.level]
        checks.fits_level(self.params, level, scale)
        return PyfhelCipher(handle, level, scale, cipher.components)

    def drop(self, cipher: PyfhelCipher, level: int) -> PyfhelCipher:
        if not 0 <= level <= cipher.level:
            raise CircuitError(f"cannot drop from level {cipher.level} to level {level}")
        checks.fits_level(self.params, level, cipher.scale)
        handle = PyCtxt(copy_ctxt=cipher.handle)
        for _ in range(cipher.level - level):
            self._he.mod_switch_to_next_ctxt(handle)
        return PyfhelCipher(PyCtxt(copy_ctxt=handle), level, cipher.scale, cipher.components)

    def set_exact_scale(self, cipher: PyfhelCipher, level: int, scale: float) -> PyfhelCipher:
        check_level_and_scale(cipher, level, scale)
        if cipher.handle.scale != scale:
            cipher.handle.set_scale(scale)
        return PyfhelCipher(cipher.handle, level, scale, cipher.components)

    # Bytes

    def to_bytes(self, cipher: PyfhelCipher) -> bytes:
        return cipher.handle.to_bytes()

    def from_bytes(
        self, blob: bytes, level: int, scale: float, components: int = 2
    ) -> PyfhelCipher:
        self.check_bytes(blob, level, scale, components)
        handle = self._load(blob)
        handle.set_scale(scale)
        return PyfhelCipher(handle, level, scale, components)

    def check_bytes(self, blob: bytes, level: int, scale: float, components: int = 2) -> None:
        checks.fits_level(self.params, level, scale)
        self._bytes.check(blob, level, scale, components)

    def cipher_size(self, components: int, level: int) -> int:
        return self._bytes.cipher_size(components, level)

    # Inside

    def _load(self, blob: bytes) -> Any:
        try:
            return PyCtxt(pyfhel=self._he, bytestring=blob)
        except (RuntimeError, ValueError) as error:
            raise BlobError(f"SEAL refuses the ciphertext: {error}") from error

    def _total(self, total: _Sum, level: int, scale: float, components: int) -> PyfhelCipher:
        """The sum as a ciphertext of so many components that hides what it holds."""
        if total.bare or total.handle.size() < components:
            total.take(self._zero(level, scale, components).handle)
        return PyfhelCipher(total.handle, level, scale, components)

    def _zero(self, level: int, scale: float, components: int) -> PyfhelCipher:
        """A fresh encryption of zero, which looks like any other ciphertext."""
        if components == 2:
            zero = self._plaintext(self._bytes.scalar(0, level, scale))
            return PyfhelCipher(self._he.encryptPtxt(zero), level, scale)
        root = math.sqrt(scale)
        handle = self._zero(level, root, 2).handle
        self._he.multiply(handle, self._zero(level, root, 2).handle)
        handle.set_scale(scale)
        return PyfhelCipher(handle, level, scale, 3)

    def _scalar(self, integer: int, level: int, scale: float) -> PyfhelPlain:
        if integer == 0:
            return PyfhelPlain(None, level, scale, True, 64)
        handle = self._plaintext(self._bytes.scalar(integer, level, scale))
        return PyfhelPlain(handle, level, scale, False, self.params.plaintext_bytes(level))

    def _plaintext(self, blob: bytes) -> Any:
        handle = PyPtxt(pyfhel=self._he)
        handle.from_bytes(blob, scheme="ckks")
        return handle

    def _vector(self, array: np.ndarray, level: int, scale: float) -> PyfhelPlain:
        handle = self._encode_handle(array, level, scale)
        zero = bool(handle.is_zero())
        return PyfhelPlain(handle, level, scale, zero, self.params.plaintext_bytes(level))

    def _encode_handle(self, array: np.ndarray, level: int, scale: float) -> Any:
        full = np.array(checks.tile(array, self.slots, self.params.slots))
        try:
            return self._encode_above(full, level, level, scale)
        except ValueError as error:
            # SEAL wants a bit of room more than is needed; the checks have seen that nothing wraps.
            if level == self.params.levels:
                raise EncodeError(f"SEAL refuses the values: {error}") from error
        return self._encode_above(full, level + 1, level, scale)

    def _encode_above(self, full: np.ndarray, above: int, level: int, scale: float) -> Any:
        encoder, drops = self._encoder(above)
        handle = encoder.encodeFrac(full, scale=scale)
        drops += above - level
        for _ in range(drops):
            encoder.mod_switch_to_next_ptxt(handle, in_new_ptxt=False)
        return PyPtxt(copy_ptxt=handle) if drops else handle

    def _encoder(self, level: int) -> tuple[Any, int]:
        """A context whose top has the primes of `level` or of a level above, and the drops to do.

        A context over q_0 .. q_level and the special prime has the same parameter identity at its
        top as the big one has at `level`. It holds NTT tables for every level below, so only as
        many as fit a fixed room are made.
        """
        if level not in self._encoders:
            tables = (level + 2) * (level + 3) // 2
            cost = tables * self.params.n * _TABLE_BYTES_PER_COEFFICIENT
            if cost <= self._encoder_room:
                self._encoder_room -= cost
                moduli = (*self.params.primes[: level + 1], self.params.special)
                self._encoders[level] = _context(self.params, moduli, checked=False)
        above = min(held for held in self._encoders if held >= level)
        return self._encoders[above], above - level

    def prepare_encoders(self, levels: Iterable[int]) -> None:
        """Make the encoding contexts of `levels` now, so that processes forked later share them."""
        for level in sorted(set(levels)):
            self._encoder(level)

    def _read_identities(self) -> SealBytes:
        handle = self._he.encodeFrac(np.ones(1), scale=2.0**20)
        identities = []
        version = (0, 0)
        for level in range(self.params.levels, -1, -1):
            identity, version = SealBytes.plain_identity(handle.to_bytes())
            identities.append(identity)
            if level:
                self._he.mod_switch_to_next_ptxt(handle, in_new_ptxt=False)
        return SealBytes(self.params, identities[::-1], version)


class _Sum:
    """A running sum of ciphertexts that keeps no temporaries and survives cancelling.

    Attributes:
      handle: the sum; None before the first term.
      bare: whether all components but the first are zero, so that anybody can read the values.
    """

    def __init__(self, he: Any, scale: float):
        self._he = he
        self._scale = scale
        self.handle: Any = None
        self.bare = True

    def take(self, handle: Any, negative: bool = False, bare: bool = False) -> None:
        """Add or subtract `handle`, which belongs to the sum from now on."""
        handle.set_scale(self._scale)
        if self.handle is None:
            self.handle = self._he.negate(handle) if negative else handle
            self.bare = bare
        else:
            self._accumulate(handle, negative)

    def add(self, handle: Any, factor: int) -> None:
        """Add factor · handle by doubling and adding; `handle` stays as it is."""
        if factor == 0:
            return
        power = PyCtxt(copy_ctxt=handle)
        left = abs(factor)
        while left:
            if left & 1:
                self.take(PyCtxt(copy_ctxt=power), negative=factor < 0)
            left >>= 1
            if left:
                self._he.add(power, PyCtxt(copy_ctxt=power))

    def _accumulate(self, handle: Any, negative: bool) -> None:
        """In place. SEAL refuses a transparent result, but only after it has computed it (the last
        lines of `Evaluator::add_inplace` and `sub_inplace`): values that were added in the clear
        are still in it when the ciphertexts have cancelled.
        """
        try:
            (self._he.sub if negative else self._he.add)(self.handle, handle)
            self.bare = False
        except RuntimeError as error:
            if "transparent" not in str(error):
                raise
            self.bare = True


def _sized(plain: PyfhelPlain) -> tuple[PyfhelPlain, int]:
    return plain, plain.nbytes


def _context(params: CKKSParams, moduli: Sequence[int], checked: bool = True) -> Any:
    if params.digits is not None:
        raise BackendError(
            f"SEAL switches keys with one special prime, a digit a prime: leave out digits="
            f"{params.digits}, or run on a machine that has digits"
        )
    he = Pyfhel()
    secure = checked and params.security is not None and params.seal_checks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status = he.contextGen(
            scheme="ckks",
            n=params.n,
            scale=2.0**params.scale_bits,
            qi=[int(q) for q in moduli],
            sec=128 if secure else 0,
        )
    text = status.decode() if isinstance(status, bytes) else str(status)
    if not text.startswith("success"):
        raise BackendError(f"SEAL refuses the parameters: {text}")
    return he


@contextlib.contextmanager
def _as_blob_error(path: Path):
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        raise BlobError(f"the key file {path.name} is malformed: {error}") from error
