"""Polynomial: values, identity, rescaling, derivatives and storage."""

import math
import pickle
import subprocess
import sys

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import chebyshev

import approx
from approx.errors import ApproxError, DomainError
from approx.polynomial import ONE_MINUS_SQUARE, Polynomial, affine_map, check_intervals

finite = st.floats(-1e6, 1e6, allow_subnormal=False)


def make(coefficients, intervals=((-1.0, 1.0),), **extra):
    scale, shift = affine_map(check_intervals(intervals))
    return Polynomial(tuple(coefficients), tuple(intervals), scale, shift, **extra)


@settings(max_examples=50, deadline=None)
@given(st.lists(finite, min_size=1, max_size=40), st.floats(-1.0, 1.0))
def test_values_are_those_of_the_chebyshev_series(coefficients, u):
    expected = chebyshev.chebval(u, coefficients)
    assert abs(make(coefficients)(u) - expected) <= 1e-12 * (1 + np.sum(np.abs(coefficients)))


def test_numpy_path_is_float64_and_keeps_the_shape():
    p = make([1.0, 2.0, 3.0])
    y = p(np.zeros((2, 3), dtype=np.float32))
    assert y.dtype == np.float64
    assert y.shape == (2, 3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_json_round_trip_is_bit_equal(coefficients):
    p = make(coefficients, [(-3.0, 0.1)], name="t", max_error=1 / 3, certified=True)
    q = Polynomial.from_json(p.to_json())
    assert q == p
    assert np.array_equal(
        np.array(q.coefficients).view(np.int64), np.array(p.coefficients).view(np.int64)
    )


def test_json_round_trip_keeps_the_derivative_rule_and_an_unknown_error():
    p = make([0.0, 1.0, 0.5]).with_derivative(ONE_MINUS_SQUARE, of="value")
    q = Polynomial.from_json(p.to_json())
    assert q == p
    assert math.isinf(q.max_error)
    with pytest.raises(ApproxError, match="to_json"):
        Polynomial.from_json('{"kind": "polynomial"}')


def test_hash_equality_and_pickle():
    p, q = make([1.0, 2.0]), make([1.0, 2.0, 0.0])
    assert p == q and hash(p) == hash(q)
    assert p != make([1.0, 2.5])
    assert pickle.loads(pickle.dumps(p)) == p
    assert len(repr(make(np.ones(256)))) < 100


@pytest.mark.parametrize("domain", [(-16.0, 0.0), (-8.0, 8.0), (-0.3, 0.1), (1e-3, 7.7)])
def test_rescaling_by_the_half_width_leaves_only_a_shift(domain):
    p = make([0.3, -0.2, 0.1, 0.7], [domain])
    half = 0.5 * (domain[1] - domain[0])
    q = p.rescaled(half)
    x = np.linspace(q.hull[0], q.hull[1], 101)
    assert q.scale == 1.0
    assert np.allclose(q(x), p(half * x), rtol=0, atol=1e-14)
    assert q.depth == p.depth - 1 == p.plan.depth
    assert p.rescaled(-half).scale == -1.0
    assert p.rescaled(-half).depth == q.depth
    assert np.allclose(p.rescaled(-half)(-x), q(x), rtol=0, atol=1e-14)


def test_folded_affine_map_costs_no_level():
    own = make([0.0, 1.0, 2.0, 3.0], [(-4.0, 4.0)])
    folded = make([0.0, 1.0, 2.0, 3.0], [(-4.0, 4.0)], affine="folded")
    assert (own.depth, folded.depth) == (3, 2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12))
def test_derivative_is_that_of_the_series(coefficients):
    p = make(coefficients, [(-3.0, 1.0)])
    x = np.linspace(-3, 1, 31)
    expected = chebyshev.chebval(0.5 * x + 0.5, chebyshev.chebder(coefficients)) * 0.5
    assert np.allclose(p.derivative()(x), expected, rtol=0, atol=1e-11)


def test_growth_is_the_largest_value_within_the_margin():
    p = make([0.0, 0.0, 0.0, 1.0], [(-2.0, 2.0)])  # T_3 on [-2, 2]
    assert p.growth(0.0) == pytest.approx(1.0)
    assert p.growth(0.25) == pytest.approx(4 * 1.5**3 - 3 * 1.5)  # |u| reaches 1.5
    assert p.growth(0.1) < p.growth(0.2)


@pytest.mark.parametrize(
    "intervals",
    [[], [(1, 1)], [(2, 1)], [(0, math.inf)], [(math.nan, 1)], [(0, 2), (1, 3)], [(0, 1), (1, 2)]],
)
def test_bad_domains_are_named(intervals):
    with pytest.raises(DomainError):
        check_intervals(intervals)


@pytest.mark.parametrize("coefficients", [(), (1.0, math.nan), (math.inf,)])
def test_coefficients_must_be_finite(coefficients):
    with pytest.raises(ApproxError, match="finite"):
        Polynomial(coefficients)


def test_polynomials_and_plans_need_no_jax():
    code = (
        "import sys, numpy as np, approx, approx.plan, approx.polynomial as m;"
        "p = m.Polynomial((0., 1., 2.)); p(np.ones(3)); p.plan;"
        "approx.fit('exp', (-1, 0), degree=3);"
        "assert not [k for k in sys.modules if k.split('.')[0] in ('jax', 'jaxlib')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_contains_leaves_gaps_and_nan_out():
    p = approx.fit("inv", [(-1.0, -0.25), (0.25, 1.0)], degree=5)
    x = np.array([[-1.0, -0.25, 0.0], [0.24, np.nan, 1.1]])
    np.testing.assert_array_equal(p.contains(x), [[True, True, False], [False, False, False]])
    assert p.contains(1.0 + 1e-10) and not p.contains(1.0 + 1e-6)
    assert p.contains(1.0 + 1e-6, slack=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20),
    st.floats(-50, 50),
    st.floats(0.1, 40),
    st.floats(0, 1),
)
def test_powers_become_a_chebyshev_series(powers, low, width, where):
    p = Polynomial.from_power(powers, (low, low + width))
    x = min(max(low + where * width, p.hull[0]), p.hull[1])
    with mpmath.workdps(60):
        exact = mpmath.polyval([mpmath.mpf(c) for c in powers], mpmath.mpf(x), asc=True)
        slope = mpmath.polyval(
            [k * mpmath.mpf(c) for k, c in enumerate(powers) if k] or [0], mpmath.mpf(x), asc=True
        )
        inside = 2e-15 * (abs(p.shift) + 1) / p.scale  # u = scale x + shift is rounded
        allowed = 1e-14 * sum(map(abs, p.coefficients)) + 4 * inside * abs(slope) + 1e-300
        assert abs(mpmath.mpf(float(p(x))) - exact) <= allowed


def test_powers_that_cancel_keep_their_precision():
    """T_40 has coefficients up to 1e14 in powers of x, and is 1 in Chebyshev's."""
    powers = [float(c) for c in np.polynomial.chebyshev.cheb2poly([0] * 40 + [1])]
    p = Polynomial.from_power(powers, (-1, 1))
    assert max(abs(c) for c in powers) > 1e13
    assert p.coefficients[40] == 1.0
    assert max(abs(c) for c in p.coefficients[:40]) < 1e-12
    q = Polynomial.from_power([5.0, -3.0, 0.0, 2.0], [(-2, -1), (1, 4)], name="cubic")
    assert float(q(3.0)) == pytest.approx(5 - 9 + 54, rel=1e-14)
    assert (q.name, q.degree, q.intervals) == ("cubic", 3, ((-2.0, -1.0), (1.0, 4.0)))


@pytest.mark.parametrize(
    ("powers", "domain", "error"),
    [
        ([], (0, 1), ApproxError),
        ([1, math.nan], (0, 1), ApproxError),
        (["a"], (0, 1), ApproxError),
        (3, (0, 1), ApproxError),
        ([1e300, 0, 1e300], (0, 1e200), ApproxError),
        ([1, 2], (1, 0), DomainError),
        ([1, 2], 7, DomainError),
    ],
)
def test_bad_powers_are_named(powers, domain, error):
    with pytest.raises(error):
        Polynomial.from_power(powers, domain)
