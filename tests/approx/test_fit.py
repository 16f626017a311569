"""approx.fit: equioscillation, optimality, requests by degree, depth and tolerance; errors."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import approx
from approx.errors import ApproxError, DomainError, ToleranceError
from approx.remez import basis, grid, split
from approx.targets import NAMED, find

# Chebyshev interpolation errors of (target, domain, degree), from independent computation.
INTERPOLATION = [
    ("exp", (-8, 0), 7, 5.5e-4),
    ("exp", (-8, 0), 15, 1.8e-10),
    ("exp", (-16, 0), 15, 5.4e-7),
    ("exp", (-32, 0), 15, 2.2e-4),
    ("exp", (-64, 0), 31, 8.9e-8),
    ("exp", (-128, 0), 31, 1.5e-4),
    ("gelu", (-4, 4), 15, 2.4e-4),
    ("gelu", (-8, 8), 31, 9.2e-5),
    ("gelu", (-16, 16), 63, 6.3e-5),
    ("gelu", (-32, 32), 127, 5.6e-5),
    ("inv_sqrt", (0.1, 1), 15, 4.2e-5),
    ("inv_sqrt", (0.01, 1), 31, 9.4e-3),
    ("inv_sqrt", (0.01, 1), 63, 1.1e-5),
    ("inv_sqrt", (1e-3, 1), 127, 5e-3),
    ("inv_sqrt", (1e-4, 1), 127, 6.4),
]


@pytest.mark.parametrize(("target", "domain", "degree", "expected"), INTERPOLATION)
def test_interpolation_error_and_minimax_below_it(target, domain, degree, expected):
    interpolated = approx.fit(target, domain, degree=degree, method="chebyshev")
    minimax = approx.fit(target, domain, degree=degree)
    assert interpolated.max_error == pytest.approx(expected, rel=0.06)
    assert minimax.max_error <= interpolated.max_error


def alternations(poly, target, share=0.99):
    """Length of the longest run of alternating errors above ``share`` of the largest."""
    f = find(target)
    x = grid(poly.intervals, 40001, f.kinks)
    e = poly(x) - f(x)
    high = e[np.abs(e) >= share * np.max(np.abs(e))]
    return 1 + int(np.sum(np.sign(high[1:]) != np.sign(high[:-1])))


@pytest.mark.parametrize(
    ("target", "domain", "degree"),
    [
        ("exp", (-8, 0), 9),
        ("gelu_tanh", (-6, 5), 17),
        ("softplus", (-7, 9), 12),
        ("inv_sqrt", (0.01, 1), 40),
        ("log", (0.1, 2), 11),
        ("sqrt", (0, 1), 9),
        ("relu", (-1, 2), 14),
        ("exp", [(-4, -2), (0, 1)], 7),
        ("inv", [(-1, -0.1), (0.2, 1)], 24),
        (lambda x: np.sin(3 * x) + x**2, (-1, 2), 8),
    ],
)
def test_minimax_equioscillates(target, domain, degree):
    assert alternations(approx.fit(target, domain, degree=degree), target) >= degree + 2


@pytest.mark.parametrize(
    ("target", "domain", "degree"),
    [("tanh", (-5, 5), 15), ("gelu", (-8, 8), 20), ("sigmoid", (-6, 6), 11), ("abs", (-1, 1), 10)],
)
def test_symmetry_gives_the_same_optimum_with_half_the_unknowns(target, domain, degree):
    plain = approx.fit(target, domain, degree=degree, parity="none")
    symmetric = approx.fit(target, domain, degree=degree)
    assert symmetric.max_error == pytest.approx(plain.max_error, rel=2e-4)
    wanted = 0 if NAMED[target].remainder == "even" else 1
    others = [c for k, c in enumerate(symmetric.coefficients) if k >= 2 and k % 2 != wanted]
    assert not any(others)
    assert symmetric.plan.nonscalar_mults <= plain.plan.nonscalar_mults
    assert symmetric.plan.scalar_mults < plain.plan.scalar_mults


def test_parity_of_named_targets():
    assert approx.fit("tanh", (-3, 3), degree=9).parity == "odd"
    assert approx.fit("abs", (-3, 3), degree=9).parity == "even"
    assert approx.fit("exp", (-3, 3), degree=9).parity is None
    assert approx.fit(np.cos, (-3, 3), degree=8, parity="even").parity == "even"
    with pytest.raises(ApproxError, match="not even"):
        approx.fit(np.sin, (-3, 3), degree=8, parity="even")
    with pytest.raises(ApproxError, match="symmetric"):
        approx.fit(np.cos, (-3, 2), degree=8, parity="even")


@pytest.mark.parametrize(
    ("target", "domain", "degree", "bits"),
    [
        ("inv", (0.04, 1), 63, 33.2),
        ("inv", (0.8, 3), 15, 25.8),
        ("exp", (-2, 2), 15, 38.2),
        ("exp", (-13, 1), 15, 21.9),
        ("tanh", (-5, 5), 63, 28.8),
        ("tanh", (-16, 16), 127, 18.5),
    ],
)
def test_published_precisions_are_reached(target, domain, degree, bits):
    assert -math.log2(approx.fit(target, domain, degree=degree).max_error) >= bits


def test_no_polynomial_of_the_degree_is_better():
    """De la Vallee Poussin: the smallest alternating error bounds the optimum from below."""
    p = approx.fit("exp", (-3, 1), degree=6)
    x = grid(p.intervals, 20001)
    e = p(x) - np.exp(x)
    heights = [np.max(np.abs(r)) for r in np.split(e, np.flatnonzero(np.diff(np.sign(e))) + 1)]
    assert len(heights) == 8
    assert min(heights) > p.max_error / 1.0005


def test_requests_by_depth_count_the_affine_map():
    assert approx.fit("exp", (-16, 0), depth=5).degree == 15
    assert approx.fit("exp", (-16, 0), depth=5, affine="folded").degree == 31
    assert approx.fit("exp", (-2, 0), depth=4).degree == 15
    p = approx.fit("gelu", (-8, 8), depth=6)
    assert p.depth == 6
    assert p.degree in (30, 31)


@pytest.mark.parametrize("tol", [1e-2, 1e-5, 1e-9])
def test_the_smallest_degree_that_meets_a_tolerance(tol):
    p = approx.fit("exp", (-8, 0), tol=tol)
    assert p.max_error <= tol
    assert approx.fit("exp", (-8, 0), degree=p.degree - 1).max_error > tol


def test_tolerance_within_a_depth():
    p = approx.fit("sigmoid", (-8, 8), tol=1e-3, depth=5)
    assert p.max_error <= 1e-3
    assert p.depth <= 5
    with pytest.raises(ToleranceError, match="out of reach"):
        approx.fit("sigmoid", (-8, 8), tol=1e-9, depth=5)
    with pytest.raises(ToleranceError, match="float64"):
        approx.fit("exp", (-8, 0), tol=1e-40)


def test_callables_of_numpy_jax_and_numbers_agree():
    degree, domain = 9, (-2.0, 3.0)
    fits = [approx.fit(f, domain, degree=degree) for f in ("tanh", np.tanh, jnp.tanh, math.tanh)]
    x = np.linspace(*domain, 101)
    for p in fits[1:]:
        assert np.allclose(p(x), fits[0](x), rtol=0, atol=1e-6 * fits[0].max_error + 1e-14)
        assert not p.certified
        assert p.max_error == pytest.approx(fits[0].max_error, rel=1e-3)


def test_a_weight_bounds_the_relative_error():
    p = approx.fit("inv_sqrt", (0.01, 1), degree=15, weight=np.sqrt)
    q = approx.fit("inv_sqrt", (0.01, 1), degree=15)
    x = grid(p.intervals, 5001)
    relative = [np.max(np.abs(r(x) * np.sqrt(x) - 1)) for r in (p, q)]
    assert relative[0] < 0.6 * relative[1]
    assert p.max_error > q.max_error
    with pytest.raises(ApproxError, match="positive"):
        approx.fit("exp", (-1, 1), degree=3, weight=lambda x: x)


def test_least_squares_is_best_in_the_mean():
    samples = np.random.default_rng(0).normal(0, 1, 5000)
    kept = samples[np.abs(samples) <= 8]
    mean = {}
    for method in ("least_squares", "minimax"):
        data = samples if method == "least_squares" else None
        p = approx.fit("gelu", (-8, 8), degree=12, method=method, parity="none", samples=data)
        mean[method] = np.sqrt(np.mean((p(kept) - find("gelu")(kept)) ** 2)), p.max_error
    assert mean["least_squares"][0] < mean["minimax"][0]
    assert mean["minimax"][1] < mean["least_squares"][1] < 1.0


def test_an_exact_polynomial_is_found_to_rounding():
    p = approx.fit(lambda x: 3 * x**3 - x + 1, (-2, 5), degree=7)
    assert p.max_error < 1e-12


def test_gaussian_kernel_exp_needs_only_a_shift_after_rescaling():
    p = approx.fit("exp", (-16, 0), degree=15).rescaled(8.0)
    assert p.scale == 1.0
    assert p.shift == 1.0
    assert p.depth == 4


BAD = [
    ("inv_sqrt", (0, 1), {"degree": 5}, DomainError, "0 < a"),
    ("inv", (-1, 1), {"degree": 5}, DomainError, "pole"),
    ("log", (-1, 1), {"degree": 5}, DomainError, "0 < a"),
    ("sqrt", (-1, 1), {"degree": 5}, DomainError, "0 <= a"),
    ("sign", (-1, 1), {"degree": 5}, DomainError, "gap"),
    ("exp", (0, 2000), {"degree": 5}, DomainError, "infinite"),
    (lambda x: np.sqrt(x), (-1, 1), {"degree": 5}, DomainError, "NaN"),
    ("exp", (1, 0), {"degree": 5}, DomainError, "reversed"),
    ("exp", (1, 1), {"degree": 5}, DomainError, "empty"),
    ("exp", (0, math.inf), {"degree": 5}, DomainError, "finite"),
    ("exp", (0, 1, 2), {"degree": 5}, DomainError, "a < b"),
    ("exp", (0, 1), {}, ApproxError, "Ask for"),
    ("exp", (0, 1), {"degree": -1}, ApproxError, ">= 0"),
    ("exp", (0, 1), {"degree": 2.5}, ApproxError, "whole"),
    ("exp", (0, 1), {"degree": 10**6}, ApproxError, "composite"),
    ("exp", (0, 1), {"depth": 1}, ApproxError, "affine"),
    ("exp", (0, 1), {"tol": 0.0}, ApproxError, "positive"),
    ("exp", (0, 1), {"tol": math.nan}, ApproxError, "positive"),
    ("exp", (1.0, 1.0 + 2e-15), {"degree": 3}, DomainError, "apart"),
    ("sigmoid", (-1e308, 1.5e308), {"degree": 3}, DomainError, "width"),
    (lambda x: x[:2], (0, 1), {"degree": 3}, ApproxError, "element by element"),
    ("exp", [(0, 2), (1, 3)], {"degree": 3}, DomainError, "merge"),
    ("exp", [], {"degree": 3}, DomainError, "empty"),
    ("exp", (0, 1), {"degree": 3, "method": "pade"}, ApproxError, "minimax"),
    ("exp", (0, 1), {"degree": 3, "parity": "both"}, ApproxError, "parity"),
    ("exp", (0, 1), {"degree": 3, "affine": "none"}, ApproxError, "folded"),
    ("exp", [(0, 1), (2, 3)], {"degree": 3, "method": "chebyshev"}, ApproxError, "minimax"),
    ("expp", (0, 1), {"degree": 3}, ApproxError, "gelu"),
]


@pytest.mark.parametrize(("target", "domain", "request_", "error", "words"), BAD)
def test_bad_requests_say_what_to_do(target, domain, request_, error, words):
    with pytest.raises(error, match=words):
        approx.fit(target, domain, **request_)


def test_degree_zero_is_the_best_constant():
    p = approx.fit("exp", (0, 1), degree=0)
    assert p.coefficients[0] == pytest.approx((1 + math.e) / 2, rel=1e-5)
    assert p.depth == 0


def test_basis_and_split():
    u = np.array([-1.0, 0.3, 1.0])
    assert np.allclose(basis([0, 2, 3], u), np.stack([u**0, 2 * u**2 - 1, 4 * u**3 - 3 * u], 1))
    assert split([(-1, 1)], (0.0, 5.0)) == [(-1, 0.0), (0.0, 1)]


def test_complex_callables_are_refused():
    with pytest.raises(ApproxError, match="real and imaginary part"):
        approx.fit(lambda x: x + 1j, (-1, 1), degree=3)
