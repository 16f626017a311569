"""Small programs whose plans meet what is easily got wrong: padding, axes of one size, one value as
both operands, results that are inputs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import approx
from hesim.circuit.packing.arrangement import reduction
from hesim.circuit.packing.layout import GAP, Coordinate, Layout
from hesim.circuit.packing.maps import map_plan
from tests.hesim.circuit.test_gradient import loss

rng = np.random.default_rng(1)
POLY = approx.fit("exp", (-3, 3), degree=3)


def normal(*shape: int) -> np.ndarray:
    return rng.normal(size=shape) / 2


def thorough(check, fn, *args, encrypted=(0,)):
    """All plans at true and at drawn prices, with a batch and without."""
    found = check(fn, *args, encrypted=encrypted, finalists=12)
    for seed in range(2):
        more = check(fn, *args, encrypted=encrypted, finalists=12, seed=seed, batch=seed == 0)
        assert more
        found += more
    return found


def test_mean_is_not_spread_over_padding(check):
    def variance(x):
        centred = x - x.mean(0, keepdims=True)
        return (centred * centred).sum(0)

    thorough(check, variance, normal(3, 4))


def test_padding_of_a_polynomial_passes_a_matrix_of_numbers(check):
    w = normal(4, 2)
    thorough(check, lambda x: (POLY(x) @ w).sum(0), normal(3, 4))


def test_one_factor_without_padding_does_not_clear_it(check):
    thorough(check, lambda x, y: (POLY(x) * y).sum(0), normal(3, 4), normal(4), encrypted=(0, 1))


@pytest.mark.parametrize("shape", [(5, 4), (4, 4), (4, 6)])
def test_one_value_as_both_operands_in_two_layouts(check, shape):
    thorough(check, lambda x: jnp.einsum("ij,ik->ijk", x, x), normal(*shape))


@pytest.mark.parametrize("shape", [(4, 4, 4), (2, 3, 2)])
def test_operands_rolled_by_a_batch_digit(check, shape):
    thorough(check, lambda x: jnp.einsum("ijk,ijl->ikl", x, x), normal(*shape))


def test_one_value_along_either_axis(check):
    """Both operands are the same ciphertexts, brought to the same layout from different ones."""
    thorough(
        check, lambda x: jnp.broadcast_to(x, (4, 4)) - jnp.broadcast_to(x, (4, 4)).T, normal(4)
    )


def test_results_that_are_inputs(check):
    def fn(x, y, z):
        return x, x + 1.0, y

    found = thorough(check, fn, normal(3, 4), normal(5, 4), normal(2), encrypted=(0, 1, 2))
    assert all(c.ledger.inputs >= 2 for c in found)


def test_program_without_operations(check):
    assert check(lambda x: x, normal(3, 4))


def test_slices_leave_no_ciphertexts_behind(check):
    w = normal(1, 4)
    thorough(check, lambda x: x[:1].T @ w + x[:1, :2].sum(), normal(12, 6))


def test_a_sum_by_a_map_is_spread_over_its_columns(check):
    thorough(check, lambda x: x.T @ np.ones((1, 4)) + x[:, :2].sum(), normal(1, 6))


def test_a_value_without_the_batch_axis_meets_a_batch(check):
    w = normal(3, 4)

    def fn(x, v):
        return x @ w + v @ w, x * v, x - v.sum(), v * 2.0, (x * v) @ w

    found = thorough(check, fn, normal(5, 3), normal(3), encrypted=(0, 1))
    assert any(c.outputs[0].batch == 5 for c in found)


def test_a_value_meets_a_public_batch(check):
    public, x = normal(4, 2, 2), normal(4, 2, 2)
    for v in (normal(2, 2), normal(1, 2, 2)):
        thorough(check, lambda x, v: (x * (v * public) + x, x + v), x, v, encrypted=(0, 1))


def test_a_map_of_more_than_a_million_products_is_not_tried():
    def planned(kept: int):
        columns = (Coordinate(GAP, 512),)
        ciphers = (Coordinate(0, kept, 1),)
        source = Layout((kept, 512), (Coordinate(1, 512, 1),), ciphers)
        target = Layout((kept, 512), columns, (Coordinate(1, 512, 1), *ciphers))
        return map_plan(source, target, ((0, 0),))

    plan = planned(2)
    assert plan is not None and len(plan.terms) == 2 * 512**2
    assert planned(8) is None


def test_both_axes_of_a_sheared_tensor_are_summed(check):
    """As in the gradient of a network with one hidden unit."""
    weights = normal(1, 1), normal(1, 3), normal(1)
    grad = jax.value_and_grad(loss)
    assert check(grad, weights, normal(4, 1), normal(4, 3), encrypted=(0,), batch=False)


def test_a_sum_leaves_out_ciphertexts_that_hold_nothing():
    rows, gap, columns = Coordinate(0, 2, 1), Coordinate(GAP, 2), Coordinate(1, 4, 1)
    layout = Layout((2, 4), (columns,), (gap, rows))
    found = reduction(layout, (1,), (0,))
    assert found is not None
    assert found.groups == ((0,), (2,))
    assert found.layout.ciphertexts == 2
    over_rows = reduction(layout, (0,), (1,))
    assert over_rows is not None and over_rows.groups == ((0, 2),)
