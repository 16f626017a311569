"""Elementwise operations on the slot machine equal their float64 values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import approx
from hesim import refresh
from hesim.circuit.publics import NonFiniteOperandError
from tests.hesim.circuit.conftest import quiet_params

BINARY = {"add": lax.add, "sub": lax.sub, "mul": lax.mul}


@pytest.mark.parametrize("name", BINARY)
@given(data=st.data())
def test_two_encrypted(check, drawing, name, data):
    draw = drawing(data)
    shape = draw.shape()
    check(
        BINARY[name],
        draw.array(*shape),
        draw.array(*shape),
        encrypted=(0, 1),
        **draw.options(shape, shape),
    )


@pytest.mark.parametrize("name", [*BINARY, "div"])
@given(data=st.data())
def test_encrypted_and_public(check, drawing, name, data):
    draw = drawing(data)
    shape = draw.shape()
    public_first = name != "div" and draw(st.booleans(), "public first")
    fn = lax.div if name == "div" else BINARY[name]
    x, y = draw.array(*shape), draw.array(*shape)
    if name == "div":
        y = np.where(np.abs(y) < 0.3, 2.0, y)
    if public_first:
        check(lambda y, x: fn(x, y), y, x, **draw.options(shape))
    else:
        check(fn, x, y, **draw.options(shape))


@pytest.mark.parametrize("name", BINARY)
@given(data=st.data())
def test_axes_of_size_one_spread(check, drawing, name, data):
    draw = drawing(data)
    shape = draw.shape(least=2)
    thin = [tuple(1 if draw(st.booleans()) else d for d in shape) for _ in range(2)]
    secret = draw(st.sampled_from([(0,), (1,), (0, 1)]), "encrypted")
    x, y = (draw.array(*s) for s in thin)
    check(
        lambda x, y: BINARY[name](x, y),
        x,
        y,
        encrypted=secret,
        **draw.options(*(thin[k] for k in secret)),
    )


@given(data=st.data())
def test_numpy_broadcasting(check, drawing, data):
    draw = drawing(data)
    shape = draw.shape(least=2)
    other = shape[draw(st.integers(0, len(shape) - 1)) :]
    secret = draw(st.sampled_from([(0,), (1,), (0, 1)]), "encrypted")
    shapes = (shape, other)
    check(
        lambda x, y: x * y + x - y,
        *(draw.array(*s) for s in shapes),
        encrypted=secret,
        **draw.options(*(shapes[k] for k in secret)),
    )


@given(data=st.data(), power=st.integers(0, 7))
def test_powers(check, drawing, data, power):
    draw = drawing(data)
    shape = draw.shape(most=2)
    check(
        lambda x: (lax.integer_pow(x, power), -x, lax.square(x)),
        draw.array(*shape),
        **draw.options(shape),
    )


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2, 3.0, np.full((3,), 2.0)])
def test_whole_exponents(check, exponent):
    x = np.array([[0.5, -1.5, 2.0], [0.0, 1.0, -0.25]])
    check(lambda x: x**exponent, x)
    check(lambda x: jnp.power(x, jnp.asarray(exponent) * jnp.ones(3)), x)


@settings(max_examples=10)
@given(data=st.data(), factor=st.sampled_from([2.0, -1.0, 0.5, 3.0, -0.1, 20.0, 1e-4, 0.0]))
def test_pending_factors(check, drawing, data, factor):
    """Products by constants are free; sums, products and polynomials of them must still agree."""
    draw = drawing(data)
    shape = draw.shape(most=3)
    x, y, w = (draw.array(*shape) for _ in range(3))

    def fn(x, y, w):
        z = x * factor
        return z + y, y - z, z * z, z * y, z + w, w - z, z / 7.0, z * w, (z + 1.0) * factor

    check(fn, x, y, w, encrypted=(0, 1), **draw.options(shape, shape))


def test_small_factors_do_not_inflate_what_is_added_to_them(check):
    """At level 0 slots hold less than 2^9: a pending factor must not push public values past it."""
    rng = np.random.default_rng(0)
    x, y, w = (rng.normal(size=(2, 3)) for _ in range(3))

    def fn(x, y, w):
        small = (x * 0.01) * (x * 0.01) * 0.1
        return (
            *(small - 0.25, small + w, small + y, y - small, jnp.concatenate([small, y, w])),
            *(jnp.where(w > 0, small, y), jnp.pad(small, 1, constant_values=3.0), small * small),
            small.at[0].set(w[0]),
        )

    check(fn, x, y, w, encrypted=(0, 1))
    check(fn, x, y, w, encrypted=(0,))


@settings(max_examples=10)
@given(data=st.data())
def test_exact_zeros(check, drawing, data):
    draw = drawing(data)
    shape = draw.shape(most=3)
    poly = approx.fit("tanh", (-4, 4), degree=5)
    x, y, w = (draw.array(*shape) for _ in range(3))

    def fn(x, y, w):
        z = x * 0.0
        padded = jnp.concatenate([z, x], axis=0)
        return (
            *(z, z + 1.0, z + w, w - z, z + y, y - z, z * y, z * w, -z, z / w.sum()),
            *(poly(z), poly(padded), padded * padded, padded + 1.0, refresh(z), z.sum(), z**0),
        )

    check(fn, x, y, np.abs(w) + 1.0, encrypted=(0, 1), **draw.options(shape, shape))


@given(data=st.data())
def test_public_operands_that_are_zero(check, drawing, data):
    draw = drawing(data)
    shape = draw.shape(most=3)
    check(
        lambda x, w: (x * w, x + w, x * w + 1.0, jnp.tensordot(x, w, len(shape))),
        draw.array(*shape),
        np.zeros(shape),
        **draw.options(shape),
    )


@settings(max_examples=10)
@given(data=st.data(), target=st.sampled_from(["gelu", "tanh", "exp", "silu"]))
def test_polynomials(check, drawing, data, target):
    draw = drawing(data)
    shape = draw.shape(most=3)
    poly = approx.fit(target, (-5, 5), degree=draw(st.integers(1, 9), "degree"))
    x = np.clip(draw.array(*shape), -4, 4)

    def fn(x):
        part = x[..., : max(shape[-1] - 1, 1)]
        return poly(x), poly(x * 0.5) * 2.0 + x, poly(part) + 1.0, poly(-x).sum()

    check(fn, x, **draw.options(shape))


def test_polynomial_of_a_constant_and_a_line(check):
    x = np.linspace(-1, 1, 6).reshape(2, 3)
    for degree in (0, 1, 2):
        poly = approx.fit("tanh", (-1, 1), degree=degree)
        check(lambda x, poly=poly: poly(x) * x, x)


@given(data=st.data())
def test_refresh(check, drawing, data):
    draw = drawing(data)
    shape = draw.shape(most=3)
    circuit = check(
        lambda x: refresh(x * x) * refresh({"a": x})["a"],
        draw.array(*shape),
        **draw.options(shape),
    )
    assert circuit.ledger.refreshes >= 1
    assert circuit.ledger.refresh_rounds >= 1


@settings(max_examples=10)
@given(data=st.data())
def test_selection(check, drawing, data):
    draw = drawing(data)
    shape = draw.shape(most=3)
    mask = draw.rng.random(shape) < 0.5
    row = draw.rng.random(shape[-1]) < 0.5
    secret = draw(st.sampled_from([(0,), (0, 1)]), "encrypted")
    x, y = draw.array(*shape), draw.array(*shape)
    options = draw.options(*[shape] * len(secret))

    def fn(x, y, m):
        return (
            *(jnp.where(mask, x, y), jnp.where(row, y, x), jnp.where(mask, x, 0.0)),
            *(jnp.where(m, x, y), jnp.where(m, 2.0 * x, 1.0), jnp.where(m, 0.0, x)),
            *(jnp.where(mask & m, x, 3.0), lax.select(m.all(), x, y), jnp.where(True, x, y)),
        )

    check(fn, x, y, draw.rng.random(shape) < 0.5, encrypted=secret, **options)


def test_selection_among_three(check):
    rng = np.random.default_rng(0)
    x, y, z = (rng.normal(size=(3, 4)) for _ in range(3))
    which = rng.integers(0, 3, (3, 4))
    for encrypted in ((0,), (0, 2), (0, 1, 2)):
        check(lambda x, y, z, w: lax.select_n(w, x, y, z), x, y, z, which, encrypted=encrypted)
        check(lambda x, y, z: lax.select_n(which, x, y, z), x, y, z, encrypted=encrypted)


@pytest.mark.parametrize("predicate", [True, False])
def test_conditional_on_a_public_predicate(check, predicate):
    x = np.linspace(-1, 1, 6).reshape(2, 3)

    def fn(x, p):
        return lax.cond(p, lambda a: (a * 2.0, a.sum()), lambda a: (a * a, 1.0 + a[0, 0]), x)

    check(fn, x, np.bool_(predicate))
    check(lambda x: lax.cond(predicate, jnp.square, jnp.negative, x), x)


@pytest.mark.parametrize("index", [-1, 0, 1, 2, 7])
def test_switch_clamps_its_index(check, index):
    x = np.linspace(-1, 1, 6).reshape(2, 3)
    branches = [lambda a: a * 2.0, lambda a: a * a, lambda a: a - 1.0]
    check(lambda x, i: lax.switch(i, branches, x), x, np.int32(index))


def test_conversions_between_floats(check):
    x = np.linspace(-1, 1, 6).reshape(2, 3)
    check(lambda x: x.astype(jnp.bfloat16).astype(jnp.float16) * 2, x)
    check(lambda x: lax.stop_gradient(jnp.copy(x)) * x, x)
    check(lambda x: lax.optimization_barrier((x, x * x)), x)


def test_scalars(check):
    check(lambda x: x * x + 1.0, np.float64(0.3))
    check(lambda x, y: x * y + x, np.array([[0.5, 2.0]]), np.float64(0.3), encrypted=(0, 1))
    check(lambda x, y: x * y + x, np.array([[0.5, 2.0]]), np.float64(0.3), encrypted=(1,))


def test_constants_are_computed_in_double_precision(check):
    x = np.linspace(-1, 1, 6).reshape(2, 3)
    check(lambda x: x * jnp.exp(jnp.ones(3)) + jnp.sqrt(jnp.full((2, 1), 3.0)), x)


def test_outputs_that_need_no_computation(check):
    x, w = np.linspace(-1, 1, 6).reshape(2, 3), np.ones((2, 2))
    circuit = check(lambda x, w: (x, x.T, 2.0 * x[0], w + 1.0, jnp.ones(3), x * 0.0), x, w)
    assert len(circuit) == circuit.ledger.inputs


def test_jit_and_named_functions(check):
    x = np.linspace(-1, 1, 6).reshape(2, 3)
    check(lambda x: jax.jit(lambda a: jnp.dot(a, a.T))(x) + jnp.trace(x @ x.T), x)


@pytest.mark.parametrize(
    ("fn", "w", "message"),
    [
        (
            lambda x, w: x * w,
            np.array([1.0, np.nan, np.inf]),
            "`mul` at .*2 of 3 elements of a pub",
        ),
        (lambda x, w: x / w, np.array([1.0, 0.0, 2.0]), "`div` at .*1 of 3 .*reciprocal"),
        (lambda x, w: x + jnp.log(w), np.array([1.0, -1.0, 2.0]), "`add` at .*made by log at"),
        (lambda x, w: x * jnp.inf + w, np.ones(3), "`mul` at .*a constant of the function"),
    ],
)
def test_public_operands_that_are_not_finite(check, fn, w, message):
    with pytest.raises(NonFiniteOperandError, match=message):
        check(fn, np.ones((2, 3)), w)


@pytest.mark.parametrize("name", ["product", "sum", "outer", "numbers"])
def test_one_element_meets_many_numbers_in_one_ciphertext(check, name):
    w = np.linspace(0.1, 0.9, 300)
    fn, args = {
        "product": (lambda s, w: s * w, (np.float64(0.5), w)),
        "sum": (lambda s, w: s + w, (np.float64(0.5), w)),
        "outer": (lambda s, w: jnp.outer(s, w), (np.linspace(0.1, 0.3, 3), w)),
        "numbers": (lambda s: s * jnp.arange(64.0) / 64, (np.float64(0.5),)),
    }[name]
    circuit = check(fn, *args, params=quiet_params(12))
    (tap,) = circuit.outputs
    assert len(tap.ciphers) == 1 and circuit.ledger.plain_products <= 1
