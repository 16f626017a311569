"""What cannot be traced is said all at once, by layer, with what to use instead."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from flax import nnx
from jax import lax

from he_backend import run
from hesim import (
    Circuit,
    CKKSParams,
    NotHomomorphicError,
    ParameterError,
    TraceError,
    simulate,
    trace,
)

X = np.linspace(-1.0, 1.0, 16).reshape(2, 8)
W = np.ones((8, 3))
RNGS = nnx.Rngs(0)


def here() -> int:
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return frame.f_back.f_lineno


# --- NumPy and SciPy ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "called", "instead"),
    [
        (lambda x: np.exp(x), "np.exp", "jnp.exp"),
        (lambda x: np.dot(x, W) + 1, "np.dot", "jnp.dot"),
        (lambda x: 2 * np.maximum(x, 0.0), "np.maximum", "jnp.maximum"),
        (lambda x: np.polynomial.Polynomial([1.0, 2.0])(x), "np.polynomial", "jnp.polyval"),
        (lambda x: scipy.special.expit(x), "scipy.special.expit", "jax.scipy.special.expit"),
        (lambda x: np.linalg.norm(x), "np.linalg.norm", "jnp.linalg.norm"),
        (lambda x: np.asarray(x) * 2, "np.asarray", "jnp.asarray"),
        (lambda x: np.fft.fft(x), "np.fft.fft", "jnp.fft.fft"),
        (lambda x: x * math.sqrt(x.sum()), "math.sqrt", "jnp.sqrt"),
    ],
)
def test_functions_of_numpy_are_named_with_their_namesakes(fn, called, instead):
    with pytest.raises(TraceError) as caught:
        trace(fn, X)
    text = str(caught.value)
    assert called in text
    assert f"use {instead}" in text or instead in text
    assert f"{Path(__file__).name}:{fn.__code__.co_firstlineno} (" in text


def test_a_call_of_numpy_beside_what_failed_is_not_blamed():
    with pytest.raises(TraceError, match="needs the number in a traced value"):
        trace(lambda x: x if x > 0 else -x, np.float32(1))


def test_a_function_of_numpy_that_is_traced_itself():
    with pytest.raises(TraceError, match=r"to sin at .*sin, traced here.*use jnp\.sin"):
        trace(np.sin, X)


def test_masks_that_pick_elements():
    with pytest.raises(TraceError, match=r"picks elements by a traced mask at .*jnp\.where"):
        trace(lambda x, w: x[w > 0], X[0], X[0])


@pytest.mark.parametrize("dtype", [object, np.longdouble])
def test_arrays_that_jax_does_not_take(dtype):
    with pytest.raises(TraceError, match=r"args\[0\] is an array of dtype .*np\.float64"):
        trace(lambda x: x, np.ones(3, dtype))


def test_arguments_by_name():
    with pytest.raises(TraceError, match=r"by position, not w= by name"):
        trace(lambda x, w: x * w, X, w=X)


# --- layers of libraries --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "layer", "instead"),
    [
        (jax.nn.softmax, "jax.nn.softmax", "Drop the shift"),
        (jax.nn.log_softmax, "jax.nn.log_softmax", "Drop the shift"),
        (jax.nn.softplus, "jax.nn.softplus", 'approx.fit("softplus"'),
        (jnp.linalg.norm, "jnp.linalg.norm", "sum of squares"),
        (jax.nn.elu, "jax.nn.elu", "approx.fit(jax.nn.elu, "),
        (jnp.nan_to_num, "jnp.nan_to_num", "Leave it out"),
        (jnp.median, "jnp.median", "after decryption"),
        (nnx.LayerNorm(8, rngs=RNGS), "Flax's LayerNorm", "1/sqrt on (low, high)"),
        (nnx.RMSNorm(8, rngs=RNGS), "Flax's RMSNorm", "1/sqrt on (low, high)"),
        (lambda x: nnx.max_pool(x[None], (2,), (2,)), "Flax's max_pool", "avg_pool"),
        (
            lambda x: optax.sigmoid_binary_cross_entropy(x, x),
            "optax.sigmoid_binary_cross_entropy",
            "softplus",
        ),
        (
            lambda x: optax.softmax_cross_entropy_with_integer_labels(x, jnp.zeros(2, int)),
            "optax's softmax cross entropy",
            "softmax(x) - labels",
        ),
        (
            lambda x: optax.clip_by_global_norm(1.0).update(x, optax.EmptyState())[0],
            "optax's clipping",
            "models.adamw_he",
        ),
        (lambda x: optax.huber_loss(x, x * 2.0), "optax's huber_loss", "approx."),
    ],
)
def test_the_layer_and_its_remedy_are_named(fn, layer, instead):
    with pytest.raises(NotHomomorphicError) as caught:
        trace(lambda x: fn(x), X)
    first = caught.value.obstacles[0]
    assert first.layer == layer
    assert f" in {layer} at " in str(caught.value)
    assert instead in first.instead
    assert first.source is not None
    assert Path(first.source.file).name == Path(__file__).name


@pytest.mark.parametrize("optimizer", [optax.adam(1e-3), optax.adamw(1e-3), optax.rmsprop(1e-3)])
def test_optimizers_name_the_one_that_is_made_for_this(optimizer):
    def step(gradient, weights):
        return optimizer.update(gradient, optimizer.init(weights), weights)[0]

    with pytest.raises(NotHomomorphicError, match=r"models\.adamw_he"):
        trace(step, X, X)


def test_modules_that_change_while_they_are_traced():
    rnn = nnx.RNN(nnx.SimpleCell(8, 8, rngs=RNGS))
    with pytest.raises(TraceError, match=r"module\.eval.*an argument"):
        trace(lambda x: rnn(x), X[None])


def test_layers_in_a_sequence_have_the_place_of_its_call():
    model = nnx.Sequential(nnx.Linear(8, 8, rngs=RNGS), jax.nn.tanh)
    with pytest.raises(NotHomomorphicError) as caught:
        trace(lambda x: model(x), X)
    assert caught.value.source is not None
    assert caught.value.source.line == here() - 2
    program = trace(lambda x: nnx.Sequential(nnx.Linear(8, 8, rngs=nnx.Rngs(0)))(x), X)
    assert all(e.source is not None and e.source.line == here() - 1 for e in program.ops)


# --- all obstacles at once ------------------------------------------------------------------------


def test_all_obstacles_are_told_at_once_each_with_its_line():
    def fn(x):
        y = jnp.exp(x)
        y = jnp.where(y > 0.5, jnp.tanh(y), 0.0)
        return jnp.floor(y) + jax.nn.softmax(x)

    line = fn.__code__.co_firstlineno
    with pytest.raises(NotHomomorphicError) as caught:
        trace(fn, X)
    found = [(o.operation, o.source and o.source.line - line) for o in caught.value.obstacles]
    assert sorted(found) == sorted(
        [("exp", 1), ("gt", 2), ("tanh", 2), ("floor", 3), ("reduce_max", 3)]
    )
    text = str(caught.value)
    assert "And 4 more to replace" in text
    assert "hesim.approximate(fn, batches) puts" in text
    assert text.endswith("by itself, all but `floor`.")
    assert all(f":{line + k} " in text for k in (1, 2, 3))


def test_what_follows_from_an_obstacle_is_none():
    with pytest.raises(NotHomomorphicError) as caught:
        trace(lambda x: x[jnp.argmax(x, axis=0)], X)
    assert [o.operation for o in caught.value.obstacles] == ["argmax"]
    assert "hesim.approximate" not in str(caught.value)


# --- other kinds ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "reason", "instead"),
    [
        (lambda x: jax.debug.print("{}", x), "hands values to Python", "compare=True"),
        (lambda x: jax.pmap(lambda a: a * 2)(x[:1]), "over devices", "jax.vmap"),
        (jnp.floor, "step function", 'approx.composite("sign"'),
        (lambda x: jnp.linalg.inv(x @ x.T), "divides by encrypted", "Keep the matrix public"),
        (lambda x: lax.cumlogsumexp(x, 0), "logs of sums", "jnp.cumsum"),
        (lambda x: lax.igamma(x, x), "two encrypted", "approx.fit"),
        (lambda x: lax.top_k(x, 2)[0], "put them in order", 'approx.composite("sign"'),
        (lambda x: lax.complex(x, x), "complex", "x @ cos"),
    ],
)
def test_reasons_are_true_and_have_a_remedy(fn, reason, instead):
    with pytest.raises(NotHomomorphicError) as caught:
        trace(lambda x: fn(x), X)
    first = caught.value.obstacles[0]
    assert reason in first.reason
    assert instead in first.instead
    assert first.source is not None


def test_a_library_function_that_is_traced_itself_has_the_place_of_the_trace():
    program = trace(jnp.mean, X)
    for eqn in program.ops:
        assert eqn.source is not None
        assert eqn.source.function == "mean, traced here"
        assert (Path(eqn.source.file).name, eqn.source.line) == (Path(__file__).name, here() - 4)


def test_a_foreign_file_is_no_circuit(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("notes\n")
    with pytest.raises(ParameterError, match="holds no Circuit") as caught:
        Circuit.load(path)
    assert "pickle" not in str(caught.value)


def test_functions_that_are_no_programs_and_simulations_without_a_key():
    params = CKKSParams(13, 2, 30, 40, 50)
    with pytest.raises(TraceError, match="run takes a Program, not a function"):
        run(lambda x: x, X, params=params, backend="slots")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TraceError, match="random key before its arguments"):
        simulate(jnp.square, params)(X)
