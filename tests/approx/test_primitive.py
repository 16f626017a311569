"""The ``polynomial`` primitive under every JAX transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from approx.polynomial import ONE_MINUS_SQUARE, Polynomial, affine_map

COEFFICIENTS = tuple(np.random.default_rng(0).standard_normal(12) / 2.0 ** np.arange(12))
P = Polynomial(COEFFICIENTS, ((-4.0, 2.0),), *affine_map(((-4.0, 2.0),)), name="p")
X = np.linspace(-4.0, 2.0, 7)


def count(function, *args):
    text = str(jax.make_jaxpr(function)(*args))
    return text.count("= polynomial[")


def test_a_call_is_one_equation_with_a_short_parameter():
    text = str(jax.make_jaxpr(P)(jnp.ones(3)))
    assert text.count("polynomial[") == 1
    assert len(text) < 200


def test_a_gradient_is_two_equations():
    assert count(jax.grad(lambda x: P(x).sum()), jnp.ones(3)) == 2


def test_values_and_gradients_in_every_order_of_transformations():
    with jax.enable_x64(True):
        x = jnp.asarray(X)
        value, slope = P(X), P.derivative()(X)
        curvature = P.derivative().derivative()(X)
        for f in (P, jax.jit(P), jax.vmap(P), jax.jit(jax.vmap(P)), jax.vmap(jax.jit(P))):
            assert np.allclose(f(x), value, rtol=1e-12, atol=1e-13)
        for g in (
            jax.vmap(jax.grad(P)),
            jax.jit(jax.vmap(jax.grad(P))),
            jax.vmap(jax.grad(jax.jit(P))),
            jax.grad(lambda x: jax.vmap(P)(x).sum()),
            jax.vmap(jax.jacfwd(P)),
            jax.vmap(jax.grad(jax.checkpoint(P))),
        ):
            assert np.allclose(g(x), slope, rtol=1e-12, atol=1e-13)
        for h in (jax.vmap(jax.hessian(P)), jax.jit(jax.vmap(jax.grad(jax.grad(P))))):
            assert np.allclose(h(x), curvature, rtol=1e-12, atol=1e-12)


def test_scan_and_remat_gradients_agree_with_unrolled():
    def unrolled(x):
        for _ in range(3):
            x = 0.1 * P(x)
        return x.sum()

    def scanned(x):
        step = jax.checkpoint(lambda c, _: (0.1 * P(c), None))
        return jax.lax.scan(step, x, None, length=3)[0].sum()

    x = jnp.asarray(X, dtype=jnp.float32)
    assert np.allclose(jax.grad(unrolled)(x), jax.grad(scanned)(x), rtol=1e-5, atol=1e-6)


def test_dtypes():
    assert P(jnp.ones(2, jnp.float32)).dtype == jnp.float32
    assert P(jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16
    assert P(jnp.ones(2, jnp.int32)).dtype == jnp.float32
    assert not P(jnp.asarray(1.0)).weak_type


def test_gradient_inside_shard_map():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("d")
    gradient = jax.grad(lambda x: P(x).sum())
    sharded = jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=spec, out_specs=spec))
    x = jnp.asarray(X, dtype=jnp.float32)
    assert np.allclose(sharded(x), gradient(x), rtol=1e-6)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_exports_for_accelerators(platform):
    f = jax.jit(jax.value_and_grad(lambda x: P(x).sum()))
    assert export.export(f, platforms=[platform])(jnp.ones(3)).platforms == (platform,)


def test_value_rule_reuses_the_value():
    q = P.with_derivative("value")
    x = jnp.asarray(X, dtype=jnp.float32)
    assert count(jax.grad(lambda x: q(x).sum()), x) == 1
    assert np.array_equal(jax.grad(lambda x: q(x).sum())(x), q(x))
    assert np.array_equal(q(X), P(X))


def test_rules_of_the_value_and_of_the_input():
    x = jnp.asarray(X, dtype=jnp.float32)
    tanh_like = P.with_derivative(ONE_MINUS_SQUARE, of="value")
    slope = jax.vmap(jax.grad(tanh_like))(x)
    assert np.allclose(slope, 1.0 - np.asarray(P(x)) ** 2, rtol=1e-4, atol=1e-5)
    line = Polynomial((0.0, 1.0), ((-4.0, 2.0),), *affine_map(((-4.0, 2.0),)))
    assert np.allclose(jax.vmap(jax.grad(P.with_derivative(line)))(x), line(X), atol=1e-6)


def test_rescaled_polynomials_keep_the_chain_rule_with_a_rule():
    with jax.enable_x64(True):
        for q in (
            P,
            P.with_derivative(P.derivative()),
            P.with_derivative("value"),
            P.with_derivative(ONE_MINUS_SQUARE, of="value"),
        ):
            x = jnp.asarray(X) / 3.0
            expected = 3.0 * jax.vmap(jax.grad(q))(3.0 * x)
            assert np.allclose(jax.vmap(jax.grad(q.rescaled(3.0)))(x), expected, rtol=1e-11)


def test_jvp_with_a_symbolic_zero_tangent():
    @jax.custom_jvp
    def stopped(x):
        return x

    stopped.defjvp(lambda primals, tangents: (primals[0], jnp.zeros_like(primals[0])))
    assert np.array_equal(jax.grad(lambda x: P(stopped(x)).sum())(jnp.ones(3)), np.zeros(3))
    assert jax.grad(lambda x: P(jax.lax.stop_gradient(x)) + x)(1.0) == 1.0
