"""The batch axis: found where nothing mixes its members, in the slots of one column, and right."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import approx
from hesim import compile, trace
from hesim.circuit.layout import linear_index

W = np.random.default_rng(1).normal(size=(3, 3))


def members(circuit) -> int:
    """Members of the batch that lie side by side; 1 if the compiler found no batch."""
    return circuit.inputs[0].batch


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_members_lie_side_by_side(check, size):
    x = np.random.default_rng(0).normal(size=(size, 3))
    circuit = check(lambda x: (x @ W) ** 2 + x.sum(1, keepdims=True), x)
    assert members(circuit) == size
    assert members(check(lambda x: (x @ W) ** 2, x, batch=False)) == 1


@settings(max_examples=10)
@given(data=st.data())
def test_given_layouts_within_a_batch(check, drawing, data):
    draw = drawing(data)
    b, t, d = (draw(st.integers(2, 5)) for _ in range(3))
    layouts = [draw.axes((t, d)), draw.axes((t, d))]

    def fn(x, y, w):
        h = x @ w + y
        scores = jnp.einsum("bid,bjd->bij", h, y)
        return scores @ x, h.sum(1), h - h.mean(2, keepdims=True), h[:, :1] * x, h[:, ::-1] + y

    args = draw.array(b, t, d), draw.array(b, t, d), draw.array(d, d)
    circuit = check(fn, *args, encrypted=(0, 1), layouts=layouts)
    assert members(circuit) == b


@settings(max_examples=10)
@given(data=st.data())
def test_public_operands_with_a_batch_axis(check, drawing, data):
    draw = drawing(data)
    b, d = draw(st.integers(2, 5)), draw(st.integers(1, 4))
    x, w, m = draw.array(b, d), draw.array(b, d), draw.rng.random((b, d)) < 0.5

    def fn(x, w, m):
        return (
            *(x * w, x + w, w - x, x / (w * w + 1.0), jnp.where(m, x, w), jnp.where(m, x, 0.0)),
            *(x * w[:, :1], jnp.einsum("bd,bd->b", x, w), jnp.einsum("bd,be->bde", x, w)),
            *(jnp.concatenate([x, w], 1), jnp.pad(x, ((0, 0), (1, 0)), constant_values=2.0)),
            x.at[:, 0].set(w[:, 0]),
        )

    circuit = check(fn, x, w, m, layouts=[draw.axes((d,))])
    assert members(circuit) == b


def test_masks_known_at_compile_time_may_differ_between_members(check):
    x, y = (np.random.default_rng(k).normal(size=(4, 3)) for k in (0, 1))
    rows, corner = np.arange(4)[:, None] < 2, np.tri(4, 3, dtype=bool)
    circuit = check(
        lambda x, y: (jnp.where(rows, x, y), jnp.where(corner, x, y), jnp.where(corner, 1.0, x)),
        x,
        y,
        encrypted=(0, 1),
    )
    assert members(circuit) == 4


def test_an_encrypted_argument_without_the_batch_axis(check):
    rng = np.random.default_rng(0)
    x, v, w = rng.normal(size=(5, 3)), rng.normal(size=3), rng.normal(size=(3, 4))
    circuit = check(
        lambda x, v, w: (x @ w + (v @ w), x * v, x - v.sum(), v * 2.0, (x * v) @ w),
        *(x, v, w),
        encrypted=(0, 1, 2),
    )
    assert members(circuit) == 5


def test_an_encrypted_value_that_meets_a_public_batch(check):
    rng = np.random.default_rng(0)
    x, v, y = rng.normal(size=(4, 3)), rng.normal(size=(1, 3)), rng.normal(size=(4, 3))
    square = rng.normal(size=(4, 4))
    check(lambda x, v, y: (x + v, v * y, v + y, x * (v * y)), x, v, y, encrypted=(0, 1))
    check(lambda x, s, y: (s * y @ x, s.sum(0) + x[:, 0]), x, square, square, encrypted=(0, 1))
    check(
        lambda x, s: (x.sum(1), s * s, jnp.broadcast_to(s[0], (4, 4)) * s),
        x,
        square,
        encrypted=(0, 1),
    )


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.T @ x,
        lambda x: x - x.mean(0),
        lambda x: x[::-1] + x,
        lambda x: x[:2] * x[2:4],
        lambda x: jnp.cumsum(x, 0),
        lambda x: jnp.concatenate([x, x]),
        lambda x: x[:, None, :] * x[None, :, :],
        lambda x: x.reshape(2, 6),
        lambda x: x.reshape(-1),
        lambda x: x.prod(0),
        lambda x: jnp.pad(x, ((1, 0), (0, 0))),
        lambda x: x[np.array([3, 0, 1, 2])],
        lambda x: jnp.take_along_axis(x, np.array([[0], [2], [2], [1]]), 1),
        lambda x: x.at[1].set(0.0),
        lambda x: x.at[np.array([0, 0])].add(x[:2]),
        lambda x: jax.vmap(lambda r: jnp.roll(r, 1))(x) * x[0],
        lambda x: lax.conv(x[None, None], jnp.ones((1, 1, 2, 2)), (1, 1), "SAME"),
    ],
)
def test_functions_that_mix_the_members(check, fn):
    circuit = check(fn, np.random.default_rng(0).normal(size=(4, 3)))
    assert members(circuit) == 1


def test_moves_beside_the_batch_axis_keep_it(check):
    def fn(x):
        y = x.transpose(1, 0, 2)
        y = jnp.concatenate([y, y[:1]])[np.array([2, 0, 2])]
        return y.reshape(3, x.shape[0], 1, -1).swapaxes(0, 1), lax.rev(x, (1,)), x[:, 1:, None]

    circuit = check(fn, np.random.default_rng(0).normal(size=(5, 2, 3)))
    assert members(circuit) == 5


def test_updates_of_each_member_at_its_own_places(check):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(5, 4)), rng.normal(size=(5, 2))
    at = np.array([3, 0, 3])

    def fn(x, w):
        return (
            *(x.at[:, at].add(2.0 * x[:, :3]), x.at[:, 1].add(w[:, 0]), w.at[:, :1].add(x[:, :1])),
            *(x.at[:, jnp.array([0, 9])].add(w, mode="drop"), x.at[:, at].add(1.0)),
            jax.vmap(lambda r: jnp.zeros(6).at[at].add(r[:3]))(x),
        )

    assert members(check(fn, x, w)) == 5
    assert members(check(jax.vmap(jax.grad(lambda r: jnp.sum(r[at] ** 2))), x)) == 5
    assert members(check(lambda x: x.at[at].add(x[:3]), x)) == 1


def test_sizes_that_agree_by_accident(check):
    """An encrypted matrix with as many rows as the batch has members is not a batch."""
    rng = np.random.default_rng(0)
    x, a, b = rng.normal(size=(4, 4)), rng.normal(size=(4, 2)), rng.normal(size=(2, 3))
    circuit = check(lambda x, a, b: (x @ a) @ b, x, a, b, encrypted=(0, 1, 2))
    assert members(circuit) == 4
    # Nor is one that hardly anything depends on.
    circuit = check(
        lambda x, a: ((x.T @ x) ** 2 + 1.0, a * 2.0), x, rng.normal(size=(7, 2)), encrypted=(0, 1)
    )
    assert members(circuit) == 1


def test_places_that_are_arguments_within_a_batch(check):
    x = np.random.default_rng(0).normal(size=(5, 4, 3))

    def fn(x, i, rows):
        return lax.dynamic_index_in_dim(x, i, 1), lax.dynamic_slice_in_dim(x, i, 2, 2), x[:, rows]

    for i in (0, 2, 3):
        circuit = check(fn, x, np.int32(i), np.array([3, 0, 3]))
        assert members(circuit) == 5


def test_places_that_differ_between_members_or_move_them(check):
    x = np.random.default_rng(0).normal(size=(4, 3))
    labels = np.array([0, 2, 2, 1])

    def fn(x, i, labels):
        return (
            *(lax.dynamic_slice_in_dim(x, i, 2, 0), x[labels], x[jnp.arange(4), labels]),
            jnp.take_along_axis(x, labels[:, None], 1),
        )

    circuit = check(fn, x, np.int32(1), labels)
    assert members(circuit) == 1


def test_two_sizes_in_the_first_axis(check):
    """Only one of two arguments can be the batch; the other is one tensor."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 3)), rng.normal(size=(3, 4))
    circuit = check(lambda x, w: x @ w, x, w, encrypted=(0, 1))
    assert members(circuit) == 2
    check(lambda w, x: x @ w, w, x, encrypted=(0, 1))


def test_a_batch_of_one_and_a_batch_as_large_as_the_ring(check, small_params):
    rng = np.random.default_rng(0)
    check(lambda x: (x @ W) * x, rng.normal(size=(1, 3)))
    params = small_params(log_n=10)
    circuit = check(lambda x: (x @ W) * x, rng.normal(size=(params.slots, 3)), params=params)
    assert members(circuit) == params.slots == circuit.slots
    circuit = check(lambda x: x * x + 1.0, rng.normal(size=(params.slots + 1, 2)), params=params)
    assert members(circuit) == 1


def test_polynomials_of_a_batch_that_does_not_fill_its_slots(check):
    """Slots beyond the batch hold values inside the domain, so nothing there grows."""
    poly = approx.fit("inv", (0.5, 2.0), degree=15)
    x = np.random.default_rng(0).uniform(0.6, 1.9, size=(5, 3))
    check(lambda x: poly(x) * poly(x.mean(1, keepdims=True)), x)


def test_a_batch_is_found_once_for_all_layouts(small_params):
    program = trace(lambda x: x @ W, np.ones((6, 3)))
    circuit = compile(program, small_params())
    assert circuit.inputs[0].width == 8
    assert circuit.inputs[0].batch == 6
    assert circuit.outputs[0] is not None
    assert circuit.outputs[0].batch_axis == 0


def test_linear_index():
    index = np.arange(24).reshape(2, 3, 4)
    for axis, stride in ((0, 12), (1, 4), (2, 1)):
        split = linear_index(index, axis)
        assert split is not None
        np.testing.assert_array_equal(split[0], index.take(0, axis=axis))
        assert split[1] == stride
    bent = index.copy()
    bent[1, 0, 0] += 1
    assert linear_index(bent, 0) is None
    holes = np.where(np.arange(4) < 2, index, -1)
    split = linear_index(holes, 1)
    assert split is not None
    np.testing.assert_array_equal(split[0], holes[:, 0])
    assert split[1] == 4
    assert linear_index(holes, 2) is None
