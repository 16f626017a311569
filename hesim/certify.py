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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hesim import noise as formulas
from hesim.bootstrap import law
from hesim.circuit.circuit import Circuit, Kind
from hesim.noise import Noise
from hesim.profiles import NoiseProfile
from hesim.profiles import profile as find_profile

__all__ = ["Certificate", "OpCertificate", "certify"]

_RELINEARIZATION = -1
_SAMPLE = 4096
_WORST = 5


@dataclass(frozen=True)
class OpCertificate:
    """Errors of one operation's result, over its elements and over keys.

    Attributes:
      name, source, level: of the operation; level of its result, -1 if it has no ciphertext.
      std: root mean square error in units of the values; NaN if it has no ciphertext.
      standard_error: of `std`, from its spread over keys, relative; infinite for one key.
      q999: 99.9 % quantile of absolute errors.
      worst: slots with the largest errors over keys and ciphertexts, as (slot, std).
    """

    name: str
    source: str
    level: int
    std: float
    standard_error: float
    q999: float
    worst: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Certificate:
    """What a Circuit's run is predicted to be wrong by.

    Attributes:
      ops: one per operation of the Circuit, cumulative: errors from all causes before it.
      outputs: one per result leaf, None where it is public; with what decryption adds.
      keys: secret keys sampled. seconds: wall time of the whole.
      spare_bits: by level, log2 of half the modulus over the largest |message|·scale of any
        ciphertext there, intermediate ones included; negative where a run wraps around.
    """

    ops: tuple[OpCertificate, ...]
    outputs: tuple[OpCertificate | None, ...]
    keys: int
    seconds: float
    spare_bits: dict[int, float]

    def table(self) -> str:
        """Operations with their errors, as text."""
        lines = [f"{'operation':<20} {'level':>5} {'log2 std':>9} {'log2 q999':>9}  source"]
        for op in self.ops:
            if op.level >= 0:
                bits = (f"{math.log2(x):9.2f}" if x > 0 else f"{'-':>9}" for x in (op.std, op.q999))
                lines.append(f"{op.name:<20} {op.level:>5} {' '.join(bits)}  {op.source}")
        return "\n".join(lines)

    __str__ = table


def certify(
    circuit: Circuit,
    args: Sequence[Any] | None = None,
    *,
    inputs: Sequence[np.ndarray] | None = None,
    operands: Sequence[np.ndarray] | None = None,
    keys: int = 8,
    secrets: np.ndarray | None = None,
    profile: str | NoiseProfile = "seal",
    seed: int = 0,
) -> Certificate:
    """Runs a Circuit on plain vectors and carries the errors of an encrypted run beside them.

    Args:
      circuit: from ``hesim.compile``, or loaded.
      args: arguments of the traced function; needs a Circuit that still has its Program.
      inputs, operands: instead of `args`, the encrypted leaves and the public operands.
      keys: secret keys to sample.
      secrets: complex (keys, params.slots), embeddings S of given keys instead.
      profile: the library whose noise is added.
      seed: of all draws.

    Raises:
      ValueError: neither `args` nor `inputs` and `operands`, or secrets of another shape.
    """
    started = time.perf_counter()
    if args is not None and circuit.program is not None:
        flat = circuit.program.flatten(args)
        encrypted = [v.encrypted for v in circuit.program.inputs]
        inputs = [np.asarray(x, np.float64) for x, e in zip(flat, encrypted) if e]
        operands = circuit.publics.evaluate(flat)
    if inputs is None or operands is None:
        raise ValueError(
            "give args of a Circuit compiled in this process, or both inputs and operands"
        )
    walk = _Walk(circuit, inputs, operands, find_profile(profile), keys, secrets, seed)
    walk.run()
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
    return Certificate(
        tuple(ops), outputs, walk.keys, time.perf_counter() - started, walk.spare_bits
    )


class _Walk:
    """Messages float64 (effective slots) and errors float64 (keys, slots) by ciphertext."""

    def __init__(self, circuit, inputs, operands, profile, keys, secrets, seed):
        self.circuit: Circuit = circuit
        self.inputs, self.operands, self.profile = inputs, operands, profile
        self.params = circuit.params
        self.rng = np.random.default_rng(seed)
        n = self.params.n
        if secrets is None:
            size = math.sqrt(formulas.secret_norm(n, profile) / 2.0)
            shape = (keys, self.params.slots)
            secrets = self.rng.normal(0, size, shape) + 1j * self.rng.normal(0, size, shape)
        secrets = np.asarray(secrets)
        if secrets.ndim != 2 or secrets.shape[1] != self.params.slots:
            raise ValueError(
                f"secrets have shape {secrets.shape}, not (keys, {self.params.slots}): one complex "
                f"embedding per key"
            )
        self.keys = len(secrets)
        self.weight = np.abs(secrets) ** 2
        self.copies = self.params.slots // circuit.slots
        self.switches: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.messages: dict[int, np.ndarray] = {}
        self.errors: dict[int, np.ndarray] = {}
        self.components = np.full(len(circuit), 2, np.int8)
        self.roundings: dict[Noise, np.ndarray] = {}
        self.spare_bits: dict[int, float] = {}
        taps = [*circuit.taps, *(t for t in circuit.outputs if t is not None)]
        self.records = [_Record(circuit, tap, self.keys) for tap in taps]
        self.watchers: dict[int, list[_Record]] = {}
        for record in self.records:
            for cipher in record.tap.ciphers:
                self.watchers.setdefault(int(cipher), []).append(record)
        # (1 - ζ_j)^-1 for the root of slot j, ζ_j = exp(iπ g^j / N) with the library's generator g.
        powers = np.empty(self.params.slots, np.int64)
        power = 1
        for j in range(self.params.slots):
            powers[j] = power
            power = power * profile.generator % (2 * n)
        self.pole = 1.0 / (1.0 - np.exp(1j * np.pi * powers / n))

    def run(self) -> None:
        c = self.circuit
        last = np.full(len(c), -1, np.int64)
        for i in range(len(c)):
            part = c.args(i)
            last[c.arg[part]] = i
            if c.kind[i] == Kind.DOT:
                last[c.arg2[part]] = i
        ends: dict[int, list[int]] = {}
        for cipher, i in enumerate(last.tolist()):
            ends.setdefault(max(i, cipher), []).append(cipher)
        for i in range(len(c)):
            self._step(i)
            self._note_size(i)
            for record in self.watchers.get(i, ()):
                record.add(i, self.errors[i])
            for cipher in ends.get(i, ()):
                del self.messages[cipher], self.errors[cipher]

    def _step(self, i: int) -> None:
        c, part = self.circuit, self.circuit.args(i)
        kind, level, scale = int(c.kind[i]), int(c.level[i]), float(c.scale[i])
        arg = c.arg[part].tolist()
        m, e = self.messages, self.errors
        if arg:
            self.components[i] = self.components[arg].max()
        if kind == Kind.INPUT:
            number, row = c.input_rows[int(c.param[i])]
            m[i] = np.broadcast_to(c.inputs[number].vector(row, self.inputs), (c.slots,))
            e[i] = self._drawn(formulas.fresh(self.params.n, self.profile), scale)
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
            e[i] = e[arg[0]] + (exact if std == 0.0 else std * self._shared())
        elif kind == Kind.ROTATE:
            step = int(c.param[i])
            m[i] = np.roll(m[arg[0]], -step)
            e[i] = np.roll(e[arg[0]], -step, axis=1) + self._switch(step % c.slots, level, scale)
        elif kind == Kind.RELINEARIZE:
            m[i] = m[arg[0]]
            e[i] = e[arg[0]] + self._switch(_RELINEARIZATION, level, scale)
            self.components[i] = 2
        elif kind == Kind.RESCALE:
            m[i] = m[arg[0]]
            e[i] = e[arg[0]] + self._rounded(scale, int(self.components[i]))
        elif kind == Kind.DROP:
            m[i], e[i] = m[arg[0]], e[arg[0]]
        elif kind == Kind.REFRESH:
            m[i], e[i] = m[arg[0]], e[arg[0]] + self._refreshed(arg[0], scale)
            self.components[i] = 2

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
        self.components[i] = 3

    def _dot_plain(self, i: int, ciphers: list[int], plains: list[int]) -> None:
        m, e = self.messages, self.errors
        total, error = np.zeros(self.circuit.slots), np.zeros((self.keys, self.params.slots))
        rounded = np.zeros(self.circuit.slots)
        exact: Any = 0.0
        for a, p in zip(ciphers, plains):
            vector, std, shift = self._plain(p)
            total += m[a] * vector
            error += self._full(vector) * e[a]
            if std:
                rounded += (std * m[a]) ** 2
            elif shift:
                exact = exact + shift * m[a]
        if np.any(rounded):
            # The encoding errors of plaintexts are the same whatever the key.
            error += self._full(np.sqrt(rounded)) * self._shared()
        m[i], e[i] = total, error + self._full(exact)

    def _plain(self, p: int) -> tuple[Any, float, float]:
        """A plaintext: its values, the std of its encoding error, or that error if a number."""
        c = self.circuit
        vector = c.packs[int(c.plain_pack[p])].vector(int(c.plain_row[p]), self.operands)
        scale = float(c.plain_scale[p])
        if isinstance(vector, float):
            return vector, 0.0, round(vector * scale) / scale - vector
        return vector, math.sqrt(self.params.n / 2 * self.profile.rounding_variance) / scale, 0.0

    def _full(self, vector: Any) -> Any:
        """A vector of effective slots over all slots."""
        return np.tile(vector, self.copies) if np.ndim(vector) and self.copies > 1 else vector

    def _shared(self) -> np.ndarray:
        """Normal numbers that are the same for all keys, and in all copies of the slots."""
        return self._full(self.rng.standard_normal(self.circuit.slots))

    def _normal(self) -> np.ndarray:
        return self.rng.standard_normal((self.keys, self.params.slots), dtype=np.float32)

    def _drawn(self, noise: Noise, scale: float) -> np.ndarray:
        """An error of these coefficient variances given the keys."""
        if noise not in self.roundings:
            variance = noise.direct + noise.keyed * self.weight
            self.roundings[noise] = np.sqrt(0.5 * self.params.n * variance)
        return self.roundings[noise] * self._normal() / scale

    def _refreshed(self, cipher: int, scale: float) -> np.ndarray:
        """What a refresh adds: a new encryption by the key holder, or the profile's bootstrap."""
        if self.profile.bootstrap is None:
            return self._drawn(formulas.fresh(self.params.n, self.profile), scale)
        chosen = law(self.profile.bootstrap)
        x = self._full(self.messages[cipher]) + self.errors[cipher]
        failed = self.rng.random((self.keys, 1)) < 2.0**chosen.log2_failure
        return chosen.deviation(x) + np.where(failed, 1.0, chosen.std) * self._normal()

    def _rounded(self, scale: float, components: int) -> np.ndarray:
        if components == 2:
            return self._drawn(formulas.rescale(self.profile), scale)
        weight = 1.0 + self.weight + self.weight**2
        size = np.sqrt(0.5 * self.params.n * self.profile.rounding_variance * weight)
        return size * self._normal() / scale

    def _switch(self, step: int, level: int, scale: float) -> np.ndarray:
        """The error of a key switch: the first digit's with the error of its key, which is the same
        in every use; the other, smaller digits' and the rounding's together.
        """
        params, n = self.params, self.params.n
        if self.profile.digit_size(params.levels + 1) > 1 or self.profile.centred_digits:
            return self._drawn(formulas.key_switch(params, level, self.profile), scale)
        first = params.primes[0] / params.special
        rest = math.fsum((q / params.special) ** 2 for q in params.primes[1 : level + 1])
        unit = n * self.profile.error_variance
        if step not in self.switches:
            shape = (self.keys, params.slots)
            real, imaginary = (self.rng.normal(0, math.sqrt(unit / 2), shape) for _ in range(2))
            mean = real * self.pole.real - imaginary * self.pole.imag
            self.switches[step] = (
                (mean * first).astype(np.float32),
                ((real**2 + imaginary**2) * first**2 * n / 24).astype(np.float32),
            )
        mean, spread = self.switches[step]
        others = unit * rest * (np.abs(self.pole) ** 2 + n / 12) / 2
        rounding = 0.5 * n * self.profile.rounding_variance * (1.0 + self.weight)
        return (mean + np.sqrt(spread + others + rounding) * self._normal()) / scale

    def _note_size(self, i: int) -> None:
        level = int(self.circuit.level[i])
        largest = float(np.max(np.abs(self.messages[i]), initial=0.0))
        if largest:
            room = self.params.log_q(level) - 1.0
            spare = room - math.log2(largest * float(self.circuit.scale[i]))
            self.spare_bits[level] = min(spare, self.spare_bits.get(level, math.inf))


class _Record:
    """Errors of one tensor, gathered ciphertext by ciphertext."""

    def __init__(self, circuit: Circuit, tap: Any, keys: int):
        self.tap = tap
        self.members = tap.batch if tap.batch_axis >= 0 else 1
        self.level = int(circuit.level[tap.ciphers].min()) if len(tap.ciphers) else -1
        self.squares = np.zeros(keys)
        self.by_slot = np.zeros(circuit.slots)
        self.count = tap.cipher.size * self.members
        self.sample: list[np.ndarray] = []
        order = np.argsort(tap.cipher, kind="stable")
        names, starts = np.unique(tap.cipher[order], return_index=True)
        columns = np.split(tap.column[order], starts[1:])
        self.columns = {int(c): k for c, k in zip(names, columns) if c >= 0}
        self.stride = max(1, self.count // _SAMPLE) | 1

    def add(self, cipher: int, errors: np.ndarray) -> None:
        tap, columns = self.tap, self.columns[cipher]
        grid = errors[:, : len(self.by_slot)].reshape(len(errors), -1, tap.width)
        found = grid[:, columns, : self.members].reshape(len(errors), -1) * tap.gain
        self.squares += np.einsum("ks,ks->k", found, found)
        slots = (columns[:, None] * tap.width + np.arange(self.members)).reshape(-1)
        np.add.at(self.by_slot, slots, np.mean(found**2, axis=0))
        self.sample.append(np.abs(found[:, :: self.stride]).reshape(-1))

    def certificate(self, name: str, source: str, added: float = 0.0) -> OpCertificate:
        """`added`: variance of independent noise, as a multiple of the error's own."""
        if self.level < 0:
            return OpCertificate(name, source, -1, math.nan, math.inf, math.nan, ())
        wider = math.sqrt(1.0 + added)
        each = self.squares / max(self.count, 1)
        mean, keys = float(each.mean()), len(each)
        spread = math.inf
        if keys > 1:
            spread = float(each.std(ddof=1)) / (2 * mean * math.sqrt(keys)) if mean else 0.0
        uses = np.zeros(len(self.by_slot))
        for columns in self.columns.values():
            slots = (columns[:, None] * self.tap.width + np.arange(self.members)).reshape(-1)
            np.add.at(uses, slots, 1.0)
        by_slot = np.sqrt(self.by_slot / np.maximum(uses, 1.0))
        worst = np.argsort(by_slot)[::-1][:_WORST]
        return OpCertificate(
            name,
            source,
            self.level,
            wider * math.sqrt(mean),
            spread,
            wider * float(np.quantile(np.concatenate(self.sample), 0.999, method="higher")),
            tuple((int(s), wider * float(by_slot[s])) for s in worst if by_slot[s] > 0),
        )


def _sum(terms: Any) -> np.ndarray:
    total: Any = None
    for term in terms:
        total = np.array(term) if total is None else np.add(total, term, out=total)
    return total
