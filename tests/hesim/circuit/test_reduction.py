"""Sums, products and running sums on the slot machine equal their float64 values."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax


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
