"""Noise profiles: what one CKKS library does to the numbers it computes on, as data.

The formulas in ``hesim.noise.formulas`` read these fields; adding a library means adding a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hesim.errors import ParameterError
from hesim.noise.bootstrap import law

__all__ = ["PROFILES", "NoiseProfile", "profile", "refreshed_by"]

#: Kinds of encryption: with the public key over Q·P and a division by P, with the public key over
#: Q, or with the secret key.
ENCRYPTIONS = ("public_over_special", "public", "secret")


@dataclass(frozen=True)
class NoiseProfile:
    """The constants of one library's noise.

    Attributes:
      name: of the profile.
      secret_weight: non-zero coefficients of the secret; None for uniform ternary (2N/3 expected).
      error_variance: variance of a coefficient of the error distribution; its shape is lost in
        sums over N coefficients.
      encryption: how fresh ciphertexts are made, one of ``ENCRYPTIONS``.
      rounding_variance: variance of rounding a coefficient to the nearest integer.
      digit_primes: data primes in one key-switching digit.
      centred_digits: whether digits lie around zero; if not, they lie in [0, q).
      rounded_division: whether key switches round where they divide by the special primes; if not,
        the machine puts the mean of what that leaves out back.
      generator: slot j belongs to the root exp(iπ·generator^j / N).
      digit_count: digits in all, instead of `digit_primes`; each then has ceil(primes / count).
      decryption_variance: of what decryption adds, as a multiple of the error's own variance.
      polynomial_levels: (largest degree, levels) of the library's own evaluation of a Chebyshev
        series, the map of its domain to [-1, 1] included, ascending; None for
        ceil(log2(degree + 1)) and one for that map.
      mantissa_bits: bits of the floating-point numbers in which the library encodes and decodes.
      bootstrap: law of ``hesim.noise.bootstrap`` by which a refresh goes; None for the key holder,
        who encrypts again.

    Examples:
      >>> import dataclasses, hesim
      >>> from hesim.noise.profiles import profile
      >>> sparse = dataclasses.replace(profile("seal"), name="sparse", secret_weight=192)
      >>> sparse.polynomial_depth(31), sparse.digit_size(8)
      (6, 1)
    """

    name: str
    secret_weight: int | None
    error_variance: float
    encryption: str
    rounding_variance: float
    digit_primes: int
    centred_digits: bool
    rounded_division: bool = True
    generator: int = 5
    digit_count: int | None = None
    decryption_variance: float = 0.0
    polynomial_levels: tuple[tuple[int, int], ...] | None = None
    mantissa_bits: int = 53
    bootstrap: str | None = None

    def __post_init__(self) -> None:
        if self.encryption not in ENCRYPTIONS:
            raise ParameterError(
                f"encryption={self.encryption!r} of profile {self.name!r} must be one of "
                f"{', '.join(ENCRYPTIONS)}"
            )
        for name in ("error_variance", "rounding_variance", "decryption_variance"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ParameterError(f"{name} of profile {self.name!r} must be at least 0")
        counts = ("secret_weight", "digit_primes", "digit_count", "generator", "mantissa_bits")
        for name in counts:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ParameterError(
                    f"{name}={value!r} of profile {self.name!r} must be a whole number, at least 1"
                )
        if self.generator % 2 == 0 or self.generator < 3:
            raise ParameterError(f"profile {self.name!r} needs an odd generator, from 3 on")
        table = self.polynomial_levels
        if table is not None and (not table or list(table) != sorted(table)):
            raise ParameterError(
                f"polynomial_levels of profile {self.name!r} must ascend by degree"
            )
        if self.bootstrap is not None:
            law(self.bootstrap)

    def digit_size(self, primes: int) -> int:
        """Primes in a digit of a ciphertext that has this many."""
        return self.digit_primes if self.digit_count is None else -(-primes // self.digit_count)

    def polynomial_depth(self, degree: int, *, affine: bool = True) -> int:
        """Levels that the library's evaluation of a Chebyshev series of this degree consumes.

        affine: its domain has to be mapped to [-1, 1] first, which takes one of them.

        Raises:
          ParameterError: a degree below 1, or above what the library's table goes to.
        """
        if degree < 1:
            raise ParameterError(f"degree={degree} must be at least 1")
        if self.polynomial_levels is None:
            return degree.bit_length() + affine
        for largest, levels in self.polynomial_levels:
            if degree <= largest:
                return levels - (not affine)
        last = self.polynomial_levels[-1][0]
        raise ParameterError(
            f"profile {self.name!r} lists polynomials up to degree {last}, not {degree}: split "
            f"the polynomial, or give the levels of higher degrees"
        )


#: By name. SEAL 4: uniform ternary secret, centred binomial error of 21 + 21 bits, encryption at
#: the key level followed by a rounded division by the special prime, one digit per prime, raw
#: residues. OpenFHE 1.6, measured too: ternary secret, Gaussian error of std 3.19, encryption over
#: Q, hybrid digits around zero (with P no more than four bits above them, nothing of a mean shows
#: in the slots near ζ = 1), division by P without rounding, whose mean our machine puts back, and
#: at decryption as much noise again as the error has; levels of polynomials from its
#: FUNCTION_EVALUATION.md. Lattigo was not measured here; it is what its sources say: error of std
#: 3.2, encryption over Q·P, centred digits.
PROFILES: dict[str, NoiseProfile] = {
    "seal": NoiseProfile(
        name="seal",
        secret_weight=None,
        error_variance=10.5,
        encryption="public_over_special",
        rounding_variance=1.0 / 12.0,
        digit_primes=1,
        centred_digits=False,
        generator=3,
    ),
    "openfhe": NoiseProfile(
        name="openfhe",
        secret_weight=None,
        error_variance=3.19**2,
        encryption="public",
        rounding_variance=1.0 / 12.0,
        digit_primes=1,
        centred_digits=True,
        rounded_division=False,
        digit_count=3,
        decryption_variance=1.0,
        polynomial_levels=(
            *((5, 4), (13, 5), (27, 6), (59, 7), (119, 8)),
            *((247, 9), (495, 10), (1007, 11), (2031, 12)),
        ),
    ),
    "lattigo": NoiseProfile(
        name="lattigo",
        secret_weight=None,
        error_variance=3.2**2,
        encryption="public_over_special",
        rounding_variance=1.0 / 12.0,
        digit_primes=1,
        centred_digits=True,
    ),
}


def refreshed_by(library: NoiseProfile, error: str | None) -> NoiseProfile:
    """The profile with refreshes by another law, by name; the same where `error` is None.

    A law may need another secret. One that acts on slots leaves real errors, of which decryption
    sees nothing: it adds noise by what is imaginary. After a second iteration these are so small
    that other errors are as large, of which it sees what did not pass through a refresh, anything
    from none to all: taken between the two, within a quarter of a bit of either.
    """
    if error is None:
        return library
    chosen = law(error)
    found = replace(library, bootstrap=error)
    if chosen.secret_weight is not None:
        found = replace(found, secret_weight=chosen.secret_weight)
    if not chosen.on_slots:
        return found
    seen = math.sqrt(1.0 + library.decryption_variance) - 1.0 if chosen.gain_bits else 0.0
    return replace(found, decryption_variance=seen)


def profile(name: str | NoiseProfile) -> NoiseProfile:
    """The profile of that name; a profile is returned as it is.

    Raises:
      ParameterError: no profile has that name.
    """
    if isinstance(name, NoiseProfile):
        return name
    if name not in PROFILES:
        raise ParameterError(
            f"there is no noise profile {name!r}: use one of {', '.join(sorted(PROFILES))}, "
            f"or pass a NoiseProfile"
        )
    return PROFILES[name]
