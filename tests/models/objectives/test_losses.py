"""Losses against closed forms; the range penalty."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import approx
from models.encrypted.update import PolynomialSoftmax, training_domains, training_sites
from models.objectives.losses import (
    cross_entropy,
    cross_entropy_polynomial,
    mean_squared_error,
    range_penalty,
    share_outside,
    squared_error,
)

LOGITS = jnp.array([[0.3, -1.2], [1.5, 0.2], [-0.4, 0.9]])
LABELS = jnp.array([0, 1, 1])


def test_cross_entropy_of_labels_and_shares():
    z = np.asarray(LOGITS, float)
    probability = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    expected = -np.log(probability[np.arange(3), LABELS]).mean()
    assert float(cross_entropy(LOGITS, LABELS)) == pytest.approx(expected, rel=1e-5)
    shares = jax.nn.one_hot(LABELS, 2)
    assert float(cross_entropy(LOGITS, shares)) == pytest.approx(expected, rel=1e-5)
    smooth = float(cross_entropy(LOGITS, LABELS, smoothing=0.2))
    again = float(cross_entropy(LOGITS, 0.8 * shares + 0.1))
    assert smooth == pytest.approx(again, rel=1e-6)


def test_polynomial_cross_entropy_has_the_gradient_of_the_cross_entropy():
    exp = approx.fit("exp", (-2, 2), degree=11)
    inverse = approx.fit("inv", (1, 8), degree=15)
    onehot = jax.nn.one_hot(LABELS, 2)
    ours = jax.grad(cross_entropy_polynomial)(LOGITS, onehot, exp, inverse)
    exact = jax.grad(lambda z: 3 * cross_entropy(z, LABELS))(LOGITS)
    np.testing.assert_allclose(ours, exact, atol=2e-3)


def test_squared_errors():
    y = jnp.array([1.0, 2.0, 4.0])
    z = jnp.array([[0.0], [2.0], [1.0]])
    assert float(mean_squared_error(z, y)) == pytest.approx(10 / 3)
    assert float(squared_error(z[:, 0], y)) == pytest.approx(10.0)


RANGES = {"a.exp": (-4.0, 0.0), "b.inv_sqrt": (0.5, 2.0), "c.tanh": (-1.0, 1.0)}
UNIT = {"a.exp": 2.0, "b.inv_sqrt": 1.0, "c.tanh": 0.5}
INSIDE = {
    "a.exp": jnp.array([-1.9, -0.1]),
    "b.inv_sqrt": jnp.array([0.55, 1.9]),
    "c.tanh": jnp.array([-1.9, 1.9]),
}


def test_penalty_is_zero_with_zero_gradient_inside():
    value, slope = jax.value_and_grad(range_penalty)(INSIDE, UNIT, RANGES)
    assert float(value) == 0.0
    assert all(float(jnp.max(jnp.abs(g))) == 0.0 for g in slope.values())


@pytest.mark.parametrize(
    ("site", "values", "sign"),
    [
        ("a.exp", [-1.0, -2.5], -1.0),
        ("b.inv_sqrt", [1.0, 2.5], 1.0),
        ("b.inv_sqrt", [1.0, 0.3], -1.0),
        ("c.tanh", [0.0, 2.4], 1.0),
    ],
)
def test_penalty_pushes_the_offender_back_and_no_other(site: str, values: list, sign: float):
    met = {**INSIDE, site: jnp.array(values)}
    value, slope = jax.value_and_grad(range_penalty)(met, UNIT, RANGES)
    assert float(value) > 0
    assert float(jnp.sign(slope[site][1])) == sign
    assert float(slope[site][0]) == 0.0
    assert all(float(jnp.max(jnp.abs(g))) == 0.0 for n, g in slope.items() if n != site)
    assert float(share_outside(met, UNIT, RANGES)[site]) == 0.5


def test_inner_fraction_starts_earlier():
    met = {**INSIDE, "c.tanh": jnp.array([1.9])}
    assert float(range_penalty(met, UNIT, RANGES, inner=0.9)) > 0


def test_one_over_x_is_as_steep_at_both_ends_and_a_softmaxs_exponent_has_a_top():
    unit = {"a.inv": 1.0, "loss.exp": 1.0}
    ranges = {"a.inv": (0.5, 20.0), "loss.exp": (-4.0, 4.0)}

    def excess(name: str, value: float) -> float:
        return float(range_penalty({name: jnp.array([value])}, unit, {name: ranges[name]}))

    assert excess("a.inv", 60.0) > 0 and excess("loss.exp", 5.0) > 0
    assert excess("a.inv", 0.5 / 3) == pytest.approx(excess("a.inv", 60.0), rel=1e-5)
    assert excess("loss.exp", 5.0) == pytest.approx(excess("loss.exp", -5.0))


def test_a_value_that_is_no_number_is_outside():
    met = share_outside({"a": jnp.array([0.5, jnp.nan, 3.0, -1.0])}, {"a": 2.0}, {"a": (0.0, 4.0)})
    assert float(met["a"]) == 0.75
    sites = training_sites(2)
    softmax = PolynomialSoftmax.of(sites)
    assert softmax is not None
    values = softmax.values(jnp.array([[jnp.nan, 1.0], [0.0, 1.0]]))
    found = share_outside(values, dict.fromkeys(values, 1.0), training_domains(sites))
    assert {name: float(share) for name, share in found.items()} == dict.fromkeys(
        ("loss.exp", "loss.inv"), 0.5
    )


@pytest.mark.parametrize("size", [3, 41, 1618, 99_999])
def test_nothing_is_outside_where_all_is_inside_not_even_a_rounding(size):
    share = jax.jit(lambda x: share_outside({"a": x}, {"a": 1.0}, {"a": (0.0, 1.0)})["a"])
    assert float(share(jnp.full(size, 0.5))) == 0.0
