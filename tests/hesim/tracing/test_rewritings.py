"""Operations that tracing writes in other ones give on slots what they give in JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from hesim import NotHomomorphicError, TraceError, trace

pytestmark = pytest.mark.filterwarnings("ignore::hesim.params.InsecureParametersWarning")

RNG = np.random.default_rng(0)
X = np.linspace(-0.9, 1.1, 12).reshape(4, 3)
A = np.tril(RNG.normal(size=(4, 4))) + 3.0 * np.eye(4)
IMAGE = RNG.normal(size=(2, 2, 4, 4))
KERNEL = RNG.normal(size=(2, 1, 2, 2))
ORDER = np.array([3.0, -1.0, 2.0, 0.0])


def convolution(x, w, **options):
    return lax.conv_general_dilated(x, w, options.pop("strides", (1, 1)), "SAME", **options)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: lax.reduce(x, 0.0, lambda a, b: a + b + a * b, (0,)),
        lambda x: lax.reduce(x, 0.5, lambda a, b: 0.5 * (a + b), (1,)),
        lambda x: lax.reduce(x[:0], 0.5, lambda a, b: a + b * a, (0,)) + x[0],
        lambda x: lax.reduce(
            (x, 2.0 * x), (0.0, 0.0), lambda a, b: (a[0] + b[0], a[1] - b[0]), (1,)
        ),
        lambda x: lax.reduce_window(x, 1.0, lax.mul, (2, 1), (2, 1), "VALID"),
        lambda x: lax.reduce_window(x, 0.25, lambda a, b: a + b + a * b, (2, 2), (1, 2), "SAME"),
        lambda x: lax.reduce_window(x, 0.0, lax.add, (3, 1), (1, 1), "SAME", (1, 2), (1, 1)),
        lambda x: lax.cumprod(x, 0),
        lambda x: lax.cumprod(x, 1, reverse=True),
        lambda x: lax.cumsum(x, 0, reverse=True),
        lambda x: jnp.unstack(x, axis=1),
        lambda x: x ** np.array([0, 1, 3]),
        lambda x: lax.composite(lambda x: x * x, "toy")(x),
        lambda x: checkpoint_name(x * x, "kept"),
        lambda x: jax.device_put(x) * 2.0,
        lambda x: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * x), (0, x))[1],
        lambda x: lax.switch(1, [jnp.exp, jnp.negative], x),
        lambda x: lax.fori_loop(0, 2, lambda i, c: c.at[i].apply(jnp.square), x),
    ],
)
def test_operations_on_one_tensor(as_function, fn):
    as_function(fn, X)


@pytest.mark.parametrize(
    ("fn", "args"),
    [
        (lambda x, k: lax.sort((k, x[:, 0]), num_keys=1), (X, ORDER)),
        (lambda x, k: lax.sort((k, k * 2, x[:, 0]), num_keys=2)[2], (X, ORDER)),
        (lambda x, a: lax.linalg.triangular_solve(a, x, left_side=True, lower=True), (X, A)),
        (lambda x, a: lax.linalg.triangular_solve(a, x.T, transpose_a=True, lower=True), (X, A)),
        (lambda x, a: jnp.linalg.solve(a, x), (X, A)),
        (lambda x, a: jnp.linalg.inv(a) @ x, (X, A)),
        (lambda x, w: convolution(w, x, feature_group_count=2), (KERNEL, IMAGE)),
        (lambda x, w: convolution(w, x, strides=(2, 1)), (KERNEL.repeat(2, 1), IMAGE)),
        (
            lambda x, g: lax.ragged_dot(
                x, jnp.stack([jnp.ones((3, 2)), 2.0 * jnp.ones((3, 2))]), g
            ),
            (X, np.array([1, 3], np.int32)),
        ),
        (
            lambda x, g: lax.ragged_dot(jnp.ones((4, 4)), jnp.stack([x, x * 2.0]), g),
            (X, np.array([1, 3], np.int32)),
        ),
        (
            lambda x, a: lax.linalg.tridiagonal_solve(a[0] * 0.1, a[1] + 3, a[2], x),
            (X, RNG.normal(size=(3, 4)) * np.array([[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]])),
        ),
        (lambda x, c: lax.linalg.symmetric_product(x, c, alpha=0.5, beta=2.0), (X, A + A.T)),
    ],
)
def test_operations_with_public_operands(as_function, fn, args):
    as_function(fn, *args)


def test_convolutions_of_two_encrypted_tensors(as_function):
    both = {"encrypted": (0, 1)}
    as_function(convolution, IMAGE, KERNEL.repeat(2, 1)[:1], **both)
    dilated = {"lhs_dilation": (2, 1), "rhs_dilation": (1, 2), "batch_group_count": 2}
    fn = lambda x, w: lax.conv_general_dilated(x, w, (2, 1), ((1, 0), (-1, 2)), **dilated)
    as_function(fn, IMAGE[:, :, :3, :3], KERNEL.repeat(2, 1), **both)


def test_the_gradient_of_pooling_by_public_activations_is_linear_in_the_labels(as_function):
    def loss(w, y):
        pooled = lax.reduce_window(w, -np.inf, lax.max, (2, 1), (2, 1), "VALID")
        return jnp.sum((pooled - y) ** 2)

    as_function(lambda y, w: jax.grad(loss)(w, y), X[:2], X)
    # Differentiated forward along an encrypted direction, too.
    pool = lambda w: lax.reduce_window(w, -np.inf, lax.max, (2, 1), (2, 1), "VALID")
    as_function(lambda t, w: jax.jvp(pool, (w,), (t,))[1], X, X[::-1] ** 2)


def test_loops_that_depend_on_the_run_are_refused():
    with pytest.raises(NotHomomorphicError, match="fixed number of steps"):
        trace(lambda x, n: lax.fori_loop(0, n, lambda i, c: c * 2.0, x), X, np.int32(3))
    with pytest.raises(TraceError, match="more than 10,000 steps"):
        trace(lambda x: lax.while_loop(lambda c: True, lambda c: -c, x), X)
