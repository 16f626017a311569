"""CKKS noise formulas: the error that each ciphertext operation adds, in coefficients and slots.

A ciphertext decrypts to ``m + e0 + e1·s``. Each operation adds independent polynomials to e0 and
e1; ``Noise`` holds the variances of their coefficients. In the canonical embedding a polynomial of
coefficient variance v has complex slots of mean square N·v, and the secret, of squared norm h, has
|S_j|² close to exponential with mean h. So the real part of a slot's error has variance
``(N/2)·(direct + keyed·|S_j|²)`` given the key: heavy-tailed over slots (kurtosis 6 rather than 3),
and the same slots are bad every time under one key.

Sources: Costache, Curtis, Hales, Murphy, Ogilvie, Player, "On the precision loss in approximate
homomorphic encryption" (ePrint 2022/162), for the average-case variances; SEAL 4 for what is
rounded and when. Everything here is plain Python: no JAX, no NumPy.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from hesim.errors import ParameterError
from hesim.noise.bootstrap import law
from hesim.noise.profiles import NoiseProfile
from hesim.params import SPECIAL_BITS, CKKSParams, special_count

__all__ = [
    "Noise",
    "digit_key_switch",
    "digit_size",
    "division",
    "encode",
    "encode_std",
    "encrypt",
    "float_std",
    "fresh",
    "key_switch",
    "kurtosis",
    "product",
    "refresh_std",
    "rescale",
    "secret_norm",
    "slot_std",
    "value_std",
]


class Noise(NamedTuple):
    """Coefficient variances of an error: ``direct`` of e0, ``keyed`` of e1, which meets s."""

    direct: float
    keyed: float

    def plus(self, other: Noise) -> Noise:
        """The sum of two independent errors."""
        return Noise(self.direct + other.direct, self.keyed + other.keyed)

    def over(self, divisor: float) -> Noise:
        """The error after division of the ciphertext by ``divisor``, before any rounding."""
        return Noise(self.direct / divisor**2, self.keyed / divisor**2)


def secret_norm(n: int, profile: NoiseProfile) -> float:
    """h = E‖s‖², the expected squared norm of the secret at ring degree n: 2n/3 if ternary.

    Raises:
      ParameterError: the profile's secret has more non-zero coefficients than there are.
    """
    if profile.secret_weight is None:
        return 2.0 * n / 3.0
    if profile.secret_weight > n:
        raise ParameterError(
            f"secret_weight={profile.secret_weight} of profile {profile.name!r} is above the "
            f"ring's {n} coefficients: lower it, or take a larger ring"
        )
    return float(profile.secret_weight)


def slot_std(noise: Noise, n: int, profile: NoiseProfile) -> float:
    """Standard deviation of the real part of a slot, over slots and keys, in units of 1/scale."""
    h = secret_norm(n, profile)
    return math.sqrt(0.5 * n * (noise.direct + h * noise.keyed))


def value_std(noise: Noise, params: CKKSParams, level: int, profile: NoiseProfile) -> float:
    """The same in units of the values, for a ciphertext at the canonical scale of ``level``."""
    return slot_std(noise, params.n, profile) / params.scale(level)


def kurtosis(noise: Noise, n: int, profile: NoiseProfile) -> float:
    """Fourth standardised moment over slots and keys: 3·(1 + f²), f the keyed part of variance."""
    h = secret_norm(n, profile)
    part = h * noise.keyed / (noise.direct + h * noise.keyed)
    return 3.0 * (1.0 + part * part)


def encode(profile: NoiseProfile) -> Noise:
    """Rounding a plaintext vector of real values to integer coefficients, in their real slots.

    Real values belong to polynomials with m_k = -m_{N-k}. Rounding keeps that, so its error is real
    in every slot too: all of the mean square N·v is in the real part, not half of it.
    """
    return Noise(2.0 * profile.rounding_variance, 0.0)


def encode_std(params: CKKSParams, level: int, profile: NoiseProfile, *, scalar: bool) -> float:
    """Standard deviation of a slot's real error in a plaintext encoded at ``level``, in values.

    A vector has n rounded coefficients, sqrt(n/12) / scale for rounding to nearest, all of it in
    the real parts (see `encode`). A scalar (the same value in all slots) has one, sqrt(1/12) /
    scale. A product of a message m by the plaintext is wrong by m times this.
    """
    spread = 1.0 if scalar else params.n
    return math.sqrt(spread * profile.rounding_variance) / params.scale(level)


def float_std(rms: float, n: int, profile: NoiseProfile) -> float:
    """Standard deviation of what one floating-point transform (encoding, decoding) does to a slot.

    0.42·u²·log2 n of the mean square of the values, u half a unit in the last place, half of it in
    the real part: Oppenheim and Weinstein, "Effects of finite register length in digital filtering
    and the fast Fourier transform" (1972); SEAL was 0.00 to 0.20 bit above it. Seen at scales from
    2^50 on, or beside large values.
    """
    return rms * 2.0**-profile.mantissa_bits * math.sqrt(0.21 * math.log2(n))


def encrypt(n: int, profile: NoiseProfile) -> Noise:
    """A fresh encryption, the encoding left out.

    Over Q·P and divided by P, only the roundings of the division remain. Over Q, the error is
    e·u + e0 + e1·s with u uniform ternary.
    """
    if profile.encryption == "public_over_special":
        return rescale(profile)
    if profile.encryption == "public":
        return Noise(profile.error_variance * (2.0 * n / 3.0 + 1.0), profile.error_variance)
    return Noise(profile.error_variance, 0.0)


def fresh(n: int, profile: NoiseProfile) -> Noise:
    """A vector encoded and encrypted, as inputs are and as a refresh by the key holder is."""
    return encode(profile).plus(encrypt(n, profile))


def refresh_std(params: CKKSParams, level: int, profile: NoiseProfile) -> float:
    """Standard deviation that a refresh to ``level`` adds to a slot, in slot values.

    That of a fresh encryption at the canonical scale, or of the profile's bootstrap, which no scale
    makes smaller.
    """
    if profile.bootstrap is not None:
        return law(profile.bootstrap).std
    return value_std(fresh(params.n, profile), params, level, profile)


def rescale(profile: NoiseProfile) -> Noise:
    """The rounding of both components after a division by a prime, which divides the rest."""
    return Noise(profile.rounding_variance, profile.rounding_variance)


def digit_size(params: CKKSParams, profile: NoiseProfile) -> int:
    """Data primes in a digit of key switching: by the parameters, or else by the profile."""
    if params.digits is not None:
        return params.digit_primes
    return profile.digit_size(params.levels + 1)


def digit_key_switch(params: CKKSParams, level: int, profile: NoiseProfile) -> float:
    """Coefficient variance of Σ_i d_i·e_i / P, the part of a key switch that digits cause.

    N·σ²·Σ D_i²/P² times the second moment of a digit over D_i². One of w primes is a sum of w
    numbers, which nobody reduces: w/12 centred, and w²/4 more in [0, D_i). An un-centred digit has
    a mean, which puts that part into the slots nearest to ζ = 1.
    """
    primes, width = params.primes[: level + 1], digit_size(params, profile)
    special = _special(params, profile)[0]
    total = 0.0
    for i in range(0, len(primes), width):
        digit = primes[i : i + width]
        moment = len(digit) / 12.0 + (not profile.centred_digits) * len(digit) ** 2 / 4.0
        total += moment * (math.prod(digit) / special) ** 2
    return params.n * profile.error_variance * total


def _special(params: CKKSParams, profile: NoiseProfile) -> tuple[int, int]:
    """P, and of how many primes it is. Where the library takes several and the parameters know of
    no digits, it is as large as they would make it.
    """
    width = digit_size(params, profile)
    single = width == 1 and profile.digit_count is None
    if single or params.digits is not None:
        return params.special, len(params.moduli) - len(params.primes)
    count = special_count(params.primes, width)
    return 1 << (SPECIAL_BITS * count), count


def division(params: CKKSParams, profile: NoiseProfile) -> Noise:
    """What a key switch leaves out when it divides by P: a rounding, or where the library does not
    round, a number from [0, 1) for each special prime, and half a one if they are an odd number,
    since the mean that the machine puts back has to be whole.
    """
    if profile.rounded_division:
        return rescale(profile)
    count = _special(params, profile)[1]
    variance = profile.rounding_variance * (count + 3 * (count % 2))
    return Noise(variance, variance)


def key_switch(params: CKKSParams, level: int, profile: NoiseProfile) -> Noise:
    """Relinearization or rotation at ``level``: digits against the key, then division by P."""
    digits = Noise(digit_key_switch(params, level, profile), 0.0)
    return digits.plus(division(params, profile))


def product(params: CKKSParams, level: int, profile: NoiseProfile) -> Noise:
    """What a product of two ciphertexts at ``level`` adds once relinearized and rescaled.

    In coefficients at ``level - 1``. The parts that depend on the messages, e_a·m_b + e_b·m_a, are
    not in it.
    """
    switched = key_switch(params, level, profile).over(float(params.primes[level]))
    return switched.plus(rescale(profile))
