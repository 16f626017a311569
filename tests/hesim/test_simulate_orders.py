"""`jit`, `grad`, `vmap` and `shard_map` of a simulated function, in all orders, give one result."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import itertools, sys, warnings
warnings.simplefilter("ignore")
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
import approx
from hesim.params import CKKSParams
from hesim.simulate import simulate

jax.config.update("jax_enable_x64", True)
assert jax.device_count() == 8
cube = approx.fit("tanh", (-4.0, 4.0), degree=3)
params = CKKSParams(12, 6, 30, 40, 60, security=None)
rng = np.random.default_rng(0)
xs, w = rng.normal(size=(16, 3, 4)) / 2, rng.normal(size=(4, 4)) / 2
key = jax.random.key(7)
some = sys.argv[1] == "some"  # leaves out shards without jit, which take minutes
mesh = Mesh(np.array(jax.devices()), ("data",))
f = simulate(lambda x, w: cube(x @ w) * x, params)

def loss(w, x):
    return jnp.sum(jnp.square(f(key, x, w)))

reference = jnp.stack([jax.grad(loss)(w, x) for x in xs])
exact = jnp.stack([jax.grad(lambda w, x: jnp.sum((cube(x @ w) * x) ** 2))(w, x) for x in xs])
assert 0 < float(jnp.max(jnp.abs(reference - exact))) < 1e-3

def jit(g):
    return jax.jit(g)

def shard(g):
    # Every shard's own copy: a gradient by shared weights would be summed over shards.
    def local(w, x):
        return g(jax.lax.pcast(w, "data", to="varying"), x)

    return jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))

def vmap(g):
    return jax.vmap(g, (None, 0))

# One value a sentence, its gradient taken inside or outside of what maps over sentences.
def inner(*orders):
    g = jax.grad(loss)
    for step in orders:
        g = step(g)
    return g(w, xs)

def outer(*orders):
    g = loss
    for step in orders:
        g = step(g)
    return jax.jacrev(g)(w, xs)

count = 0
for orders in itertools.permutations([jit, vmap, shard]):
    if orders.index(vmap) > orders.index(shard):
        continue  # shards hold several sentences: they are mapped over inside
    for apply in (inner, outer):
        if some and (apply is outer or orders[-1] is not jit):
            continue
        np.testing.assert_allclose(apply(*orders), reference, rtol=1e-11, atol=1e-13)
        count += 1
for orders in ([vmap], [jit, vmap], [vmap, jit], [jit, vmap, jit]):
    for apply in (inner, outer):
        np.testing.assert_allclose(apply(*orders), reference, rtol=1e-11, atol=1e-13)
        count += 1

def total(w, x):
    return jax.lax.psum(jnp.sum(vmap(loss)(w, x)), "data")

summed = jax.shard_map(total, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
for g in (jax.jit(jax.grad(summed)), jax.grad(jax.jit(summed)), jax.grad(summed))[: 3 - some]:
    np.testing.assert_allclose(g(w, xs), reference.sum(0), rtol=1e-11, atol=1e-13)
    count += 1

def local(w, x):
    g = jax.grad(lambda w: jnp.sum(vmap(loss)(w, x)))(jax.lax.pcast(w, "data", to="varying"))
    return jax.lax.psum(g, "data")

inside = jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
for g in (jax.jit(inside), inside)[: 2 - some]:
    np.testing.assert_allclose(g(w, xs), reference.sum(0), rtol=1e-11, atol=1e-13)
    count += 1

# Keys mapped over and sharded: every device another key, the same numbers as one by one.
keys = jax.random.split(jax.random.key(1), 8)
single = jnp.stack([f(k, x, w) for k, x in zip(keys, xs)])
by_key = jax.vmap(f, (0, 0, None))
sharded = jax.shard_map(
    by_key, mesh=mesh, in_specs=(P("data"), P("data"), P()), out_specs=P("data")
)
for g in (by_key, jax.jit(by_key), jax.jit(sharded), sharded)[: 4 - some]:
    np.testing.assert_allclose(g(keys, xs[:8], w), single, rtol=1e-11, atol=1e-13)
    count += 1
print("orders:", count)
"""


@pytest.mark.parametrize(
    ("which", "orders"), [("some", 15), pytest.param("all", 23, marks=pytest.mark.slow)]
)
def test_transformations_in_all_orders_on_eight_devices(which, orders):
    flags = f"--xla_force_host_platform_device_count=8 {os.environ['XLA_FLAGS']}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, which], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip() == f"orders: {orders}"
