"""Sums of many equal terms, and tensors without elements."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from he_backend import run
from hesim import trace

X = np.linspace(-0.5, 0.5, 4)


@pytest.mark.parametrize("count", [127, 128, 200, 400])
def test_equal_products_are_counted(check, count):
    """One product, taken so many times."""
    both = lambda x: jnp.sum(jnp.broadcast_to(x, (count, 4)) * jnp.broadcast_to(x, (count, 4)), 0)
    check(both, X)


def test_equal_summands_are_counted(check):
    check(lambda x: jnp.sum(jnp.broadcast_to(x * x, (300, 4)), 0), X)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.sum() + 1.0,
        lambda x: jnp.prod(x) * jnp.ones(3),
        lambda x: x.sum() * x.sum(),
        lambda x: jnp.concatenate([x, jnp.ones(3)]) * 2.0,
        lambda x: x[:, None] @ jnp.ones((1, 2)),
        lambda x: (x, jnp.ones(2) + x.sum()),
    ],
)
def test_inputs_without_elements(check, fn):
    check(fn, np.zeros(0))


def test_an_input_without_elements_beside_another(check):
    check(lambda x, y: x.sum() * 2.0 + y, np.zeros(0), X, encrypted=(0, 1))


def test_results_without_elements_are_compared(small_params):
    for fn in (lambda x: x[:0], lambda x: (x[:0] * 2.0, x * 2.0)):
        report = run(trace(fn, X), X, params=small_params(), backend="slots", compare=True)
        found = jax.tree.leaves(report.outputs)
        assert [x.shape for x in found] == [x.shape for x in jax.tree.leaves(fn(X))]


def test_a_random_key_is_an_argument(small_params):
    fn = lambda x, key: x * jax.random.normal(key, (4,))
    key = jax.random.key(0)
    report = run(trace(fn, X, key), X, key, params=small_params(), backend="slots")
    np.testing.assert_allclose(report.outputs, fn(jnp.asarray(X), key), atol=1e-6)
