"""Composites: errors, levels and products of sign, ReLU, squaring and Newton's iteration."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import approx
from approx.errors import ApproxError, DomainError, ToleranceError


def test_relu_of_the_published_degrees():
    c = approx.composite("relu", (-1, 1), degrees=(15, 15, 27))
    x = np.random.default_rng(0).uniform(-1, 1, 10**5)
    x = np.concatenate([x, 0.01 * x])
    error = np.max(np.abs(c(x) - np.maximum(x, 0)))
    assert error <= c.max_error * 1.001
    assert -math.log2(c.max_error) >= 13.1
    assert c.depth == 14
    assert c.products <= 30


def test_relu_on_a_wide_domain_spends_one_level_on_its_map_unless_rescaled():
    wide = approx.composite("relu", (-50, 50), degrees=(7, 15))
    unit = approx.composite("relu", (-1, 1), degrees=(7, 15))
    x = np.linspace(-50, 50, 1001)
    assert np.allclose(wide(x), 50 * unit(x / 50), rtol=0, atol=1e-11)
    assert wide.depth == unit.depth + 1
    q = wide.rescaled(50.0)
    assert q.depth == unit.depth
    assert q.domain == (-1.0, 1.0)
    assert np.allclose(q(x / 50), wide(x), rtol=0, atol=1e-11)


def test_abs_is_twice_relu_less_the_input():
    relu = approx.composite("relu", (-4, 2), degrees=(7, 15))
    absolute = approx.composite("abs", (-4, 2), degrees=(7, 15))
    x = np.linspace(-4, 2, 2001)
    assert np.allclose(absolute(x), 2 * relu(x) - x, rtol=0, atol=1e-12)
    assert absolute.max_error == pytest.approx(2 * relu.max_error, rel=1e-6)
    assert (absolute.depth, absolute.products) == (relu.depth, relu.products)
    assert approx.composite("abs", (-1, 1), tol=0.02).max_error <= 0.02


def test_numpy_values_are_float64_whatever_comes_in():
    c = approx.composite("exp_squaring", (-8, 0), squarings=6)
    assert c(np.float32(-1.0)).dtype == np.float64
    assert c(-1.0) == c(np.float32(-1.0))


@pytest.mark.parametrize("tol", [3e-2, 2e-3])
def test_relu_by_tolerance(tol):
    c = approx.composite("relu", (-4, 2), tol=tol)
    x = np.linspace(-4, 2, 40001)
    assert np.max(np.abs(c(x) - np.maximum(x, 0))) <= tol
    assert c.max_error <= tol


def test_sign_is_certified_and_no_stage_but_the_first_has_a_map():
    domain = [(-2, -0.05), (0.05, 2)]
    c = approx.composite("sign", domain, tol=1e-4)
    assert c.certified
    assert c.max_error <= 1e-4
    x = np.concatenate([np.linspace(a, b, 50001) for a, b in c.intervals])
    assert np.max(np.abs(c(x) - np.sign(x))) <= c.max_error * (1 + 1e-9) + 1e-14
    assert all(p.scale == 1.0 and p.shift == 0.0 for p in c.polynomials[1:])
    assert c.depth == 1 + sum(p.plan.depth for p in c.polynomials)
    assert c.products == sum(p.plan.nonscalar_mults for p in c.polynomials)


def test_plain_squaring_is_the_limit_formula():
    c = approx.composite("exp_squaring", (-16384, 0), squarings=14)
    assert c.max_error == pytest.approx(2 * math.exp(-2) / 2**14, rel=1e-3)
    assert (c.depth, c.products, c.degree) == (15, 14, 2**14)
    assert c.rescaled(2.0**14).depth == 14
    x = np.linspace(-20, 0, 101)
    assert np.allclose(c(x), (1 + x / 2**14) ** (2**14), rtol=0, atol=1e-10)


def test_squaring_by_tolerance_takes_the_fewest_squarings():
    c = approx.composite("exp_squaring", (-8, 0), tol=1e-2, degree=1)
    squarings = dict(c.knobs)["squarings"]
    assert c.max_error <= 1e-2
    assert approx.composite("exp_squaring", (-8, 0), squarings=squarings - 1).max_error > 1e-2


def test_squaring_by_tolerance_alone_takes_the_fewest_levels():
    c = approx.composite("exp_squaring", (-256, 0), tol=1e-4)
    assert c.max_error <= 1e-4
    for degree in (1, 7, 31):
        other = approx.composite("exp_squaring", (-256, 0), tol=1e-4, degree=degree)
        assert (c.depth, c.products) <= (other.depth, other.products)


def test_a_fitted_seed_saves_levels_on_the_gaussian_kernel_domain():
    plain = approx.composite("exp_squaring", (-16384, 0), squarings=14).rescaled(2.0**14)
    x = -(np.random.default_rng(0).uniform(0, 1, 20001) ** 4) * 2
    for degree, squarings, levels, products in ((127, 2, 9, 30), (31, 5, 10, 18), (15, 7, 11, 16)):
        c = approx.composite("exp_squaring", (-16384, 0), degree=degree, squarings=squarings)
        q = c.rescaled(2.0**13)
        assert q.max_error <= plain.max_error
        assert q.depth <= levels < plain.depth
        assert q.products <= products
        assert np.max(np.abs(q(x) - np.exp(2.0**13 * x))) <= 1.01 * q.max_error


def test_newton_squares_the_relative_error():
    domain = (1e-3, 1)
    errors = []
    x = np.geomspace(domain[0], domain[1], 20001)
    for steps in range(4):
        c = approx.composite("inv_sqrt", domain, degree=31, steps=steps)
        errors.append(np.max(np.abs(c(x) * np.sqrt(x) - 1)))
        assert c.depth == 6 + 2 * steps
        assert c.products == c.polynomials[0].plan.nonscalar_mults + 3 * steps
    for before, after in zip(errors, errors[1:]):
        assert after == pytest.approx(1.5 * before**2 + 0.5 * before**3, rel=0.02, abs=1e-13)


def test_inv_sqrt_beats_the_published_seed_and_three_steps():
    c = approx.composite("inv_sqrt", (5e-4, 1), degree=127, steps=3)
    assert -math.log2(c.max_error) >= 25.6


def test_inv_sqrt_by_tolerance():
    c = approx.composite("inv_sqrt", (0.01, 1), tol=1e-6)
    x = np.geomspace(0.01, 1, 10001)
    assert np.max(np.abs(c(x) - x**-0.5)) <= 1e-6


@pytest.mark.parametrize(
    ("kind", "domain", "knobs"),
    [
        ("relu", (-3, 3), {"degrees": (7, 7)}),
        ("exp_squaring", (-8, 0), {"squarings": 6}),
        ("inv_sqrt", (0.01, 1), {"degree": 15, "steps": 2}),
    ],
)
def test_jax_values_are_those_of_numpy_and_the_graph_is_visible(kind, domain, knobs):
    c = approx.composite(kind, domain, **knobs)
    x = np.linspace(domain[0], domain[1], 33)
    with jax.enable_x64(True):
        assert np.allclose(jax.jit(c)(jnp.asarray(x)), c(x), rtol=1e-12, atol=1e-12)
        slope = jax.vmap(jax.grad(c))(jnp.asarray(x[1:-1]))
        h = 1e-6
        assert np.allclose(slope, (c(x[1:-1] + h) - c(x[1:-1] - h)) / (2 * h), rtol=1e-4, atol=1e-4)
    text = str(jax.make_jaxpr(c)(jnp.ones(3)))
    assert text.count("polynomial[") == len(c.polynomials)
    assert len(repr(c)) < 150


def test_growth_outside_the_domain():
    c = approx.composite("relu", (-1, 1), degrees=(7, 7))
    assert c.growth(0.0) == pytest.approx(1.0, abs=0.05)
    assert c.growth(0.25) > 100


BAD = [
    ("softmax", (0, 1), {"tol": 1e-2}, ApproxError, "Unknown"),
    ("relu", (-1, 1), {}, ApproxError, "degrees"),
    ("relu", (1, 2), {"tol": 1e-2}, DomainError, "a < 0 < b"),
    ("relu", (-1, 1), {"degrees": (4,)}, ApproxError, "odd"),
    ("relu", (-1, 1), {"degrees": (3,), "tol": 1e-6}, ToleranceError, "stages"),
    ("relu", (-1, 1), {"tol": -1.0}, ApproxError, "positive"),
    ("sign", (-1, 1), {"tol": 1e-2}, DomainError, "gap"),
    ("exp_squaring", (-1, 1), {"tol": 1e-2}, DomainError, "b <= 0"),
    ("exp_squaring", (-1, 0), {}, ApproxError, "squarings"),
    ("inv_sqrt", (0, 1), {"tol": 1e-2}, DomainError, "0 < a"),
    ("inv_sqrt", (0.1, 1), {"degree": 7}, ApproxError, "steps"),
    ("inv_sqrt", (0.1, 1), {"degree": 3, "steps": 0, "tol": 1e-9}, ToleranceError, "narrow"),
]


@pytest.mark.parametrize(("kind", "domain", "knobs", "error", "words"), BAD)
def test_bad_requests_say_what_to_do(kind, domain, knobs, error, words):
    with pytest.raises(error, match=words):
        approx.composite(kind, domain, **knobs)


@pytest.mark.parametrize("domain", [(1e-3, 1), (-2, -0.01)])
def test_goldschmidt_squares_the_relative_error_a_level_a_step(domain):
    x = np.geomspace(domain[0], domain[1], 20001)
    errors = []
    for steps in range(4):
        c = approx.composite("inv", domain, degree=15, steps=steps)
        errors.append(np.max(np.abs(c(x) * x - 1)))
        seed = c.polynomials[0]
        assert c.depth == seed.depth + (1 + steps if steps else 0)
        assert c.products == seed.plan.nonscalar_mults + 2 * steps
        assert np.max(np.abs(c(x) - 1 / x)) <= c.max_error * 1.0001
    for before, after in zip(errors, errors[1:]):
        assert after == pytest.approx(before**2, rel=1e-6)


def test_inv_by_tolerance_over_a_wide_range():
    c = approx.composite("inv", (1e-3, 1), tol=1e-4)
    x = np.geomspace(1e-3, 1, 20001)
    assert np.max(np.abs(c(x) - 1 / x)) <= c.max_error * 1.0001 <= 1e-4
    with pytest.raises(DomainError, match="0"):
        approx.composite("inv", (-1, 1), tol=1e-2)


def test_maximum_of_two():
    relu = approx.composite("relu", (-4, 4), tol=1e-2)
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-2, 2, (2, 10001))
    assert np.max(np.abs(approx.maximum(a, b, relu) - np.maximum(a, b))) <= 1e-2


@pytest.mark.parametrize(
    ("kind", "domain", "knobs"),
    [
        ("relu", (-3, 3), {"degrees": (7, 7), "multiplied": "early"}),
        ("sign", [(-1, -0.1), (0.1, 1)], {"degrees": (3, 7)}),
        ("inv_sqrt", (0.01, 1), {"degree": 7, "steps": 1}),
        ("exp_squaring", (-8, 0), {"degree": 5, "squarings": 2}),
    ],
)
def test_json_keeps_every_bit(kind, domain, knobs):
    c = approx.composite(kind, domain, **knobs).rescaled(0.3)
    again = approx.Composite.from_json(c.to_json())
    assert again == c
    x = np.linspace(*c.hull, 101)
    assert np.array_equal(again(x), c(x))
    with pytest.raises(ApproxError, match="stored composite"):
        approx.Composite.from_dict({"name": "relu"})


@pytest.mark.parametrize(
    ("kind", "domain", "knobs"),
    [
        ("inv", (0.1, 4), {"degree": 7, "steps": 2}),
        ("inv_sqrt", (0.1, 4), {"degree": 7, "steps": 2}),
        ("relu", (-4, 4), {"degrees": (7, 7)}),
        ("relu", (-4, 4), {"degrees": (7, 7), "multiplied": "early"}),
        ("abs", (-4, 4), {"degrees": (7, 7)}),
        ("exp_squaring", (-8, 0), {"squarings": 5}),
    ],
)
def test_rescaled_is_the_same_function_of_the_multiplied_input(kind, domain, knobs):
    c = approx.composite(kind, domain, **knobs)
    x = np.linspace(*c.hull, 257)
    for m in (0.3, 2.5):
        q = c.rescaled(m)
        assert q.depth <= c.depth
        assert q.hull == pytest.approx((c.hull[0] / m, c.hull[1] / m))
        np.testing.assert_allclose(q(x / m), c(x), rtol=1e-12, atol=1e-12)
