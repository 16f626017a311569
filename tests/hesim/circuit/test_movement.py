"""Operations that move elements equal their float64 values on the slot machine."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import approx
from hesim import NotHomomorphicError, refresh, trace


@given(data=st.data())
def test_moves_that_parameters_describe(check, drawing, data):
    draw = drawing(data)
    shape = draw.shape(most=3)
    order = draw(st.permutations(range(len(shape))), "permutation")
    axis = draw.axis(shape)
    sizes = [slice(draw(st.integers(0, d - 1)), d, draw(st.integers(1, 2))) for d in shape]
    target = draw(st.sampled_from([(-1,), (1, -1), (shape[-1], -1), (*shape, 1)]), "reshape")

    def fn(x):
        return (
            *(x.transpose(order), x.reshape(target), x[tuple(sizes)], lax.rev(x, (axis,))),
            *(jnp.expand_dims(x, axis), jnp.squeeze(x[..., :1], -1), jnp.tile(x, (2, 1))),
            *(jnp.broadcast_to(x[None], (2, *shape)), jnp.repeat(x, 2, axis)),
            *(jnp.flip(x), jnp.roll(x, 1, axis), jnp.moveaxis(x, 0, -1) * 2.0),
        )

    check(fn, draw.array(*shape), **draw.options(shape))


@settings(max_examples=10)
@given(data=st.data())
def test_moved_tensors_meet(check, drawing, data):
    """Elements of one sum or product that lie in different slots."""
    draw = drawing(data)
    n, m = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    x, y = draw.array(n, m), draw.array(m, n)
    check(
        lambda x, y: (x + y.T, x * y.T, x - x[::-1], x * x[:, ::-1], x[:1] + y.T, x[:1] * x),
        x,
        y,
        encrypted=(0, 1),
        **draw.options((n, m), (m, n)),
    )


@settings(max_examples=10)
@given(data=st.data())
def test_joining_and_splitting(check, drawing, data):
    draw = drawing(data)
    shape = draw.shape(most=3)
    axis = draw.axis(shape)
    encrypted = draw(st.sampled_from([(0,), (1,), (0, 1)]), "encrypted")
    x, y = draw.array(*shape), draw.array(*shape)

    def fn(x, y):
        joined = jnp.concatenate([x, y, 2.0 * x], axis)
        return (
            *(joined, jnp.stack([x, y, x], axis), jnp.concatenate([jnp.ones(shape), x + y], axis)),
            *jnp.split(joined, [1, shape[axis]], axis),
            *(sum(jnp.split(joined, 3, axis)), joined * joined),
        )

    check(fn, x, y, encrypted=encrypted, **draw.options(*[shape] * len(encrypted)))


@settings(max_examples=10)
@given(data=st.data(), value=st.sampled_from([0.0, 1.5]))
def test_padding(check, drawing, data, value):
    draw = drawing(data)
    shape = draw.shape(most=3)
    config = []
    for d in shape:
        low, inside = draw(st.integers(-1, 2)), draw(st.integers(0, 2))
        high = draw(st.integers(-1, 2))
        full = d + (d - 1) * inside
        config.append((low, max(high, 1 - full - low), inside))
    x, filler = draw.array(*shape), np.float64(2.5)

    def fn(x, filler):
        return lax.pad(x, jnp.float32(value), config), lax.pad(x, filler, config) * 2.0

    check(fn, x, filler, **draw.options(shape))
    check(fn, x, filler, encrypted=(0, 1), batch=False)
    check(fn, x, filler, encrypted=(1,), batch=False)


@settings(max_examples=10)
@given(data=st.data())
def test_dynamic_slices(check, drawing, data):
    draw = drawing(data)
    shape = draw.shape(most=3)
    sizes = tuple(draw(st.integers(1, d)) for d in shape)
    at = [draw(st.integers(-1, d)) for d in shape]
    x = draw.array(*shape)
    update = draw.array(*sizes)

    def fn(x, at):
        return lax.dynamic_slice(x, at, sizes) * 2.0

    check(lambda x: fn(x, at), x, **draw.options(shape))
    check(fn, x, [np.int32(i) for i in at], **draw.options(shape))
    secret = draw(st.sampled_from([(0,), (1,), (0, 1)]), "encrypted")
    check(
        lambda x, u, i: lax.dynamic_update_slice(x, u, i) + lax.dynamic_update_slice(x, u, at),
        *(x, update, [np.int32(i) for i in at]),
        encrypted=secret,
        batch=draw(st.booleans()),
    )


@settings(max_examples=10)
@given(data=st.data())
def test_gathers(check, drawing, data):
    draw = drawing(data)
    shape = draw.shape(least=2, most=3)
    axis = draw.axis(shape)
    most = shape[axis] - 1
    index = np.array(draw(st.lists(st.integers(0, most), min_size=1, max_size=4), "index"))
    along = draw.rng.integers(0, shape[axis], (*shape[:axis], 2, *shape[axis + 1 :]))
    x = draw.array(*shape)

    def fn(x, index, along):
        return (
            *(jnp.take(x, index, axis), jnp.take(x, index.reshape(1, -1), axis)),
            *(jnp.take_along_axis(x, along, axis), jnp.take(x, index[0], axis)),
            *(x[0, index % shape[1]], jnp.take(x, index + 2, axis, mode="clip")),
        )

    check(lambda x: fn(x, index, along), x, **draw.options(shape))
    check(fn, x, index, along, **draw.options(shape))


@settings(max_examples=10)
@given(data=st.data())
def test_scatters(check, drawing, data):
    draw = drawing(data)
    shape = draw.shape(least=2, most=3)
    shape = (*shape[:1], max(shape[1], 2), *shape[2:])
    count = draw(st.integers(1, 4), "updates")
    rows = draw.rng.integers(0, shape[0], count)
    columns = draw.rng.integers(0, shape[1] + 1, count)  # the last one falls outside
    x, u, v = (draw.array(*s) for s in (shape, (count, *shape[1:]), (shape[0], count, *shape[2:])))
    distinct = draw.rng.permutation(shape[0])[: min(count, shape[0])]
    secret = draw(st.sampled_from([(0,), (1, 2), (0, 1, 2)]), "encrypted")

    def fn(x, u, v, rows, columns, distinct):
        return (
            *(x.at[rows].add(u), x.at[:, columns].add(v, mode="drop")),
            *(x.at[distinct].set(u[: len(distinct)]), x.at[0].set(u[0]), x.at[:, 1].set(v[:, 0])),
        )

    args = (x, u, v)
    options = draw.options(*(args[k].shape for k in secret))
    check(lambda x, u, v: fn(x, u, v, rows, columns, distinct), *args, encrypted=secret, **options)
    check(fn, *args, rows, columns, distinct, encrypted=secret, **options)


@settings(max_examples=10)
@given(data=st.data())
def test_writing_constants(check, drawing, data):
    draw = drawing(data)
    shape = draw.shape(least=2, most=3)

    def fn(x):
        return x.at[0].set(0.0), x.at[:, 0].set(3.0), x.at[-1, 0].set(x[0, 0]), x.at[0].add(1.0)

    check(fn, draw.array(*shape), **draw.options(shape))


def test_sums_of_segments(check):
    x = np.random.default_rng(0).normal(size=(6, 3))
    segments = np.array([0, 2, 0, 1, 2, 2])
    check(lambda x: jax.ops.segment_sum(x, segments, 4), x)
    check(lambda x, s: jax.ops.segment_sum(x, s, 4), x, segments)


def test_triangles(check):
    x = np.random.default_rng(0).normal(size=(4, 4))
    check(lambda x: (jnp.tril(x @ x.T), jnp.triu(x, 1), jnp.diagonal(x), jnp.diag(x[0])), x)


def test_a_gather_outside_its_operand_is_refused(check):
    x = np.ones((2, 3))
    with pytest.raises(NotHomomorphicError, match="outside its operand"):
        check(lambda x: x.at[jnp.array([0, 5])].get(mode="fill"), x)
    trace(lambda x: x.at[jnp.array([0, 5])].get(mode="clip"), x)


def test_tensors_without_elements(check):
    poly = approx.fit("tanh", (-4, 4), degree=3)

    def fn(x, w):
        none, left = x[:0], x[:, :0]
        return (
            *(none * 2.0, none * none, none + w[:0], none * w[:0], poly(none), jnp.cumsum(none, 1)),
            *(none.sum(0) + x[0], none.prod(0) * x[0], (none * none).sum(0) + w[0]),
            *(left @ w.T[:0], left @ left.T + 1.0, x @ w.T[:, :0], jnp.concatenate([none, x])),
            *(x[np.zeros(0, int)], x.at[np.zeros(0, int)].add(none), refresh(none), none.T),
        )

    x, w = np.linspace(-1, 1, 12).reshape(4, 3), np.ones((4, 3))
    for options in ({}, {"batch": False}):
        check(fn, x, w, **options)
    check(lambda x, y: x + y.sum(), x, x[:0], encrypted=(0, 1))
    check(lambda x: x * x, x[:0])
