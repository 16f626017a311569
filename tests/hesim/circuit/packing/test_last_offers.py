"""Operations whose operands do not lie as they want them: a search ends with a plan even so."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import approx
from tests.hesim.circuit.packing.test_small_cases import normal, thorough

EVEN = approx.fit("exp", (-3, 3), degree=3)
MASK = np.tri(3, 4, dtype=bool)
PUBLIC = normal(3, 4)
W = normal(3, 5, 2)


MOVES = {
    "slice on columns": lambda x: x[1:, 2:] * 2.0,
    "every other": lambda x: x[::2, 1::2],
    "every other from the first": lambda x: x[::2, ::2] + (x @ np.ones((4, 8)))[:1, ::4],
    "reshape across axes": lambda x: (x @ np.ones((4, 4))).reshape(2, 6),
    "concatenate": lambda x: jnp.concatenate([x, 0.5 * x, PUBLIC[:1]], 0),
    "concatenate columns": lambda x: jnp.concatenate([x * x, x], 1),
    "reversed": lambda x: x[::-1, ::-1] + x,
    "padded": lambda x: jnp.pad(x, ((1, 0), (0, 3)), constant_values=0.5),
    "selected": lambda x: jnp.where(MASK, x * x, x),
    "selected or public": lambda x: jnp.where(MASK, x, PUBLIC),
    "rows at places": lambda x: x[np.array([2, 0, 0, 1])],
    "transposed sum": lambda x: x[:, :3] + x[:, :3].T,
    "running sums": lambda x: jnp.cumsum(x, 0) + jnp.cumsum(EVEN(x), 1),
    "running sums backwards": lambda x: lax.cumsum(x * x, 1, reverse=True),
    "running sums of one number": lambda x: jnp.cumsum(x.sum(0) + 0 * PUBLIC, 0) + x,
    "nothing": lambda x: (x - x) + 0.0 * x.sum(0),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves_to_places_that_are_known(check, name):
    thorough(check, MOVES[name], normal(3, 4))


def test_running_sums_multiply_by_no_plaintext_of_zeros(check):
    for circuit in thorough(check, lambda x: jnp.cumsum(x, 1), normal(3, 4)):
        for pack, row in zip(circuit.plain_pack, circuit.plain_row, strict=True):
            assert np.any(circuit.packs[pack].row(row) >= 0)


@pytest.mark.parametrize("other", [0.0, PUBLIC])
def test_masks_that_are_arguments(check, other):
    thorough(check, lambda x, m: jnp.where(m, 2 * x, other), normal(3, 4), MASK)


def test_a_mask_that_leaves_nothing(check):
    thorough(check, lambda x: jnp.where(MASK[:, :1] | True, PUBLIC, x * x), normal(3, 4))


def test_masks_that_differ_between_members(check):
    thorough(check, lambda x: x + jnp.where(MASK, x.sum(1, keepdims=True), PUBLIC), normal(3, 4))


def test_a_constant_axis_meets_a_matrix(check):
    def fn(x):
        return jnp.einsum("ij,ijk->k", jnp.broadcast_to(x.sum(1, keepdims=True), (3, 5)), W)

    thorough(check, fn, normal(3, 4))


def test_operands_with_axes_in_other_orders(check):
    def fn(x, y):
        return x @ y + (x.T + y)[:4, :3].T[:, :3] @ np.ones((3, 3))

    thorough(check, fn, normal(3, 3), normal(3, 3), encrypted=(0, 1))
