"""Gradients of compositions trace, compile and run like anything else."""

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

GELU = approx.fit("gelu", (-8, 8), degree=7)
SOFT = approx.fit("tanh", (-8, 8), degree=5)


def network(weights, x):
    first, second, bias = weights
    h = GELU(x @ first + bias)
    h = refresh(h - h.mean(-1, keepdims=True))
    return SOFT(h @ second)


def loss(weights, x, y):
    return jnp.mean((network(weights, x) - y) ** 2)


@settings(max_examples=10)
@given(data=st.data())
def test_gradient_of_a_network_with_encrypted_data(check, drawing, data):
    draw = drawing(data)
    b, d, h, e = (draw(st.integers(1, 4)) for _ in range(4))
    weights = tuple(0.5 * draw.array(*s) for s in ((d, h), (h, e), (h,)))
    x, y = draw.array(b, d), draw.array(b, e)
    encrypted = draw(st.sampled_from([(1,), (1, 2), (0,), (0, 1)]), "encrypted")
    check(
        lambda w, x, y: jax.value_and_grad(loss)(w, x, y),
        *(weights, x, y),
        encrypted=encrypted,
        batch=draw(st.booleans(), "batch"),
    )


@pytest.mark.parametrize(
    "fn",
    [
        lambda x, w: jnp.sum(jnp.cumsum(x, 0) * w),
        lambda x, w: jnp.sum(lax.cumsum(x * w, 1, reverse=True) ** 2),
        lambda x, w: jnp.sum(x[np.array([0, 2, 2])] * w[:3]),
        lambda x, w: jnp.sum(x[:, 1:] * w[:, :-1]) + x[0, 0] ** 3,
        lambda x, w: jnp.sum(jnp.pad(x, ((1, 2), (0, 1)))[1:5] ** 2),
        lambda x, w: jnp.sum(jnp.where(w > 0, x, 0.0) ** 2),
        lambda x, w: jnp.prod(x, 1).sum() + jnp.sum((x / (1.0 + w * w)) ** 2),
        lambda x, w: jnp.sum(jnp.concatenate([x, w], 1) @ jnp.concatenate([w, x], 1).T),
        lambda x, w: jnp.sum(x.reshape(2, -1)[::-1] * x.reshape(2, -1)),
        lambda x, w: jnp.sum(lax.dynamic_slice(x, (1, 0), (2, 2)) ** 2),
        lambda x, w: jnp.sum(x.at[1].set(w[0]).at[:, 0].add(x[:, 1]) ** 2),
        lambda x, w: jnp.sum(jnp.einsum("ij,kj,kl->il", x, w, x) ** 2),
        lambda x, w: jnp.sum(lax.conv(x[None, None], w[None, None, :2, :2], (1, 1), "SAME") ** 2),
    ],
)
def test_gradients_of_single_operations(check, fn):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(4, 4)), rng.normal(size=(4, 4))
    check(jax.grad(fn), x, w)


def test_gradient_at_places_that_are_arguments(check):
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(4, 3)), np.array([0, 2, 2, 1])

    def fn(x, labels):
        return jnp.sum(jnp.take_along_axis(x, labels[:, None], 1) ** 2) + jnp.sum(x[labels] ** 2)

    check(jax.grad(fn), x, labels)


def test_second_derivatives(check):
    x = np.linspace(-1, 1, 4)
    check(jax.hessian(lambda x: jnp.sum(SOFT(x) * x[::-1])), x)
    check(jax.jacfwd(lambda x: x * x.sum()), x)


def test_vmapped_functions(check):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(3, 4)), rng.normal(size=(4, 4))
    check(jax.vmap(lambda r, w: r @ w @ r, (0, None)), x, w)
    check(jax.vmap(jax.grad(lambda r, w: SOFT(r @ w @ r)), (0, None)), 0.3 * x, w)
