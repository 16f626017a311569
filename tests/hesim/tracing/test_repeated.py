"""An operation that is written twice is done once."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from hesim import refresh
from hesim.trace import trace

X = np.linspace(-1.0, 1.0, 6).reshape(2, 3)


def _names(fn) -> list[str]:
    return [e.name for e in trace(fn, X).ops]


def test_equal_operations_are_one():
    fn = lambda x: jnp.vdot(x, x) + jnp.vdot(x, x) * 2.0 + jnp.vdot(x, x) * x
    assert _names(fn).count("dot_general") == 1
    assert np.allclose(trace(fn, X)(X), fn(X), atol=1e-5)


def test_operations_that_differ_stay():
    def fn(x):
        return x[:1] * x[1:], x[:1] * 2.0, x[:1] * 3.0, x.sum(0), x.sum(1), x.T @ x, x @ x.T

    names = _names(fn)
    assert names.count("slice") == 2 and names.count("mul") == 3
    assert names.count("reduce_sum") == 2 and names.count("dot_general") == 2


def test_refreshes_stay():
    assert _names(lambda x: refresh(x) + refresh(x)).count("refresh") == 2


def test_constants_of_other_values_are_told_apart():
    def fn(x):
        return lax.dot(x, jnp.ones((3, 2))) - lax.dot(x, 2 * jnp.ones((3, 2)))

    assert _names(fn).count("dot_general") == 2
