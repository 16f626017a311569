"""Bootstrap laws: what a bootstrap does to slot values, as data from published measurements.

A law adds Gaussian noise of std 2^-bits per slot to messages in [-1, 1], passes them through a sine
where one is known, and fails altogether with some probability. What the sine acts on are the
coefficients of the message polynomial, in units of the values: one of full size for a constant
vector, far smaller ones for a vector that varies. `hesim.certify` applies it there. The training
tier, which knows no slots, applies it to values: right for constant vectors, too much for others.
Where slots are brought down to coefficients before they are refreshed, the sine acts on the values
of slots in both.
"""

from __future__ import annotations

import math
import numbers
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from hesim.errors import ParameterError

if TYPE_CHECKING:
    from jaxtyping import ArrayLike, Float

__all__ = ["LAWS", "BootstrapLaw", "in_slots", "law", "log2_overflow"]

_MOST_BITS = 200
"""In either direction: far beyond what doubles tell from 0."""


@dataclass(frozen=True)
class BootstrapLaw:
    """One published bootstrap.

    Attributes:
      name: of the law.
      source: where the figures come from.
      bits: precision, -log2 of the std of the additive error of a slot.
      sine_bits: CF of m -> C·sin(m / C), C = 2^CF / 2π; None where no sine is left over.
      log2_failure: log2 of the probability that the result is wrong altogether; -inf if not stated.
      levels: primes that the bootstrap itself consumes, None if not stated.
      log_qp: of the parameter set it was measured with, None if not stated.
      on_slots: whether the sine acts on the values of slots instead: slots to coefficients first.
      log_n: log2 of the ring degree that it was measured at, if it holds for that one only.
      secret_weight: non-zero coefficients of the secret that it needs, if the library's usual
        secret is another.
      gain_bits: log2 of what the error of a first bootstrap is multiplied by, before a second one
        brings it to where it is taken away; 0 for one iteration.
      common: share of the variance that is the same, slot by slot, in all bootstraps under a key.
        `hesim.certify` draws it once a key; the training tier, which knows no slots, every time.

    Examples:
      >>> import hesim, math
      >>> law = hesim.BootstrapLaw("mine", 20.0, None, -math.inf, 12, None, "measured by me")
      >>> law.std == 2.0**-20, law.deviation(0.5)
      (True, 0.0)
    """

    name: str
    bits: float
    sine_bits: float | None
    log2_failure: float
    levels: int | None
    log_qp: int | None
    source: str
    on_slots: bool = False
    log_n: int | None = None
    secret_weight: int | None = None
    gain_bits: int = 0
    common: float = 0.0

    def __post_init__(self) -> None:
        sine = 1.0 if self.sine_bits is None else self.sine_bits
        given = self.bits, sine, self.log2_failure, self.common
        if not all(isinstance(number, numbers.Real) for number in given):
            raise ParameterError(
                f"bits, sine_bits, log2_failure, common of law {self.name!r} are numbers"
            )
        if (
            not isinstance(self.gain_bits, numbers.Integral)
            or not 0 <= self.gain_bits <= _MOST_BITS
        ):
            raise ParameterError(
                f"gain_bits={self.gain_bits!r} of bootstrap law {self.name!r} is a whole number, "
                f"from 0 to {_MOST_BITS}"
            )
        if not 0.0 <= self.common <= 1.0:
            raise ParameterError(
                f"common={self.common} of bootstrap law {self.name!r} is a share, from 0 to 1"
            )
        within = abs(self.bits) <= _MOST_BITS and abs(sine) <= _MOST_BITS
        if not (within and self.log2_failure <= 0.0):
            raise ParameterError(
                f"bootstrap law {self.name!r} needs bits of {_MOST_BITS} at most, and a failure of "
                "probability 1 at most"
            )

    @property
    def std(self) -> float:
        """Of the additive error of a slot."""
        return 2.0**-self.bits

    @property
    def fails(self) -> bool:
        """Whether failures are frequent enough to be met in a simulation."""
        return self.log2_failure > -60.0

    def deviation(self, x: Float[ArrayLike, "*shape"]) -> Any:
        """C·sin(x / C) - x of coefficients in units of values, or of slots if it acts on them, and
        what a second iteration leaves of it; NumPy or JAX arrays.
        """
        if self.sine_bits is None:
            return 0.0
        bent = _bent(x, 2.0**self.sine_bits / (2.0 * math.pi))
        if not self.gain_bits:
            return bent
        gain = 2.0**self.gain_bits
        return _bent(-gain * bent, 2.0**self.sine_bits / (2.0 * math.pi)) / gain


def _bent(x: Any, c: float) -> Any:
    if isinstance(x, (np.ndarray, float)):
        return c * np.sin(x / c) - x
    import jax.numpy as jnp

    return c * jnp.sin(x / c) - x


def _lattigo(name: str, bits: float, log_qp: int) -> BootstrapLaw:
    source = "Lattigo default parameters: S2C 3, EvalMod 8, C2S 4 primes"
    return BootstrapLaw(name, bits, None, -138.7, 15, log_qp, source)


def _sine(name: str, cf: float, floor: float) -> BootstrapLaw:
    bits = -math.log2(floor * 2.0**cf)
    source = "Perseus btserr.py, measured on a 32-bit chain of FIDESlib: refit for other libraries"
    return BootstrapLaw(name, bits, cf, -math.inf, None, None, source)


_OPENFHE_SCALE_BITS = 59
_OPENFHE_RINGS = range(10, 17)
_OPENFHE_ROUNDED, _OPENFHE_GATHERED = 2.0**-110.9, 2.0**-120.8
"""Variance of a slot's error over N², and over N² and the slots in use, where the correction is 1:
of OpenFHE 1.6.1, slots to coefficients first, scales of 59 bits, dense secret; the same for all
keys, values and budgets of levels. Measured (`python -m benchmarks.bootstraps`) with the machine's
correction of what all bootstraps under a key have in common, with which errors of neighbouring
slots, and of slots that lie apart, are independent; without it the mean over 1,024 neighbours errs
by four bits more at N = 2^16.
"""

_OPENFHE_COMMON = 0.2
"""Of that, what the machine's correction itself brings: it is the mean of four bootstraps."""


def _openfhe_bits(log_n: int, slots: int, correction: int) -> float:
    """-log2 of the std of a slot's error."""
    variance = 4.0**log_n * (_OPENFHE_ROUNDED + _OPENFHE_GATHERED * slots)
    return -0.5 * math.log2(variance) - correction


_OPENFHE_CORRECTIONS = range(9, 17)
_OPENFHE_RANGE, _OPENFHE_WEIGHT = 16, 32
"""Multiples of the modulus that its sine reaches, and coefficients of the sparse secret that they
come from (OpenFHE's ckksrns-fhe, K_SPARSE_ENCAPSULATED).
"""


def log2_overflow(weight: int, reach: int, coefficients: int) -> float:
    """log2 of the probability that some coefficient leaves the range of the modular reduction.

    Equation (1) of Bossuat, Troncoso-Pastoriza, Hubaux (ePrint 2022/024): the multiple of the
    modulus in a coefficient is a sum of weight + 1 uniform numbers in [-1/2, 1/2], so its tail is
    that of Irwin and Hall, and coefficients are added up.

    Args:
      weight: of the sparse secret.
      reach: largest multiple that the reduction handles.
      coefficients: of a ciphertext, N.

    Examples:
      >>> from hesim.noise.bootstrap import log2_overflow
      >>> round(log2_overflow(32, 16, 2**16), 1), log2_overflow(32, 17, 2**16)
      (-138.7, -inf)
    """
    n, tail = weight + 1, Fraction(0)
    above = Fraction(n, 2) - reach
    for i in range(n + 1):
        if above <= i:
            break
        tail += (-1) ** i * math.comb(n, i) * (above - i) ** n
    if not tail:
        return -math.inf
    tail *= Fraction(2 * coefficients, math.factorial(n))
    return math.log2(tail.numerator) - math.log2(tail.denominator)


def _openfhe(log_n: int, correction: int) -> BootstrapLaw:
    return BootstrapLaw(
        f"openfhe_n{log_n}_cf{correction}",
        _openfhe_bits(log_n, 2 ** (log_n - 1), correction),
        float(correction),
        log2_overflow(_OPENFHE_WEIGHT, _OPENFHE_RANGE, 2**log_n),
        None,
        None,
        "measured with OpenFHE 1.6.1; failures by the weight of its sparse secret, "
        f"{_OPENFHE_WEIGHT}, and the range of its sine, {_OPENFHE_RANGE} (ePrint 2022/024)",
        on_slots=True,
        log_n=log_n,
        common=_OPENFHE_COMMON,
    )


#: By name. Sparse secrets (weight 192) unless the name says dense. The sine laws are at CF = 8.
LAWS: dict[str, BootstrapLaw] = {
    entry.name: entry
    for entry in (
        _lattigo("lattigo_40", 26.6, 1546),
        _lattigo("lattigo_45", 32.1, 1547),
        _lattigo("lattigo_30", 19.1, 1553),
        _lattigo("lattigo_n15", 15.4, 768),
        _lattigo("lattigo_dense_40", 23.8, 1767),
        _lattigo("lattigo_dense_45", 29.8, 1788),
        _lattigo("lattigo_dense_30", 17.8, 1793),
        BootstrapLaw(
            "openfhe", 18.0, None, -math.inf, None, None, "OpenFHE's example; no failures stated"
        ),
        BootstrapLaw(
            "openfhe_ternary_n17",
            18.0,
            None,
            -12.0,
            None,
            None,
            "OpenFHE with K = 512: failures at N = 2^17; the bits are those of its example",
        ),
        BootstrapLaw(
            "fideslib_meta_bts",
            28.0,
            None,
            -math.inf,
            None,
            None,
            "FIDESlib, two iterations of META-BTS; one iteration gives 10.9 bits",
        ),
        _sine("sine_dense", 8.0, 2.2e-5),
        _sine("sine_512_slots", 8.0, 1.6e-7),
        _sine("sine_1_slot", 8.0, 3e-9),
        *(_openfhe(n, cf) for n in _OPENFHE_RINGS for cf in _OPENFHE_CORRECTIONS),
    )
}


_TAIL = 8.0
"""Times their std that errors reach."""


def _second(once: BootstrapLaw, full: BootstrapLaw) -> BootstrapLaw:
    """Two iterations of a bootstrap, `full` in all slots: by a gain that brings the error of the
    first one, that of values of size 1, up to 1, or up to where the second one bends it by no more
    than it is noisy. What the second one errs by is as much smaller; besides, the sum of both is
    rounded twice, as measured at N = 2^10 to 2^13 (within 0.2 bit).
    """
    bent = abs(float(full.deviation(1.0)))  # and 1 / 6C² of a cube
    even = (math.log2(full.std) - 4.0 * math.log2(bent)) / 3.0
    gain = math.floor(min(-math.log2(_TAIL * full.std + bent), even))
    n = 2.0 ** (once.log_n or 0)
    rounded = n * (1.0 + 2.0 * n / 3.0) / 6.0 * 4.0**-_OPENFHE_SCALE_BITS
    variance = once.std**2 * 4.0**-gain
    bits = -0.5 * math.log2(variance + rounded)
    common = once.common * variance / (variance + rounded)
    failure = min(once.log2_failure + 1.0, 0.0)
    return replace(once, bits=bits, gain_bits=gain, log2_failure=failure, common=common)


def twice(name: str) -> str:
    """Name of the law of two iterations of OpenFHE's bootstrap of that law, which `law` knows.

    Raises:
      ParameterError: there is no such law of OpenFHE's.

    Examples:
      >>> from hesim.noise.bootstrap import law, twice
      >>> once, both = law("openfhe_n16_cf13"), law(twice("openfhe_n16_cf13"))
      >>> both.name, both.gain_bits, round(both.bits - once.bits, 1)
      ('openfhe_n16_cf13_x2', 20, 19.8)
    """
    found = _NAMED.fullmatch(name)
    if found is None or found.group(3) or found.group(4):
        raise ParameterError(f"{name!r} is no law of one iteration in all slots of OpenFHE's")
    law(name)
    return f"{name}_x2"


def in_slots(name: str | None, slots: int) -> str | None:
    """Name of the law of a bootstrap in which so many slots are in use, repeated to fill the ring:
    the law's own name, or that of a quieter one, which `law` knows, too.

    Raises:
      ParameterError: there is no law of that name.

    Examples:
      >>> from hesim.noise.bootstrap import in_slots, law
      >>> quieter = law(in_slots("openfhe_n16_cf13", 64))
      >>> quieter.name, round(quieter.bits - law("openfhe_n16_cf13").bits, 1)
      ('openfhe_n16_cf13_s64', 2.5)
    """
    if name is None or not name.startswith("openfhe_n"):
        return name
    whole = law(name)
    if whole.log_n is None or slots >= 2 ** (whole.log_n - 1):
        return name
    return f"{whole.name.partition('_s')[0]}_s{slots}"


_NAMED = re.compile(r"openfhe_n(\d+)_cf(\d+)(_x2)?(?:_s([1-9]\d*))?")


@lru_cache(maxsize=256)
def _of_openfhe(name: str) -> BootstrapLaw | None:
    """The law of a name that `in_slots` or `twice` makes."""
    found = _NAMED.fullmatch(name)
    if found is None:
        return None
    log_n, correction, two, slots = found.groups()
    whole = LAWS.get(f"openfhe_n{log_n}_cf{correction}")
    if whole is None or (slots and int(slots) >= 2 ** int(log_n) // 2):
        return None
    if slots:
        bits = _openfhe_bits(int(log_n), int(slots), int(correction))
        whole, full = replace(whole, bits=bits), whole
    else:
        full = whole
    return replace(_second(whole, full) if two else whole, name=name)


def law(name: str) -> BootstrapLaw:
    """The law of that name.

    Raises:
      ParameterError: there is none.
    """
    found = _of_openfhe(name)
    if found is not None:
        return found
    if name not in LAWS:
        raise ParameterError(
            f"there is no bootstrap law {name!r}: use one of {', '.join(sorted(LAWS))}"
        )
    return LAWS[name]
