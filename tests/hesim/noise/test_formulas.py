"""Noise formulas: against exact toy polynomials, closed forms, and SEAL itself."""

import dataclasses
import math

import numpy as np
import pytest

from hesim.noise import formulas
from hesim.noise.profiles import profile
from hesim.params import CKKSParams

pytestmark = pytest.mark.filterwarnings("ignore::hesim.params.InsecureParametersWarning")
SEAL = profile("seal")


def embed(coefficients: np.ndarray) -> np.ndarray:
    """Slots of real polynomials modulo X^N + 1: one of each conjugate pair of roots."""
    n = coefficients.shape[-1]
    twist = np.exp(1j * np.pi * np.arange(n) / n)
    return np.fft.fft(coefficients * twist)[..., 1 : n // 2 + 1]


def test_slot_std_of_a_rounding_is_that_of_real_polynomials():
    rng = np.random.default_rng(0)
    n, trials = 512, 400
    secret = embed(rng.integers(-1, 2, (trials, n)).astype(float))
    error = embed(rng.uniform(-0.5, 0.5, (trials, n)))
    error = error + secret * embed(rng.uniform(-0.5, 0.5, (trials, n)))
    rounding = formulas.rescale(SEAL)
    assert np.std(np.real(error)) == pytest.approx(formulas.slot_std(rounding, n, SEAL), rel=0.02)
    fourth = np.mean(np.real(error) ** 4) / np.var(np.real(error)) ** 2
    assert fourth == pytest.approx(formulas.kurtosis(rounding, n, SEAL), rel=0.05)


def test_encryption_with_the_public_key_over_q_is_that_of_real_polynomials():
    rng = np.random.default_rng(1)
    n, trials = 256, 400
    library = dataclasses.replace(SEAL, encryption="public")

    def binomial() -> np.ndarray:
        return embed(rng.binomial(42, 0.5, (trials, n)) - 21.0)

    u, s = (embed(rng.integers(-1, 2, (trials, n)).astype(float)) for _ in range(2))
    error = binomial() * u + binomial() + binomial() * s
    predicted = formulas.slot_std(formulas.encrypt(n, library), n, library)
    assert np.std(np.real(error)) == pytest.approx(predicted, rel=0.02)


@pytest.mark.parametrize("centred", [True, False])
def test_digits_of_a_key_switch_are_those_of_real_polynomials(centred):
    rng = np.random.default_rng(2)
    p = CKKSParams(9, 1, 40, 50, 50, security=None)
    library = dataclasses.replace(SEAL, centred_digits=centred)
    trials = 400
    total = np.zeros((trials, p.n // 2), complex)
    for q in p.primes:
        digit = rng.uniform(-0.5, 0.5, (trials, p.n)) + (0.0 if centred else 0.5)
        e = rng.binomial(42, 0.5, (trials, p.n)) - 21.0
        total += embed(digit) * embed(e) * (q / p.special)
    predicted = math.sqrt(p.n / 2 * formulas.digit_key_switch(p, 1, library))
    assert np.std(np.real(total)) == pytest.approx(predicted, rel=0.05)


def test_encoding_errors_of_vectors_and_scalars():
    rng = np.random.default_rng(3)
    p = CKKSParams(10, 1, 30, 40, 50, security=None)
    half = rng.uniform(-(2.0**30), 2.0**30, (400, p.n // 2 - 1))
    # Real slots belong to polynomials that X -> 1/X keeps: m_k = -m_{N-k}, m_{N/2} = 0.
    zero = np.zeros((400, 1))
    coefficients = np.concatenate([zero + 5.5e8, half, zero, -half[:, ::-1]], axis=1)
    assert np.abs(np.imag(embed(coefficients))).max() < 1.0
    error = embed(np.rint(coefficients) - coefficients)
    assert np.abs(np.imag(error)).max() < 1e-6
    std = formulas.encode_std(p, 1, SEAL, scalar=False)
    assert np.std(np.real(error)) / p.scale(1) == pytest.approx(std, rel=0.02)
    assert formulas.encode_std(p, 1, SEAL, scalar=True) * p.scale(1) == math.sqrt(1 / 12)


def test_closed_forms_for_seal():
    p = CKKSParams(14, 4, 40, 50, 60)
    h = 2 * p.n / 3
    fresh = formulas.fresh(p.n, SEAL)
    expected = math.sqrt(p.n / 2 * ((1 + h) / 12 + 2 / 12)) / 2**40
    assert formulas.value_std(fresh, p, 4, SEAL) == pytest.approx(expected)
    assert math.log2(expected) == pytest.approx(-28.6, abs=0.02)
    switch = formulas.key_switch(p, 4, SEAL)
    digits = p.n * 10.5 / 3 * sum((q / p.special) ** 2 for q in p.primes)
    assert switch.direct == pytest.approx(1 / 12 + digits)
    assert switch.keyed == 1 / 12
    product = formulas.product(p, 4, SEAL)
    assert product.direct - 1 / 12 == pytest.approx(switch.direct / p.primes[4] ** 2, rel=1e-3)


def test_other_secrets_and_encryptions():
    sparse = dataclasses.replace(SEAL, secret_weight=192)
    assert formulas.secret_norm(2**16, sparse) == 192
    by_key = dataclasses.replace(SEAL, encryption="secret")
    assert formulas.encrypt(2**14, by_key) == formulas.Noise(10.5, 0.0)
    grouped = dataclasses.replace(SEAL, digit_primes=2)
    p = CKKSParams(14, 3, 30, 31, 60, security=None)
    sizes = math.prod(p.primes[:2]), math.prod(p.primes[2:])  # of 61 bits: P has two primes
    digits = p.n * 10.5 * (1 + 2 / 12) * sum((size / 2**120) ** 2 for size in sizes)
    assert formulas.digit_key_switch(p, 3, grouped) == pytest.approx(digits)


def test_a_division_that_does_not_round_leaves_out_a_number_for_each_special_prime():
    library = dataclasses.replace(profile("openfhe"), error_variance=0.0)
    rng = np.random.default_rng(5)
    for levels, digits, count in ((9, 2, 5), (7, 3, 4)):
        p = CKKSParams(16, levels, 59, 60, 60, digits=digits)
        assert len(p.moduli) - len(p.primes) == count
        missing = rng.uniform(size=(count, 10**5)).sum(axis=0) - count / 2
        missing += rng.choice([-0.5, 0.5], missing.size) if count % 2 else 0.0
        switch = formulas.key_switch(p, levels, library)
        assert switch.direct == switch.keyed == pytest.approx(np.var(missing), rel=0.02)
    plain = CKKSParams(16, 7, 59, 60, 60)  # its digits are the profile's
    assert formulas.key_switch(plain, 7, library).keyed == pytest.approx(switch.keyed)


@pytest.mark.parametrize("centred", [True, False])
def test_digits_of_several_primes_are_sums_of_as_many_numbers(centred):
    p = CKKSParams(16, 9, 59, 60, 60, digits=2)
    library = dataclasses.replace(profile("openfhe"), centred_digits=centred)
    digits = np.random.default_rng(6).uniform(size=(5, 10**5)) - 0.5 * centred
    moment = np.mean(digits.sum(axis=0) ** 2)
    ratio = sum((math.prod(p.primes[i : i + 5]) / p.special) ** 2 for i in (0, 5))
    expected = p.n * library.error_variance * ratio * moment
    assert formulas.digit_key_switch(p, 9, library) == pytest.approx(expected, rel=0.02)


def test_a_first_prime_under_the_special_prime_makes_rotations_two_bits_quieter():
    quiet, loud = (CKKSParams(14, 3, 40, first, 60) for first in (50, 60))
    ratio = formulas.value_std(formulas.key_switch(loud, 3, SEAL), loud, 3, SEAL)
    ratio /= formulas.value_std(formulas.key_switch(quiet, 3, SEAL), quiet, 3, SEAL)
    assert 2.0 < math.log2(ratio) < 4.0


def test_noise_algebra():
    one, two = formulas.Noise(1.0, 2.0), formulas.Noise(3.0, 5.0)
    assert one.plus(two) == formulas.Noise(4.0, 7.0)
    assert two.over(2.0) == formulas.Noise(0.75, 1.25)
