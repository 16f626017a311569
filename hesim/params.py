"""CKKS parameters: ring, prime chain, exact canonical scales, and the security check.

Levels count the rescales left: a ciphertext at level ``l`` has the ``l + 1`` data primes
``q_0 .. q_l``. The canonical scale is ``2**scale_bits`` at the top level and
``scale(l - 1) = scale(l)**2 / q_l`` below, so a product of two ciphertexts at level ``l`` (or of
one and a plaintext encoded at ``scale(l)``) lands exactly on ``scale(l - 1)`` after its rescale.
Primes taken in descending order, as libraries usually do, let that scale drift by bits over a long
chain; here each prime is the unused one that brings the next scale nearest to ``2**scale_bits``.

Nothing here imports JAX or NumPy.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import islice
from typing import Any

from hesim.errors import ParameterError

__all__ = [
    "SCALE_TOLERANCE_BITS",
    "SEAL_LIMITS",
    "SECURITY_LIMITS",
    "SPECIAL_BITS",
    "CKKSParams",
    "InsecureParametersWarning",
    "larger_capacity",
    "largest_levels",
    "smallest_ring",
    "special_count",
]

#: Largest log2(Q·P) for a uniform ternary secret and error std 3.2, classical attacks, by security
#: and log2 N. Security Guidelines for Implementing Homomorphic Encryption, 2024 (ePrint 2024/463).
SECURITY_LIMITS: dict[int, dict[int, int]] = {
    128: {10: 26, 11: 53, 12: 106, 13: 214, 14: 430, 15: 868, 16: 1747, 17: 3523},
    192: {10: 19, 11: 37, 12: 75, 13: 152, 14: 305, 15: 611, 16: 1199, 17: 2411},
    256: {10: 14, 11: 29, 12: 58, 13: 118, 14: 237, 15: 476, 16: 929, 17: 1866},
}

#: What SEAL itself enforces for 128 bits (Homomorphic Encryption Standard, 2018): none above 2^15.
SEAL_LIMITS: dict[int, int] = {10: 27, 11: 54, 12: 109, 13: 218, 14: 438, 15: 881}

#: Largest distance, in bits, of a canonical scale from 2**scale_bits.
SCALE_TOLERANCE_BITS = 0.02

_Shape = tuple[int, int, int, int, int, "int | None", "int | None"]
"""log_n, levels, scale_bits, first_bits, special_bits, digits and continues."""

_MAX_PRIME_BITS = 60
SPECIAL_BITS = 60
"""Size of each prime of P where there are `digits`."""

_MIN_PRIME_BITS = 20


class InsecureParametersWarning(UserWarning):
    """The security check was switched off with ``security=None``."""


@dataclass(frozen=True)
class CKKSParams:
    """A ring, a chain of real NTT primes, and what follows from them.

    Args:
      log_n: log2 of the ring degree N, 4 to 17. N/2 slots.
      levels: rescales that a fresh ciphertext can undergo, at least 0. ``levels + 1`` data primes.
      scale_bits: log2 of the scale at the top level, in bits; also the size of ``q_1 .. q_levels``.
      first_bits: size of ``q_0`` in bits; ``first_bits - scale_bits - 1`` bits are left for values
        at level 0.
      special_bits: size in bits of the key-switching prime, the largest. Ten bits above
        ``first_bits`` make a rotation two bits quieter in SEAL than equal sizes do.
      security: 128, 192 or 256 (classical bits), or None, which skips the check with a warning.
      digits: in how many digits key switching takes a ciphertext apart, at least 2 and at most one
        a prime; there are as many primes of 60 bits to switch with as the largest digit and four
        bits need. Then the canonical scale at the top is the top prime. So OpenFHE has it. None for
        SEAL's way: a digit a prime, and one special prime.
      continues: a level below the top. The primes up to it are those of the chain that ends there:
        so a bootstrap works on a longer chain than the ciphertexts that it is given. None for a
        chain of its own; needs digits.

    Raises:
      ParameterError: no such primes exist, or the chain is too long for the ring at that security.

    Examples:
      >>> import hesim
      >>> params = hesim.CKKSParams(
      ...     log_n=14, levels=7, scale_bits=40, first_bits=50, special_bits=60
      ... )
      >>> params.slots, len(params.primes), round(params.log_qp), params.key_bytes()
      (8192, 8, 390, 18874368)
      >>> hesim.CKKSParams(log_n=14, levels=9, scale_bits=40, first_bits=50, special_bits=60)
      Traceback (most recent call last):
          ...
      hesim.errors.ParameterError: log2(QP) = 470.0 bits (special prime included) is above ...
    """

    log_n: int
    levels: int
    scale_bits: int
    first_bits: int
    special_bits: int
    security: int | None = 128
    digits: int | None = None
    continues: int | None = None

    def __post_init__(self) -> None:
        _check_sizes(self)
        chain = _chain(self._shape)
        if self.security is None:
            warnings.warn(_insecure_message(self), InsecureParametersWarning, stacklevel=3)
        elif not _secure(chain, self.log_n, self.security):
            raise ParameterError(_refusal(self))

    @property
    def _shape(self) -> _Shape:
        return (
            *(self.log_n, self.levels, self.scale_bits, self.first_bits, self.special_bits),
            *(self.digits, self.continues),
        )

    @property
    def fields(self) -> dict[str, Any]:
        """The arguments that make these parameters, as plain data; those that have a default, where
        they are given.
        """
        late = ("digits", "continues")
        names = [f.name for f in fields(self)]
        found = {name: getattr(self, name) for name in names}
        return {n: x for n, x in found.items() if n not in late or x is not None}

    @property
    def n(self) -> int:
        """Ring degree N."""
        return 1 << self.log_n

    @property
    def slots(self) -> int:
        """Real values to a ciphertext, N/2."""
        return self.n // 2

    @property
    def primes(self) -> tuple[int, ...]:
        """Data primes ``q_0 .. q_levels``, first prime first."""
        return _chain(self._shape)[: self.levels + 1]

    @property
    def special(self) -> int:
        """The key-switching modulus P: one prime, or a product of several if there are `digits`."""
        return math.prod(_chain(self._shape)[self.levels + 1 :])

    @property
    def moduli(self) -> tuple[int, ...]:
        """All primes in SEAL's order: ``q_0 .. q_levels``, then those of P."""
        return _chain(self._shape)

    @property
    def log_qp(self) -> float:
        """log2 of the product of all primes, the special one included: security depends on it."""
        return _log2_product(self.moduli)

    @property
    def seal_checks(self) -> bool:
        """Whether SEAL's own 128-bit table accepts these primes; if not, switch its check off."""
        return math.prod(self.moduli).bit_length() <= SEAL_LIMITS.get(self.log_n, 0)

    def log_q(self, level: int) -> float:
        """log2 of the modulus ``q_0 · … · q_level`` of a ciphertext at ``level``."""
        return _log2_product(self.primes[: self._level(level) + 1])

    def scale(self, level: int) -> float:
        """The exact canonical scale at ``level`` (message coefficients are values times this)."""
        return _scales(self._shape)[self._level(level)]

    def capacity(self, level: int) -> float:
        """Largest absolute value in any slot that cannot wrap at ``level``: Q / (2·scale).

        A coefficient is at most the largest slot times the scale, and equal to it for a constant
        vector, which is the worst case; a vector of mixed signs has room for more.
        """
        return 2.0 ** (self.log_q(level) - 1 - math.log2(self.scale(level)))

    def key_bytes(self, count: int = 1) -> int:
        """Bytes of ``count`` rotation or relinearization keys: 16·N·k·d each, k moduli, d
        digits.
        """
        k = len(self.moduli)
        return count * 16 * self.n * k * (self.digits or self.levels + 1)

    @property
    def digit_primes(self) -> int:
        """Data primes in a digit of key switching, the last one's fewer perhaps."""
        return 1 if self.digits is None else -(-(self.levels + 1) // self.digits)

    def ciphertext_bytes(self, level: int, components: int = 2) -> int:
        """Bytes of the residues of a ciphertext at ``level``; headers come on top."""
        return 8 * components * self.n * (self._level(level) + 1)

    def plaintext_bytes(self, level: int) -> int:
        """Bytes of the residues of a plaintext encoded at ``level``."""
        return self.ciphertext_bytes(level, components=1)

    def _level(self, level: int) -> int:
        if not 0 <= level <= self.levels:
            raise ParameterError(
                f"level {level} does not exist: these parameters have levels 0 to {self.levels}; "
                f"raise `levels` or refresh earlier"
            )
        return level


def largest_levels(
    log_n: int,
    scale_bits: int,
    first_bits: int,
    special_bits: int,
    security: int = 128,
    digits: int | None = None,
    continues: int | None = None,
) -> int:
    """The largest ``levels`` that is secure in this ring, -1 if not even the two end primes fit."""
    room = _limit(log_n, security) - first_bits - special_bits
    for levels in range(room // scale_bits + 1, (continues or 0) - 1, -1):
        if levels * scale_bits > room + 1:
            continue
        try:
            chain = _chain((log_n, levels, scale_bits, first_bits, special_bits, digits, continues))
        except ParameterError:
            continue
        if _secure(chain, log_n, security):
            return levels
    return -1


def smallest_ring(
    levels: int,
    scale_bits: int,
    first_bits: int,
    special_bits: int,
    security: int = 128,
    digits: int | None = None,
    continues: int | None = None,
) -> int | None:
    """log2 of the smallest ring degree that is secure with these primes, or None if none is."""
    for log_n in sorted(SECURITY_LIMITS[security]):
        try:
            chain = _chain((log_n, levels, scale_bits, first_bits, special_bits, digits, continues))
        except ParameterError:
            continue
        if _secure(chain, log_n, security):
            return log_n
    return None


_PLANNED = "hesim.compile(program, params, calibration=hesim.calibrate(program, [args]))"


def larger_capacity(params: CKKSParams, bits: float, level: int, scale: float) -> str:
    """What makes room for ``bits`` more bits in values at this level and scale, for errors: changes
    of the parameters that exist and are as secure, higher levels if there are, and smaller values.

    Examples:
      >>> import hesim
      >>> params = hesim.CKKSParams(14, 0, 40, 50, 60)
      >>> larger_capacity(params, 4.5, level=0, scale=params.scale(0))
      'take first_bits=56, or scale_bits=34, or scale the values down'
    """
    log_n, levels, scale_bits, first_bits, special_bits, digits, continues = params._shape
    rest = digits, continues
    more = math.ceil(bits) + 1
    first, found = first_bits + more, []
    for special in sorted({max(first, special_bits), min(special_bits + more, _MAX_PRIME_BITS)}):
        if _exists((log_n, levels, scale_bits, first, special, *rest), params.security):
            also = f" with special_bits={special}" if special != special_bits else ""
            found.append(f"first_bits={first}{also}")
            break
    smaller = scale_bits - more
    # A smaller scale takes as many bits from each prime: values gain where there are fewer of them.
    if round(math.log2(scale) / scale_bits) > level and _exists(
        (log_n, levels, smaller, first_bits, special_bits, *rest), params.security
    ):
        found.append(f"scale_bits={smaller}")
    higher = params.log_q(levels) - scale_bits - params.log_q(level) + math.log2(scale)
    planned = f"; or plan at levels that hold them, by {_PLANNED}" if higher > bits + 1.0 else ""
    if found:
        return f"take {', or '.join(found)}, or scale the values down{planned}"
    return (
        "scale the values down: no larger first_bits or smaller scale_bits makes that much room"
        + planned
    )


def _exists(shape: _Shape, security: int | None) -> bool:
    """Whether there are such parameters."""
    log_n, _, *sizes, _, _ = shape
    low = max(_MIN_PRIME_BITS, log_n + 2)
    if not low <= sizes[0] <= sizes[1] <= sizes[2] <= _MAX_PRIME_BITS:
        return False
    try:
        chain = _chain(shape)
    except ParameterError:
        return False
    return security is None or _secure(chain, log_n, security)


def _limit(log_n: int, security: int) -> int:
    return SECURITY_LIMITS[security].get(log_n, 0)


def _secure(chain: tuple[int, ...], log_n: int, security: int) -> bool:
    """The table is in whole bits, so primes a hundredth of a bit over (just above 2^b) pass."""
    return round(_log2_product(chain), 2) <= _limit(log_n, security)


def _log2_product(chain: tuple[int, ...]) -> float:
    return math.fsum(math.log2(q) for q in chain)


def _check_sizes(p: CKKSParams) -> None:
    def whole(name: str, low: int, high: int, why: str) -> None:
        value = getattr(p, name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ParameterError(
                f"{name}={value!r} must be a whole number from {low} to {high}: {why}"
            )

    whole("log_n", 4, 17, "the ring degree is 2**log_n, and SEAL stops at 2**17")
    whole("levels", 0, 254, "SEAL holds at most 256 primes")
    sizes = f"NTT primes are 1 modulo 2N and at most {_MAX_PRIME_BITS} bits in SEAL"
    low = max(_MIN_PRIME_BITS, p.log_n + 2)
    for name in ("scale_bits", "first_bits", "special_bits"):
        whole(name, low, _MAX_PRIME_BITS, sizes)
    if p.security is not None and p.security not in SECURITY_LIMITS:
        raise ParameterError(
            f"security={p.security!r} must be 128, 192, 256, or None to skip the check"
        )
    if p.digits is not None:
        whole("digits", 2, p.levels + 1, "a digit of key switching has a prime at least")
        if (p.digits - 1) * -(-(p.levels + 1) // p.digits) > p.levels:
            raise ParameterError(
                f"the {p.levels + 1} data primes do not make {p.digits} digits of one size: take "
                f"digits={-(-(p.levels + 1) // -(-(p.levels + 1) // p.digits))}"
            )
        if p.special_bits != SPECIAL_BITS:
            raise ParameterError(
                f"special_bits={p.special_bits}: the primes that digits are switched with have "
                f"{SPECIAL_BITS} bits"
            )
    if p.continues is not None:
        whole("continues", 1, p.levels - 1, "a chain that is continued ends below the top")
        if p.digits is None:
            raise ParameterError(f"continues={p.continues} needs digits: give digits=4 or so")
    if p.first_bits <= p.scale_bits:
        raise ParameterError(
            f"first_bits={p.first_bits} is not above scale_bits={p.scale_bits}: not even the value "
            f"1 would fit at level 0; take first_bits={min(60, p.scale_bits + 10)}"
            + (f" and scale_bits={_MAX_PRIME_BITS - 10}" if p.scale_bits > 50 else "")
        )
    if p.special_bits < p.first_bits:
        raise ParameterError(
            f"special_bits={p.special_bits} must be the largest size (first_bits={p.first_bits}), "
            f"since the noise of a rotation grows with first / special prime; "
            f"take special_bits={min(60, p.first_bits + 10)}"
        )


def _insecure_message(p: CKKSParams) -> str:
    limit = _limit(p.log_n, 128)
    known = f"the 128-bit limit there is {limit}" if limit else "no security table covers that ring"
    return (
        f"INSECURE: the security check is off (security=None). log2(QP) = {p.log_qp:.1f} at "
        f"N = 2^{p.log_n}; {known}. For tests only: never encrypt real data with these parameters"
    )


def _refusal(p: CKKSParams) -> str:
    assert p.security is not None
    limit = _limit(p.log_n, p.security)
    sizes = (p.scale_bits, p.first_bits, p.special_bits, p.security, p.digits, p.continues)
    text = (
        f"log2(QP) = {p.log_qp:.1f} bits (special prime included) is above the {limit} bits that "
        f"give {p.security}-bit security at N = 2^{p.log_n} (2024 guidelines)."
    )
    older = SEAL_LIMITS.get(p.log_n, 0)
    if p.security == 128 and p.log_qp <= older:
        text += f" The older 2018 table, which SEAL uses, allows {older}."
    levels = largest_levels(p.log_n, *sizes) if limit else -1
    if levels >= 0:
        text += f" The largest that fits this ring is levels={levels}."
    else:
        text += " No number of levels fits this ring with these prime sizes."
    ring = smallest_ring(p.levels, *sizes)
    if ring is not None:
        text += f" levels={p.levels} needs log_n={ring}."
    else:
        text += f" No ring up to 2^17 fits levels={p.levels}."
    return text + " security=None skips the check, for tests only."


# Primes. A chain is (q_0, ..., q_levels, and those of P).


@lru_cache(maxsize=256)
def _chain(shape: _Shape) -> tuple[int, ...]:
    log_n, levels, scale_bits, first_bits, special_bits, digits, continues = shape
    step = 2 << log_n
    special = next(_below(1 << special_bits, step), 0)
    first = next((q for q in _below(1 << first_bits, step) if q != special), 0)
    if special <= 1 << (special_bits - 1) or first <= 1 << (first_bits - 1):
        raise ParameterError(
            f"too few primes of {first_bits} and {special_bits} bits are 1 modulo {step}: "
            f"take larger primes"
        )
    below: tuple[int, ...] = ()
    last, used = special, {special, first}
    if digits is not None:
        first, last = _ends(first_bits, scale_bits, step)
        used = {first, last}
    if continues is not None:
        below = _chain((log_n, continues, *shape[2:6], None))[1 : 1 + continues]
        used = {first, *below}
    target = 2.0**scale_bits
    scale = target
    chain: list[int] = []
    for level in range(levels, 0, -1):
        if level <= len(below):
            q = below[level - 1]
        elif continues is not None and level == levels:
            q = last
        else:  # the scale of a chain that is continued is its top prime
            aim = float(below[-1]) if below and level == len(below) + 1 else target
            q = next(q for q in _nearest(scale * scale / aim, step) if q not in used)
        scale = float(q) if digits and level == levels else scale * scale / q
        if abs(math.log2(scale / target)) > SCALE_TOLERANCE_BITS:
            raise ParameterError(
                f"there are too few {scale_bits}-bit primes equal to 1 modulo {step} to keep the "
                f"scale of level {level - 1} within {SCALE_TOLERANCE_BITS} bit of 2^{scale_bits}: "
                f"take a larger scale_bits, fewer levels or a smaller ring"
            )
        used.add(q)
        chain.append(q)
    data = (first, *reversed(chain))
    return (*data, special) if digits is None else (*data, *_special_primes(data, digits, step))


@lru_cache(maxsize=256)
def _ends(first_bits: int, scale_bits: int, step: int) -> tuple[int, int]:
    """The first prime of a chain with digits, and the last of one that continues it.

    OpenFHE's bootstrap takes its modulus and its scale for powers of two. As measured, with OpenFHE
    1.6.1 and six pairs, it is off by the multiples of the modulus that it removes times what the
    square of the one is from the other, both relative to their powers. So that pair is chosen in
    which they differ least.
    """
    firsts = [q for q in islice(_below(1 << first_bits, step), _ENDS) if q > 1 << (first_bits - 1)]
    lasts = list(islice(_nearest(2.0**scale_bits, step), _ENDS))
    pairs = [(a, b) for a in firsts for b in lasts if a != b]

    def rest(pair: tuple[int, int]) -> tuple[float, int]:
        first, last = pair
        under, over = (1 << first_bits) - first, last - (1 << scale_bits)
        return abs(2.0 * under / 2.0**first_bits + over / 2.0**scale_bits), under

    return min(pairs, key=rest)


_ENDS = 24
"""Primes of each size among which that pair is sought."""


def _special_primes(data: tuple[int, ...], digits: int, step: int) -> tuple[int, ...]:
    """The largest primes of 60 bits that are not in `data`, as many as the bits of the largest
    digit of it need, and four more.
    """
    count = special_count(data, -(-len(data) // digits))
    return tuple(islice((q for q in _below(1 << SPECIAL_BITS, step) if q not in data), count))


def special_count(data: Sequence[int], width: int) -> int:
    """How many special primes OpenFHE takes for digits of so many of these primes."""
    parts = [math.prod(data[i : i + width]) for i in range(0, len(data), width)]
    bits = max(part.bit_length() for part in parts) + _SPARE_BITS
    return -(-bits // SPECIAL_BITS)


_SPARE_BITS = 4
"""Of P above the largest digit. OpenFHE 1.6.1 takes them in all rings whose keys were looked at: of
2 to 21 digits with 1 to 19 primes each, N = 2^10 to 2^16.
"""


@lru_cache(maxsize=256)
def _scales(shape: _Shape) -> tuple[float, ...]:
    chain = _chain(shape)
    scales = [2.0 ** shape[2] if shape[5] is None else float(chain[shape[1]])]
    for level in range(shape[1], 0, -1):
        scales.append(scales[-1] * scales[-1] / chain[level])
    return tuple(reversed(scales))


def _below(bound: int, step: int) -> Iterator[int]:
    for q in range(bound - step + 1, step, -step):
        if _is_prime(q):
            yield q


def _nearest(target: float, step: int) -> Iterator[int]:
    """Primes equal to 1 modulo ``step`` and below 2**60, by distance from ``target``."""
    low = int(target) // step * step + 1
    high = low + step
    while low > step or high < 1 << _MAX_PRIME_BITS:
        if high < 1 << _MAX_PRIME_BITS and (low <= step or high - target < target - low):
            q, high = high, high + step
        else:
            q, low = low, low - step
        if q > step and _is_prime(q):
            yield q


def _is_prime(q: int) -> bool:
    """Miller-Rabin on twelve bases, which decides every q below 3.3e24 (Sorenson, Webster 2015)."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if q < 2 or any(q % b == 0 for b in bases):
        return q in bases
    odd = q - 1
    twos = (odd & -odd).bit_length() - 1
    odd >>= twos
    for base in bases:
        x = pow(base, odd, q)
        if x in (1, q - 1):
            continue
        if not any((x := x * x % q) == q - 1 for _ in range(twos - 1)):
            return False
    return True
