"""Certificates: above every value of the error, within 0.1 %, and refused where there is none."""

import dataclasses
import math

import numpy as np
import pytest

import approx
from approx import certify
from approx.polynomial import Polynomial
from approx.remez import grid
from approx.targets import NAMED, find

CASES = [
    ("exp", (-16, 0), 12),
    ("gelu", (-8, 8), 31),
    ("gelu_tanh", (-8, 8), 31),
    ("silu", (-8, 8), 31),
    ("sigmoid", (-8, 8), 15),
    ("tanh", (-16, 16), 63),
    ("softplus", (-8, 8), 14),
    ("erf", (-3, 3), 15),
    ("relu", (-1, 1), 14),
    ("abs", (-1, 2), 16),
    ("sign", [(-1, -0.1), (0.1, 1)], 15),
    ("inv", (0.04, 1), 31),
    ("inv_sqrt", (1e-3, 1), 63),
    ("sqrt", (0.01, 1), 15),
    ("log", (0.1, 1), 11),
]


@pytest.mark.parametrize(("target", "domain", "degree"), CASES)
def test_the_bound_holds_on_random_points_and_is_tight(target, domain, degree):
    p = approx.fit(target, domain, degree=degree)
    assert p.certified
    f = find(target)
    rng = np.random.default_rng(1)
    largest = certify.estimate(p, f)
    for a, b in p.intervals:
        x = rng.uniform(a, b, 10**5)
        largest = max(largest, float(np.max(np.abs(p(x) - f(x)))))
    rounding = 1e-14 * (1.0 + np.max(np.abs(p.coefficients)))
    assert largest - rounding <= p.max_error <= 1.001 * largest + rounding


def test_every_named_target_is_in_the_cases():
    assert {c[0] for c in CASES} == set(NAMED)


def test_the_bound_is_that_of_extended_precision_where_float64_cannot_tell():
    import flint

    p = approx.fit("exp", (-2, 2), degree=15)
    with flint.ctx.workprec(300):
        errors = [
            abs(float((flint.arb(x).exp() - certify._exact(p, flint.arb(x))).mid()))
            for x in np.linspace(-2, 2, 2001)
        ]
    assert max(errors) <= p.max_error <= 1.001 * max(errors)


def test_a_far_from_optimal_polynomial_is_bounded_too():
    p = Polynomial((0.5, 0.3), ((-1.0, 1.0),), name="line")
    bound = certify.certify(p, NAMED["exp"])
    assert bound is not None
    assert bound == pytest.approx(math.e - 0.8, rel=1e-3)
    assert bound >= math.e - 0.8


def test_no_certificate_without_a_ball_version():
    assert not approx.fit(np.exp, (-1, 1), degree=5).certified


@pytest.mark.parametrize("degree", [1, 6, 31])
def test_the_square_root_is_certified_at_its_branch_point(degree):
    p = approx.fit("sqrt", (0, 3), degree=degree)
    x = np.concatenate([grid([(0, 3)], 10001), np.geomspace(1e-12, 3, 10001)])
    largest = np.max(np.abs(p(x) - np.sqrt(x)))
    assert p.certified
    assert largest <= p.max_error <= 1.001 * largest


def gaussian(x):
    return np.exp(-x * x)


def test_a_callable_with_a_ball_version_is_certified():
    ball = lambda z: (-z * z).exp()
    p = approx.fit(gaussian, (-3, 3), degree=12, parity="even", ball=ball)
    x = grid([(-3, 3)], 20001)
    largest = np.max(np.abs(p(x) - gaussian(x)))
    assert p.certified
    assert largest <= p.max_error <= 1.001 * largest
    assert certify.recheck(p, gaussian, ball)
    assert not certify.recheck(p, lambda x: 1.1 * gaussian(x), lambda z: 1.1 * ball(z))


@pytest.mark.parametrize(
    ("target", "domain", "degree", "optimum"),
    [("exp", (-8, 0), 19, 1.925666e-14), ("exp", (-128, 0), 63, 1.043635e-14)],
)
def test_extended_coefficients_reach_the_optimum_where_float64_does_not(
    target, domain, degree, optimum
):
    p = approx.fit(target, domain, degree=degree)
    rounded = dataclasses.replace(p, tails=())
    assert len(p.tails) == degree + 1
    assert all(abs(t) <= 0.5 * np.spacing(abs(c)) for t, c in zip(p.tails, p.coefficients))
    assert optimum <= p.max_error <= 1.0005 * optimum
    assert certify.certify(rounded, NAMED[target]) > 1.001 * optimum
    assert not certify.recheck(rounded, target)
    assert Polynomial.from_json(p.to_json()) == p
    assert not approx.fit(target, domain, degree=9).tails


def test_rechecking_a_certificate():
    p = approx.fit("tanh", (-3, 3), degree=9)
    assert certify.recheck(p, "tanh")
    assert not certify.recheck(dataclasses.replace(p, max_error=0.99 * p.max_error), "tanh")
    assert not certify.recheck(dataclasses.replace(p, certified=False), "tanh")
    altered = (p.coefficients[0] + 1e-3, *p.coefficients[1:])
    assert not certify.recheck(dataclasses.replace(p, coefficients=altered), "tanh")
