"""What is zero whatever is encrypted leaves public values public."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hesim.trace import trace

X = np.linspace(-1.0, 1.0, 6).reshape(2, 3)
C = jnp.asarray([0.3, -0.2, 0.7, 0.5])


def looped(x):
    return jax.lax.fori_loop(0, 3, lambda i, c: c * x + 0.5, jnp.zeros_like(x))


CASES = {
    "times zero": (lambda x: (x * 0.0 + 0.3) * x, 0),
    "minus itself": (lambda x: (0.3 - (x - x)) * x, 0),
    "zeros times it": (lambda x: (jnp.zeros_like(x) * x + 0.3) * x, 0),
    "a sum of zeros": (lambda x: (jnp.sum(x * 0.0, 1, keepdims=True) + X) * x, 1),
    "a loop from zeros": (looped, 1),
    "Horner's rule": (lambda x: jnp.polyval(C, x), 3),
    "not zero": (lambda x: (x * 1.0 + 0.3) * x, 1),
    "another value": (lambda x: (x - 2.0 * x + 0.3) * x, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_public_sums_take_no_level(name):
    fn, levels = CASES[name]
    program = trace(fn, X)
    products = sum(
        e.name in ("mul", "square") and all(v.encrypted for v in e.inputs) for e in program.ops
    )
    assert products <= levels
    found = program(X)
    assert np.allclose(found, fn(X), atol=1e-6)


def test_zeros_are_results_as_they_were():
    program = trace(lambda x: (x - x, x * 0.0), X)
    assert all(v.encrypted for v in program.outputs)


def test_what_is_added_to_zeros_has_its_shape():
    program = trace(lambda x: (x * 0.0 + 1.0, 2.0 - x * 0.0), X)
    one, two = program(X)
    assert np.array_equal(one, np.ones(X.shape)) and np.array_equal(two, 2 * one)
