"""Sums, products and running sums on the slot machine equal their float64 values."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from hesim.circuit.builder import Builder
from hesim.circuit.circuit import Kind
from hesim.circuit.kernels.reduce import rotate_and_sum
from tests.hesim.circuit.conftest import quiet_params


@given(data=st.data())
def test_sums(check, drawing, data):
    draw = drawing(data)
    shape = draw.shape()
    axes = draw.axes(shape)
    check(lambda x: jnp.sum(x, axes), draw.array(*shape), **draw.options(shape))


@settings(max_examples=15)
@given(data=st.data())
def test_sums_spread_back(check, drawing, data):
    draw = drawing(data)
    shape = draw.shape(most=3)
    axis = draw.axis(shape)

    def fn(x):
        mean = x.mean(axis, keepdims=True)
        return x - mean, mean * x, ((x - mean) ** 2).mean(axis)

    check(fn, draw.array(*shape), **draw.options(shape))


@settings(max_examples=15)
@given(data=st.data())
def test_sums_of_partly_repeated_elements(check, drawing, data):
    draw = drawing(data)
    shape = draw.shape(most=2)
    rows = draw(st.lists(st.integers(0, shape[0] - 1), min_size=1, max_size=6), "rows")
    check(
        lambda x: x[np.array(rows)].sum(0) + jnp.concatenate([x, x[:1]]).sum(0),
        draw.array(*shape),
        **draw.options(shape),
    )


@given(data=st.data())
def test_products(check, drawing, data):
    draw = drawing(data)
    shape = draw.shape(most=3)
    axes = draw.axes(shape)
    kept = int(np.prod([shape[a] for a in axes], dtype=int))
    if kept > 12:
        axes = axes[:1]
    check(lambda x: jnp.prod(x, axes), draw.array(*shape), **draw.options(shape))


@given(data=st.data())
def test_running_sums(check, drawing, data):
    draw = drawing(data)
    shape = draw.shape(most=3)
    axis, back = draw.axis(shape), draw(st.booleans(), "reverse")
    check(
        lambda x: lax.cumsum(x, axis, reverse=back),
        draw.array(*shape),
        **draw.options(shape),
    )


@settings(max_examples=15)
@given(data=st.data())
def test_running_sums_of_broadcasts(check, drawing, data):
    draw = drawing(data)
    shape = draw.shape(most=2)
    check(
        lambda x: jnp.cumsum(jnp.broadcast_to(x, (3, *shape)), draw.axis((3, *shape))),
        draw.array(*shape),
        **draw.options(shape),
    )


@pytest.mark.parametrize("count", [496, 784, 1000])
def test_a_sum_meets_all_its_terms_by_few_keys(check, count):
    """Whatever the number of terms: of a power of two or not."""
    x = np.linspace(0.1, 0.4, count)
    bits = count.bit_length()
    for fn in (lambda x: x - x.mean(), jnp.var, lambda x: x - x[0]):
        circuit = check(fn, x, params=quiet_params(12))
        assert circuit.ledger.rotation_keys <= 2 * bits
        assert circuit.ledger.rotations <= 5 * bits


STEPS = {
    "a run": list(range(100)),
    "a run around the end": [60, 61, 62, 63, 0, 1, 2],
    "runs of runs": [8 * i + j for i in range(3) for j in range(3)],
    "no run": [0, 1, 5, 11],
    "one": [5],
    "a whole cycle": list(range(0, 64, 4)),
}


@pytest.mark.parametrize("name", STEPS)
def test_sums_of_rotations(name):
    steps = sorted(STEPS[name])
    columns = 128 if max(steps) > 64 else 64
    b = Builder(columns, 1, 1)
    b.begin(-1)
    (x,) = b.end([b.input(0, np.ones(columns, bool))])
    b.begin(0)
    total = rotate_and_sum(b, x, steps)
    v = np.random.default_rng(0).normal(size=columns)
    made: list[np.ndarray] = []
    for node in b.nodes:
        terms = list(node.terms)
        if node.kind == Kind.INPUT:
            made.append(v)
        elif node.kind == Kind.ROTATE:
            made.append(np.roll(made[terms[0][1]], -node.param))
        else:
            made.append(np.sum([f * made[n] for f, n, _ in terms], axis=0))
    assert np.allclose(made[total], sum(np.roll(v, -s) for s in steps))
    turned = sum(n.kind == Kind.ROTATE for n in b.nodes)
    assert turned <= (2 * len(steps).bit_length() if "run" in name[:4] else len(steps))
