"""Scatters that compute what they write mean on slots what they mean in JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import approx
from hesim import CKKSParams, NotHomomorphicError, compile, trace

pytestmark = pytest.mark.filterwarnings("ignore::hesim.params.InsecureParametersWarning")

X = np.linspace(-0.9, 1.1, 12).reshape(4, 3)
TANH = approx.fit("tanh", (-2, 2), degree=3)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.at[1].apply(lambda t: t * t),
        lambda x: x.at[1].apply(lambda t: 2.0 * t + 1.0) * x,
        lambda x: x.at[1:3, 0].apply(TANH),
        lambda x: x.at[np.array([0, 2, 0])].apply(lambda t: t * t - 0.5),
        lambda x: x.at[np.array([0, 9])].apply(lambda t: t * t, mode="drop"),
        lambda x: x.at[np.array([1, 9])].apply(lambda t: -t, mode="clip"),
        lambda x: x.at[:, 1].apply(lambda t: t * t),
        lambda x: x.at[np.array([1, 1])].multiply(x[:2]),
        lambda x: x.at[np.array([1, 3])].multiply(np.array([[2.0], [0.5]])),
        lambda x: x.at[1].divide(4.0),
        lambda x: x.at[np.array([2, 2, 0])].subtract(x[:3]),
        lambda x: x.at[2, 1].subtract(0.25),
        lambda x: x.at[0].power(2),
        lambda x: jnp.ones((4, 3)).at[np.array([1, 1])].multiply(x[:2]),
    ],
)
def test_updates_at_known_places(as_function, fn):
    as_function(fn, X)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x, i: x.at[i[0]].apply(lambda t: t * t),
        lambda x, i: x.at[i].apply(lambda t: t * t - 0.5),
        lambda x, i: x.at[i].multiply(x[:2]),
        lambda x, i: x.at[i].multiply(0.5),
        lambda x, i: x.at[i].subtract(x[1:3]),
        lambda x, i: x.at[i, 1].set(0.25, mode="drop"),
    ],
)
@pytest.mark.parametrize("places", [(1, 3), (2, 2)])
def test_updates_at_places_of_the_run(as_function, fn, places):
    as_function(fn, X, np.array(places, np.int32))


def test_places_of_the_run_that_are_promised_to_differ_are_updated_at_once(as_function):
    fn = lambda x, i: x.at[i].apply(lambda t: t * t, unique_indices=True)
    program = as_function(fn, X, np.array([3, 1], np.int32))
    assert [e.name for e in program.ops].count("mul") == 1


def test_updates_of_public_values_are_computed_as_they_are(as_function):
    w = np.array([0.25, 0.5, 2.0])
    as_function(lambda x, w: x * w.at[1].apply(lambda t: t * t), X, w)
    as_function(lambda x, w: x + w.at[np.array([0, 0])].multiply(0.5), X, w)


def test_an_update_that_is_no_polynomial_is_refused_by_its_own_name():
    for fn in (
        lambda x: x.at[1].apply(jnp.exp),
        lambda x: x.at[np.array([1, 1])].apply(lambda t: jnp.exp(t)),
    ):
        with pytest.raises(NotHomomorphicError, match=r"approx\.fit\(\"exp\"") as caught:
            trace(fn, X)
        assert caught.value.operation == "exp"
    for fn in (lambda x: x.at[1].max(0.0), lambda x: x.at[1].min(x[0])):
        with pytest.raises(NotHomomorphicError, match="compares"):
            trace(fn, X)


def test_a_batch_stays_beside_each_other_where_a_known_column_is_updated(as_function):
    program = as_function(lambda x: x.at[:, 1].apply(lambda t: t * t), X)
    assert "dot_general" not in [e.name for e in program.ops]


@pytest.mark.parametrize("fill", [0.0, 1.5])
def test_gathers_fill_with_the_number_that_is_asked_for(as_function, fill):
    places = np.array([0, 7, 3], np.int32)
    read = lambda x, i: x.at[i].get(mode="fill", fill_value=fill) * 2.0
    as_function(lambda x: read(x, places), X)
    as_function(read, X, places)


@pytest.mark.parametrize("mode", ["clip", "promise_in_bounds"])
def test_gathers_outside_are_clipped(as_function, mode):
    places = np.array([0, 7, 3], np.int32)
    as_function(lambda x: x.at[places].get(mode=mode), X)
    as_function(lambda x, i: x.at[i].get(mode=mode), X, places)


def test_a_gather_that_fills_with_nan_is_refused():
    with pytest.raises(NotHomomorphicError, match="fill_value"):
        program = trace(lambda x: x.at[np.array([9])].get(mode="fill"), X)
        compile(program, CKKSParams(11, 2, 40, 50, 60, security=None))


def test_a_scatter_with_a_computation_of_its_own():
    """As `lax.scatter_apply` makes it, with windows."""
    numbers = lax.ScatterDimensionNumbers((1,), (0,), (0,))

    def fn(x):
        return lax.scatter_apply(x, jnp.array([[1], [3]]), jnp.square, numbers, update_shape=(2, 3))

    found = trace(fn, X)(X, precision="float64")
    with jax.enable_x64(True):
        np.testing.assert_allclose(found, fn(jnp.asarray(X)), atol=1e-12)
