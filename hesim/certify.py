"""`certify`: errors of all ciphertext operations of a Circuit, beside the message, key by key.

A ciphertext decrypts to m + e0 + e1·S (+ e2·S² with three components) in each slot, S the secret in
the canonical embedding. Every operation maps that sum to itself: a product gives
m_a·E_b + m_b·E_a + E_a·E_b, a rotation moves E with the message, a relinearization keeps it. So the
sum E is what is carried, its real part, in float64, for all keys at once; new errors are drawn
given S, with variance (N/2)·(v0 + v1·|S|²) for coefficient variances v0 and v1. Left out: the
product of two imaginary parts, smaller than E by a factor of E itself.

Key switching follows the library's digits. With digits in [0, q) the mean of a digit polynomial,
(q/2)·Σ X^k, is q / (1 - ζ) in the slot of root ζ, against the key's own errors: large in the few
slots near ζ = 1, and the same whenever the same key is used, so those errors add up in amplitude.

Imports no JAX.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hesim.certificates import Certificate, Left, OpCertificate, Record
from hesim.circuit.circuit import Circuit, Kind
from hesim.circuit.scalar_groups import numbers, scalar_groups
from hesim.errors import (
    ArgumentError,
    ParameterError,
    TraceError,
    ValueOverflowError,
    ValueOverflowWarning,
)
from hesim.noise import embedding, formulas
from hesim.noise.bootstrap import BootstrapLaw, law
from hesim.noise.cancelled import hiding_noise
from hesim.noise.formulas import Noise
from hesim.noise.normals import Normals
from hesim.noise.profiles import NoiseProfile, refreshed_by
from hesim.noise.profiles import profile as find_profile
from hesim.params import larger_capacity

if TYPE_CHECKING:
    from jaxtyping import Complex, Float, PyTree

    from hesim.program import Program

__all__ = ["RELINEARIZATION", "Certificate", "OpCertificate", "certify"]

RELINEARIZATION = -1
"""Stands for the relinearization key where rotation keys go by their steps."""


def certify(
    circuit: Circuit,
    args: Sequence[PyTree] | None = None,
    *,
    inputs: Sequence[Float[np.ndarray, "..."]] | None = None,
    operands: Sequence[Float[np.ndarray, "..."]] | None = None,
    keys: int = 8,
    secrets: Complex[np.ndarray, "keys slots"] | None = None,
    switches: Mapping[int, Complex[np.ndarray, "keys slots"]] | None = None,
    profile: str | NoiseProfile = "seal",
    seed: int = 0,
    among: Collection[int] | None = None,
    program: Program | None = None,
    after: Certificate | None = None,
    decrypted: bool = False,
) -> Certificate:
    """Runs a Circuit on plain vectors and carries the errors of an encrypted run beside them.

    Of a Circuit with carried ciphertexts (`hesim.compile(carried=)`), run after run: what one run
    leaves has errors of its own, and the next starts from them, under the same keys.

    Args:
      circuit: from ``hesim.compile``, or loaded.
      args: arguments of the traced function; of a loaded Circuit, together with `program`.
      inputs, operands: instead of `args`, the encrypted leaves and the public operands.
      keys: secret keys to sample.
      secrets: complex (keys, params.slots), embeddings S of given keys instead.
      switches: for given keys, by rotation step (or `RELINEARIZATION`), the embedding of the error
        in the switching key of the first digit, complex (keys, params.slots); drawn where absent.
      profile: the library whose noise is added.
      seed: of all draws.
      among: ciphertexts whose elements count in what is said of operations, as where a run decrypts
        only some of each; all by default.
      after: of the run before, on this Circuit: its keys and what it has handed on are taken, and
        not `keys`, `secrets`, `switches`, nor what `args` or `inputs` have in its place.
      decrypted: whether `args` or `inputs` have what the carried ciphertexts decrypt to, and errors
        are to be those of this run alone: nothing is encrypted in their place then, and they have
        no errors but, beside the first copy of the effective slots, those that `after` says.

    Raises:
      ValueOverflowError: a message wraps around the modulus of its level.
      TraceError: not a Circuit, or arguments of another structure or shape. ParameterError: keys
        below 1, encrypted arguments that are not finite, neither `args` nor `inputs` and
        `operands`, another program, or secrets or switches of another shape. ArgumentError: `after`
        is of a Circuit that carries nothing, or of another; `decrypted`, and nothing is carried.

    Examples:
      >>> import hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> x = np.linspace(-1, 1, 64)
      >>> circuit = hesim.compile(hesim.trace(lambda x: x * x, x), params)
      >>> found = hesim.certify(circuit, (x,), keys=2)
      >>> 1e-8 < found.outputs[0].std < 1e-4, found.keys
      (True, 2)
    """
    started = time.perf_counter()
    if not isinstance(circuit, Circuit):
        raise TraceError(
            f"certify takes a Circuit, not a {type(circuit).__name__}: circuit = "
            "hesim.compile(program, params)."
        )
    if keys < 1:
        raise ParameterError(f"keys={keys} must be at least 1")
    if program is not None:
        from hesim.circuit.publics import bound

        circuit = bound(circuit, program)
    if args is not None and circuit.program is not None:
        flat = circuit.program.finite(args)
        encrypted = [v.encrypted for v in circuit.program.inputs]
        inputs = [np.asarray(x, np.float64) for x, e in zip(flat, encrypted) if e]
        operands = circuit.publics.evaluate(flat)
    if inputs is None or operands is None:
        raise ParameterError(
            "give args of a Circuit compiled in this process, or program=, or both inputs and "
            "operands"
        )
    library = refreshed_by(find_profile(profile), circuit.error_law)
    before = None if after is None else _left(after, circuit)
    if decrypted and not circuit.carried:
        raise ArgumentError(
            "decrypted=True is for a Circuit that carries ciphertexts, not this one"
        )
    walk = _Walk(circuit, inputs, operands, library, keys, secrets, seed, among, before, decrypted)
    walk.given = {step: walk.checked(e, "switches") for step, e in (switches or {}).items()}
    walk.run()
    walk.warn_of_range()
    names = list(zip(circuit.op_names, circuit.op_sources, strict=True))
    ops = [OpCertificate(n, s, -1, math.nan, math.inf, math.nan, ()) for n, s in names]
    for tap, record in zip(circuit.taps, walk.records, strict=False):
        if tap.op >= 0:
            ops[tap.op] = record.certificate(*names[tap.op])
    rest = iter(walk.records[len(circuit.taps) :])
    added = walk.profile.decryption_variance
    outputs = tuple(
        None if tap is None else next(rest).certificate("output", str(k), added)
        for k, tap in enumerate(circuit.outputs)
    )
    elapsed = time.perf_counter() - started
    return Certificate(tuple(ops), outputs, walk.keys, elapsed, walk.spare_bits, walk.left())


def _left(after: Certificate, circuit: Circuit) -> Left:
    """What the run before has handed on, or an ArgumentError."""
    if not isinstance(after, Certificate):
        raise ArgumentError(f"after= takes the Certificate of the run before, not {after!r:.60}")
    if after.left is None:
        raise ArgumentError(
            "after= is the certificate of a Circuit that carries nothing from run to run: compile "
            "it with carried={argument: result}"
        )
    shape = len(after.left.weight), circuit.params.slots
    fits = after.left.weight.shape == shape
    if not fits or set(after.left.ciphers) != {i for _, i in circuit.carried}:
        raise ArgumentError("after= is the certificate of a run of another Circuit than this one")
    return after.left


class _Walk:
    """Messages float64 (effective slots) and errors float64 (keys, slots) by ciphertext."""

    def __init__(
        self,
        circuit: Circuit,
        inputs: Sequence[Float[np.ndarray, "..."]],
        operands: Sequence[Float[np.ndarray, "..."]],
        profile: NoiseProfile,
        keys: int,
        secrets: Complex[np.ndarray, "keys slots"] | None,
        seed: int,
        among: Collection[int] | None,
        before: Left | None = None,
        decrypted: bool = False,
    ):
        self.circuit: Circuit = circuit
        self.inputs, self.operands, self.profile = inputs, operands, profile
        self.params = circuit.params
        self.runs = 0 if before is None else before.runs
        self.rng = np.random.default_rng([seed, self.runs] if self.runs else seed)
        n = self.params.n
        self.given: dict[int, np.ndarray] = {}
        self.copies = self.params.slots // circuit.slots
        self.switches: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
        #: What all bootstraps under a key have in common, drawn at the first.
        self.common: np.ndarray | None = None
        if before is None:
            self.weight = self._weight(keys, secrets)
        else:
            self.weight, self.switches = before.weight, dict(before.switches)
            self.common = before.common
        self.keys = len(self.weight)
        self.before = {} if before is None else before.ciphers
        self.decrypted = frozenset(i for _, i in circuit.carried) if decrypted else frozenset()
        self.handed: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.handing: dict[int, list[int]] = {}
        for cipher, i in circuit.carried:
            self.handing.setdefault(cipher, []).append(i)
        self.others: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.messages: dict[int, np.ndarray] = {}
        self.errors: dict[int, np.ndarray] = {}
        self.roundings: dict[Noise, np.ndarray] = {}
        self.spare_bits: dict[int, float] = {}
        #: The largest message that is refreshed, and by which instruction.
        self.refreshed = (0.0, -1)
        some = None if among is None else frozenset(among)
        self.records = [Record(circuit, tap, self.keys, some) for tap in circuit.taps]
        self.records += [Record(circuit, t, self.keys) for t in circuit.outputs if t is not None]
        self.watchers: dict[int, list[Record]] = {}
        for record in self.records:
            for cipher in record.columns:
                self.watchers.setdefault(cipher, []).append(record)
        powers = embedding.roots(n, profile.generator)
        self.pole = 1.0 / (1.0 - np.exp(1j * np.pi * powers / n))
        self.normals = Normals(self.rng, self.weight.size)
        self.groups = scalar_groups(circuit, range(len(circuit)))
        self.products: dict[int, np.ndarray] = {}
        self.hidden = hiding_noise(circuit, profile)

    def _weight(self, keys: int, secrets: Any) -> Float[np.ndarray, "keys slots"]:
        """|S|^2 of the secrets given, or of so many that are drawn."""
        if secrets is None:
            size = math.sqrt(formulas.secret_norm(self.params.n, self.profile) / 2.0)
            shape = (keys, self.params.slots)
            secrets = self.rng.normal(0, size, shape) + 1j * self.rng.normal(0, size, shape)
        self.keys = len(secrets)
        return np.abs(self.checked(secrets, "secrets")) ** 2

    def left(self) -> Left | None:
        """What the next run goes on from; None if nothing is carried."""
        if not self.circuit.carried:
            return None
        return Left(self.runs + 1, self.weight, self.switches, self.handed, self.common)

    def checked(self, embeddings: Any, name: str) -> Complex[np.ndarray, "keys slots"]:
        """One embedding per key, or an ArgumentError."""
        array = np.asarray(embeddings)
        if array.shape != (self.keys, self.params.slots):
            raise ArgumentError(
                f"{name} have shape {array.shape}, not (keys, slots) = "
                f"({self.keys}, {self.params.slots}): one complex embedding per key"
            )
        return array

    def run(self) -> None:
        c = self.circuit
        ends: dict[int, list[int]] = {}
        for cipher, i in enumerate(c.last_uses.tolist()):
            ends.setdefault(max(i, cipher), []).append(cipher)
        for i in range(len(c)):
            self._step(i)
            self._note_size(i)
            for record in self.watchers.get(i, ()):
                record.add(i, self._transformed(i, self.errors[i]))
            for place in self.handing.get(i, ()):
                self.handed[place] = self.messages[i], self.errors[i]
            for cipher in ends.get(i, ()):
                del self.messages[cipher], self.errors[cipher]

    def warn_of_range(self) -> None:
        """Says so if a refresh is given more than it is made for."""
        refresher, (largest, i) = self.circuit.refresher, self.refreshed
        if i >= 0 and largest > refresher.value_range:
            warnings.warn(
                f"{self.circuit.describe(i)}: the {refresher.name} refreshes slots of up to "
                f"{largest:.4g} and is made for {refresher.value_range:g}: its error is not known "
                f"there. Scale the values down, or give the range that it really has",
                ValueOverflowWarning,
                stacklevel=3,
            )

    def _step(self, i: int) -> None:
        c, part = self.circuit, self.circuit.args(i)
        kind, level, scale = int(c.kind[i]), int(c.level[i]), float(c.scale[i])
        arg = c.arg[part].tolist()
        m, e = self.messages, self.errors
        if i in self.before and i not in self.decrypted:
            m[i], e[i] = self.before[i]
        elif kind == Kind.INPUT:
            number, row = c.input_rows[int(c.param[i])]
            m[i] = np.broadcast_to(c.inputs[number].vector(row, self.inputs), (c.slots,))
            if i in self.decrypted:
                e[i] = self._beside_the_first(i)
            else:
                e[i] = self._drawn(formulas.fresh(self.params.n, self.profile), scale)
            e[i] = self._transformed(i, e[i])
        elif kind == Kind.ADD:
            factors = c.factor[part].astype(float).tolist()
            m[i] = _sum(f * m[a] for f, a in zip(factors, arg))
            e[i] = _sum(f * e[a] for f, a in zip(factors, arg))
        elif kind == Kind.DOT:
            self._dot(i, arg, c.arg2[part].tolist(), c.factor[part].astype(float).tolist())
        elif kind == Kind.DOT_PLAIN:
            self._dot_plain(i, arg, c.arg2[part].tolist())
        elif kind == Kind.ADD_PLAIN:
            vector, std, exact = self._plain(int(c.arg2[part][0]))
            m[i] = m[arg[0]] + vector
            e[i] = e[arg[0]] + (exact if std == 0.0 else self._shared(std))
        elif kind == Kind.ROTATE:
            step = int(c.param[i])
            m[i] = np.roll(m[arg[0]], -step)
            e[i] = self._switch(step % c.slots, level, scale)
            step %= self.params.slots
            e[i][:, : self.params.slots - step] += e[arg[0]][:, step:]
            e[i][:, self.params.slots - step :] += e[arg[0]][:, :step]
        elif kind == Kind.RELINEARIZE:
            m[i] = m[arg[0]]
            e[i] = self._switch(RELINEARIZATION, level, scale)
            e[i] += e[arg[0]]
        elif kind == Kind.RESCALE:
            m[i] = m[arg[0]]
            e[i] = self._rounded(scale, int(c.components[i]))
            e[i] += e[arg[0]]
        elif kind == Kind.DROP:
            m[i], e[i] = m[arg[0]], e[arg[0]]
        elif kind == Kind.REFRESH:
            m[i], e[i] = m[arg[0]], self._refreshed(arg[0], scale)
            self.refreshed = max(self.refreshed, (float(np.max(np.abs(m[i]))), i))
        if i in self.hidden:
            e[i] = e[i] + self._drawn(self.hidden[i], scale)

    def _beside_the_first(self, i: int) -> np.ndarray:
        """What the copies of a carried ciphertext's slots differ from the first, which is read."""
        if i not in self.before:
            return np.zeros((self.keys, self.params.slots))
        errors = self.before[i][1]
        return errors - self._full(errors[:, : self.circuit.slots])

    def _dot(self, i: int, left: list[int], right: list[int], factors: list[float]) -> None:
        m, e = self.messages, self.errors
        total, error = np.zeros(self.circuit.slots), np.zeros((self.keys, self.params.slots))
        for a, b, f in zip(left, right, factors):
            total += f * m[a] * m[b]
            if a == b:
                error += f * (2.0 * self._full(m[a]) + e[a]) * e[a]
            else:
                error += f * (self._full(m[a]) * e[b] + (self._full(m[b]) + e[b]) * e[a])
        m[i], e[i] = total, error

    def _dot_plain(self, i: int, ciphers: list[int], plains: list[int]) -> None:
        m, e = self.messages, self.errors
        if i in self.groups and i not in self.products:
            self._multiply_group(self.groups[i], ciphers)
        grouped = self.products.pop(i, None)
        total, rounded = np.zeros(self.circuit.slots), np.zeros(self.circuit.slots)
        error = np.zeros((self.keys, self.params.slots)) if grouped is None else grouped
        part = np.empty_like(error)
        exact: Any = 0.0
        for a, p in zip(ciphers, plains):
            vector, std, shift = self._plain(p)
            total += m[a] * vector
            if grouped is None:
                error += np.multiply(e[a], self._full(vector), out=part)
            if std:
                rounded += (std * m[a]) ** 2
            elif shift:
                exact = exact + shift * m[a]
        if np.any(rounded):
            # The encoding errors of plaintexts are the same whatever the key.
            error += self._shared(np.sqrt(rounded))
        if np.ndim(exact):
            error += self._full(exact)
        m[i], e[i] = total, error

    def _multiply_group(self, group: list[int], ciphers: list[int]) -> None:
        """Errors of all sums of one list of ciphertexts by numbers: a matrix product."""
        rows = numbers(self.circuit, group, self.operands)
        products = np.empty((len(group), self.keys, self.params.slots))
        for key in range(self.keys):
            stacked = np.stack([self.errors[a][key] for a in ciphers])
            np.matmul(rows, stacked, out=products[:, key])
        self.products.update(zip(group, products, strict=True))

    def _plain(self, p: int) -> tuple[Any, float, float]:
        """A plaintext: its values, the std of its encoding error, or that error if a number."""
        c = self.circuit
        vector = c.packs[int(c.plain_pack[p])].vector(int(c.plain_row[p]), self.operands)
        scale = float(c.plain_scale[p])
        if isinstance(vector, float):
            return vector, 0.0, round(vector * scale) / scale - vector
        # A vector that repeats every `slots` slots has 2·slots coefficients that are not zero.
        rounded = math.sqrt(2 * c.slots * self.profile.rounding_variance) / scale
        rms = math.sqrt(float(np.mean(vector**2)))
        bent = formulas.float_std(rms, self.params.n, self.profile)
        return vector, math.hypot(rounded, bent), 0.0

    def _full(self, vector: Any) -> Any:
        """A vector of effective slots over all slots."""
        return np.tile(vector, self.copies) if np.ndim(vector) and self.copies > 1 else vector

    def _shared(self, std: Any) -> np.ndarray:
        """An error that is the same for all keys, and in all copies of the slots."""
        return self._full(std * self.normals.take(self.circuit.slots))

    def _normal(self, std: Any) -> np.ndarray:
        """float32 (keys, slots): normal numbers of this std."""
        return self.normals.take(self.keys, self.params.slots) * std

    def _drawn(self, noise: Noise, scale: float) -> np.ndarray:
        """An error of these coefficient variances given the keys."""
        if noise not in self.roundings:
            variance = noise.direct + noise.keyed * self.weight
            std = np.sqrt(0.5 * self.params.n * variance)
            self.roundings[noise] = std.astype(np.float32)
        return np.multiply(self._normal(self.roundings[noise]), 1.0 / scale, dtype=np.float64)

    def _transformed(self, cipher: int, errors: np.ndarray, times: int = 1) -> np.ndarray:
        """With the error of floating point in encoding or decoding this ciphertext's message, if it
        is not far below what the rounding of one component against the key adds.
        """
        message, n = self.messages[cipher], self.params.n
        std = formulas.float_std(math.sqrt(float(np.mean(message**2)) * times), n, self.profile)
        rounding = formulas.slot_std(formulas.rescale(self.profile), n, self.profile)
        if std * float(self.circuit.scale[cipher]) < 0.01 * rounding:
            return errors
        return errors + self._shared(std)

    def _refreshed(self, cipher: int, scale: float) -> np.ndarray:
        """After a refresh: by the profile's bootstrap, or by the key holder, who decrypts the
        first copy of the slots and encrypts it in all of them.
        """
        if self.profile.bootstrap is None:
            fresh = self._drawn(formulas.fresh(self.params.n, self.profile), scale)
            first = self._full(self.errors[cipher][:, : self.circuit.slots])
            return first + self._transformed(cipher, fresh, 2)
        chosen = law(self.profile.bootstrap)
        own, common = (chosen.std * math.sqrt(s) for s in (1.0 - chosen.common, chosen.common))
        error = self._normal(np.float32(own)).astype(np.float64)
        if common:
            if self.common is None:
                self.common = self._normal(np.float32(common))
            error += self.common
        if chosen.sine_bits is not None:
            x = self._full(self.messages[cipher]) + self.errors[cipher]
            error += self._bent(x, chosen)
        failed = self.rng.random(self.keys) < 2.0**chosen.log2_failure
        if np.any(failed):
            error[failed] = self._normal(np.float32(1.0))[failed]
        return self.errors[cipher] + error

    def _bent(self, x: np.ndarray, chosen: BootstrapLaw) -> np.ndarray:
        """What the sine of a bootstrap adds to these slots."""
        if chosen.on_slots:
            return chosen.deviation(x)
        # It acts on what CoeffsToSlots brings up: coefficients, in units of the values.
        generator = self.profile.generator
        bent = chosen.deviation(embedding.coefficients(x, generator))
        return embedding.slots(bent, generator)

    def _rounded(self, scale: float, components: int) -> np.ndarray:
        if components == 2:
            return self._drawn(formulas.rescale(self.profile), scale)
        weight = 1.0 + self.weight + self.weight**2
        size = np.sqrt(0.5 * self.params.n * self.profile.rounding_variance * weight)
        return self._normal(size) / scale

    def _switch(self, step: int, level: int, scale: float) -> np.ndarray:
        """The error of a key switch: the first digit's with the error of its key, which is the same
        in every use; the other, smaller digits' and the rounding's together.
        """
        profile = self.profile
        if formulas.digit_size(self.params, profile) > 1 or profile.centred_digits:
            return self._drawn(formulas.key_switch(self.params, level, profile), scale)
        if step not in self.switches:
            self.switches[step] = self._first_digit(step)
        if level not in self.others:
            self.others[level] = self._other_digits(level)
        mean, spread = self.switches[step]
        variance, std = self.others[level]
        error = self._normal(std if spread is None else np.sqrt(variance + spread))
        error += mean
        return np.multiply(error, 1.0 / scale, dtype=np.float64)

    def _first_digit(self, step: int) -> tuple[np.ndarray, np.ndarray | None]:
        """float32 (keys, slots): mean of d·e / P over digits d given the key's error e, and its
        variance; None where that is under a thousandth of a rounding's, which counts it then.
        """
        n, unit = self.params.n, self._key_error()
        first = self.params.primes[0] / self.params.special
        if step in self.given:
            real, imaginary = np.real(self.given[step]), np.imag(self.given[step])
        else:
            std = math.sqrt(unit / 2)
            real, imaginary = (
                self.rng.standard_normal(self.weight.shape, np.float32) * np.float32(std)
                for _ in range(2)
            )
        mean = first * (real * self.pole.real - imaginary * self.pole.imag)
        if self._first_is_small():
            return mean.astype(np.float32), None
        spread = (real**2 + imaginary**2) * (first**2 * n / 24)
        return mean.astype(np.float32), spread.astype(np.float32)

    def _other_digits(self, level: int) -> tuple[np.ndarray, np.ndarray]:
        """float32 (keys, slots): variance of the rounding and of all digits but the first (the
        first too where it is small), and its square root.
        """
        n, unit = self.params.n, self._key_error()
        ratios = [(q / self.params.special) ** 2 for q in self.params.primes[: level + 1]]
        variance = 0.5 * n * self.profile.rounding_variance * (1.0 + self.weight)
        variance += unit * math.fsum(ratios[1:]) * (np.abs(self.pole) ** 2 + n / 12) / 2
        if self._first_is_small():
            variance += unit * ratios[0] * n / 24
        return variance.astype(np.float32), np.sqrt(variance).astype(np.float32)

    def _key_error(self) -> float:
        """Mean square of the embedding of a switching key's error."""
        return self.params.n * self.profile.error_variance

    def _first_is_small(self) -> bool:
        ratio = (self.params.primes[0] / self.params.special) ** 2
        rounding = formulas.secret_norm(self.params.n, self.profile)
        rounding *= self.profile.rounding_variance
        return self._key_error() * ratio / 12.0 < 1e-3 * rounding

    def _note_size(self, i: int) -> None:
        """Keeps the least room at each level; a message that wraps around is an error."""
        level, scale = int(self.circuit.level[i]), float(self.circuit.scale[i])
        message = self.messages[i]
        largest = float(np.mean(np.abs(message)))  # no coefficient of it is larger
        if not largest:
            return
        room = self.params.log_q(level) - 1.0 - math.log2(scale)
        if math.log2(largest) >= room:
            full = np.broadcast_to(self._full(message), (self.params.slots,))
            exact = embedding.coefficients(full, self.profile.generator)
            largest = float(np.max(np.abs(exact)))
        spare = room - math.log2(largest)
        if spare <= 0.0:
            raise ValueOverflowError(
                f"{self.circuit.describe(i)}: a message of up to {np.max(np.abs(message)):.4g} in "
                f"its slots wraps around the modulus at level {level} and scale "
                f"2^{math.log2(scale):.1f} by {-spare:.1f} bits: "
                f"{larger_capacity(self.params, -spare, level, scale)}"
            )
        self.spare_bits[level] = min(spare, self.spare_bits.get(level, math.inf))


def _sum(terms: Any) -> np.ndarray:
    total: Any = None
    for term in terms:
        total = np.array(term) if total is None else np.add(total, term, out=total)
    return total
