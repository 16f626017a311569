"""Contractions and convolutions on the slot machine equal their float64 values."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

SECRET = {"left": (0,), "right": (1,), "both": (0, 1)}


@pytest.mark.parametrize("encrypted", SECRET)
@given(data=st.data())
def test_dot_general_of_every_pattern(check, drawing, encrypted, data):
    """Random batch, contracted and free dimensions, each operand's axes in random order."""
    draw = drawing(data)
    sizes = {"batch": [], "summed": [], "left": [], "right": []}
    for kind, most in (("batch", 2), ("summed", 2), ("left", 2), ("right", 2)):
        sizes[kind] = draw(st.lists(st.integers(1, 4), max_size=most), kind)
    while np.prod([np.prod(s) for s in sizes.values()]) > 600:
        max(sizes.values(), key=np.prod).pop()
    shapes, axes = [], []
    for free in ("left", "right"):
        labels = [(k, i) for k in ("batch", "summed", free) for i in range(len(sizes[k]))]
        order = draw(st.permutations(labels), f"{free} axes")
        shapes.append(tuple(sizes[k][i] for k, i in order))
        axes.append(
            {
                kind: tuple(order.index((kind, i)) for i in range(len(sizes[kind])))
                for kind in ("batch", "summed")
            }
        )
    left, right = axes
    numbers = ((left["summed"], right["summed"]), (left["batch"], right["batch"]))
    check(
        lambda x, y: lax.dot_general(x, y, numbers),
        *(draw.array(*shape) for shape in shapes),
        encrypted=SECRET[encrypted],
        **draw.options(*(shapes[k] for k in SECRET[encrypted])),
    )


@pytest.mark.parametrize("encrypted", SECRET)
@given(data=st.data())
def test_contraction_of_broadcasts(check, drawing, encrypted, data):
    """Operands whose elements share slots: a place occurs several times in one sum."""
    draw = drawing(data)
    i, j, k = (draw(st.integers(1, 4)) for _ in range(3))

    def fn(x, y):
        wide = jnp.broadcast_to(x[:, None], (i, j))
        tall = jnp.broadcast_to(y[None, :], (j, k))
        return wide @ tall, wide @ wide.T, tall.T @ tall, wide.sum(1) + x

    check(
        fn,
        draw.array(i),
        draw.array(k),
        encrypted=SECRET[encrypted],
        **draw.options(*[(i,), (k,)][: len(SECRET[encrypted])]),
    )


def test_rows_that_share_some_elements(check):
    """Rows of a matrix product that begin with the same place and go on with different ones."""
    rng = np.random.default_rng(0)
    rows = np.array([[0, 1], [0, 2], [0, 1], [3, 1]])
    for n in (1, 2, 3):
        w = rng.normal(size=(2, n))
        for layouts in ([(0,)], [()]):
            check(lambda x, w: x[rows] @ w, rng.normal(size=4), w, batch=False, layouts=layouts)


def test_products_by_one_matrix_after_another(check):
    rng = np.random.default_rng(0)
    x, v, w = rng.normal(size=(4, 6)), rng.normal(size=(6, 3)), rng.normal(size=(3, 8))
    check(lambda x, v, w: (x @ v) @ w + (x @ v @ w) ** 2, x, v, w)
    check(lambda x, v, w: jnp.einsum("ti,ij,jk,sk->ts", x, v, w, w[:2]), x, v, w)


def test_attention_with_a_gaussian_kernel(check):
    rng = np.random.default_rng(0)
    b, t, h, e = 3, 4, 2, 3
    x = rng.normal(size=(b, t, h * e)) * 0.5
    ws = [rng.normal(size=(h * e, h, e)) * 0.5 for _ in range(3)]

    def attention(x, wq, wk, wv):
        q, k, v = (jnp.einsum("btd,dhe->bthe", x, w) for w in (wq, wk, wv))
        s = 2 * jnp.einsum("bihe,bjhe->bhij", q, k)
        s = s - jnp.sum(q * q, -1).transpose(0, 2, 1)[:, :, :, None]
        s = s - jnp.sum(k * k, -1).transpose(0, 2, 1)[:, :, None, :]
        return jnp.einsum("bhij,bjhe->bihe", s * s, v).reshape(x.shape)

    for options in ({}, {"batch": False}):
        check(attention, x, *ws, **options)
    check(attention, x[:1], *ws)


def test_an_einsum_that_nothing_was_made_for(check):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(4, 6, 5)), rng.normal(size=(7, 5))
    check(lambda x, w: jnp.einsum("bij,kj->bik", x * x, w).sum(1) - x.mean(1)[:, :1], x, w)


@given(data=st.data())
def test_convolutions(check, drawing, data):
    draw = drawing(data)
    dims = draw(st.integers(1, 2), "spatial dimensions")
    groups = draw(st.sampled_from([1, 1, 2]), "groups")
    small = st.integers(1, 2)
    spatial = tuple(draw(st.integers(3, 4 if dims == 2 else 6)) for _ in range(dims))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(dims))
    x = draw.array(draw(small), groups * draw(small), *spatial)
    w = draw.array(groups * draw(small), x.shape[1] // groups, *kernel)
    window = {
        "window_strides": tuple(draw(small) for _ in range(dims)),
        "padding": [(draw(st.integers(-1, 2)), draw(st.integers(0, 2))) for _ in range(dims)],
        "lhs_dilation": tuple(draw(small) for _ in range(dims)),
        "rhs_dilation": tuple(draw(small) for _ in range(dims)),
        "feature_group_count": groups,
    }
    check(
        lambda x, w: lax.conv_general_dilated(x, w, **window),
        x,
        w,
        **draw.options(x.shape),
    )


def test_convolution_with_features_last(check):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 5, 4, 3)), rng.normal(size=(2, 2, 3, 4))
    for options in ({}, {"batch": False}):
        check(
            lambda x, w: lax.conv_general_dilated(
                x, w, (1, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ),
            x,
            w,
            **options,
        )
    check(lambda x, w: jnp.convolve(x[0, :, 0, 0], w[:, 0, 0, 0]), x, w)


def test_convolution_of_groups_of_the_batch(check):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(4, 2, 5)), rng.normal(size=(4, 2, 3))
    check(
        lambda x, w: lax.conv_general_dilated(x, w, (1,), "VALID", batch_group_count=2),
        x,
        w,
    )
