"""Public values are those that the function itself finds, in the dtypes in which it was traced."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax

import he_backend
import hesim


def _low(w, dtype):
    return np.asarray(w, np.float64).astype(dtype)


X = np.array([0.25, -1.0, 0.75, 0.5])
TIES = _low([0.1, 0.3, 0.1, 0.3], np.float32)
"""Times 3, 1, 3, 1 they are four equal float32 numbers and two unequal float64 ones."""


class Case(NamedTuple):
    """A function of encrypted x and public w, and what it computes where x is a float64 array.

    Attributes:
      fn: takes x and w. reference: takes x and fn's own `public(w)`, as float64.
    """

    public: Callable[[Any], Any]
    fn: Callable[[Any, Any, Callable], Any]
    reference: Callable[[np.ndarray, np.ndarray], np.ndarray]
    w: np.ndarray
    dtype: Any = np.float32


def _scaled(w):
    return w * jnp.float32([3, 1, 3, 1])


def _times(public, w):
    return Case(public, lambda x, w, p: x * p(w).astype(x.dtype), lambda x, v: x * v, w)


HALF, BRAIN = np.float16, ml_dtypes.bfloat16
E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
W = [0.7, 1.3, -0.37, 0.1]

CASES = {
    "floor": _times(lambda w: jnp.floor(w * 10), _low([0.7] * 4, np.float32)),
    "round": _times(lambda w: jnp.round(w * 5), _low([0.1, 0.3, 0.5, 0.7], np.float32)),
    "ceil": _times(lambda w: jnp.ceil(w * 3 - 0.3), TIES),
    "argmax": _times(lambda w: jax.nn.one_hot(jnp.argmax(_scaled(w)), 4), TIES),
    "argmin": _times(lambda w: jax.nn.one_hot(jnp.argmin(_scaled(w)), 4), TIES),
    "argsort": _times(lambda w: jnp.argsort(_scaled(w)).astype(jnp.float32), TIES),
    "equal": _times(lambda w: (_scaled(w) == w[1]).astype(jnp.float32), TIES),
    "less": _times(lambda w: (_scaled(w) < w[1]).astype(jnp.float32), TIES),
    "where": _times(lambda w: jnp.where(_scaled(w) >= w[1], w, -w), TIES),
    "integer": _times(lambda w: (w * 10).astype(jnp.int32).astype(jnp.float32), TIES + 0.4),
    "reduce_precision": _times(lambda w: lax.reduce_precision(w, 5, 2), _low(W, np.float32)),
    "bfloat16 and back": _times(lambda w: w.astype(jnp.bfloat16).astype("f"), _low(W, np.float32)),
    "float8 and back": _times(lambda w: w.astype(E4M3).astype("f"), _low(W, np.float32)),
    "polynomial": _times(lambda w: w.astype(jnp.bfloat16) ** 3 + 0.1, _low(W, np.float32)),
    "bfloat16": _times(lambda w: w * w, _low(W, BRAIN)),
    "bfloat16 floor": _times(lambda w: jnp.floor(w * w * 64), _low(W, BRAIN)),
    "bfloat16 sum": _times(lambda w: w + 0.001, _low(W, BRAIN)),
    "bfloat16 softmax": _times(jax.nn.softmax, _low(W, BRAIN)),
    "bfloat16 product": _times(lambda w: w @ jnp.outer(w, w), _low(W, BRAIN)),
    "float16": _times(lambda w: jnp.exp(w * w), _low(W, HALF)),
    "float8 e4m3": _times(lambda w: w.astype("f"), _low(W, E4M3)),
    "float8 e5m2": _times(lambda w: w.astype(jnp.bfloat16) * 3, _low(W, E5M2)),
    "int8": _times(lambda w: w * w, _low([3, 100, -7, 12], np.int8)),
    "loop": _times(lambda w: lax.fori_loop(0, 3, lambda i, c: c * w + 0.1, w), _low(W, BRAIN)),
    "quotient": Case(
        lambda w: w * w, lambda x, w, p: x / p(w), lambda x, v: x / v, _low(W, BRAIN), BRAIN
    ),
    "pad": Case(
        lambda w: w * w,
        lambda x, w, p: lax.pad(x, p(w)[0], [(1, 1, 0)]) * 2,
        lambda x, v: 2 * np.pad(x, 1, constant_values=v[0]),
        _low(W, BRAIN),
        BRAIN,
    ),
    "concatenate": Case(
        lambda w: w + 0.001,
        lambda x, w, p: jnp.concatenate([x * x, p(w)]),
        lambda x, v: np.concatenate([x * x, v]),
        _low(W, HALF),
        HALF,
    ),
    "select": Case(
        lambda w: w * w,
        lambda x, w, p: jnp.where(p(w) > p(w)[3], x, p(w)) * 2,
        lambda x, v: 2 * np.where(v > v[3], x, v),
        _low(W, BRAIN),
        BRAIN,
    ),
    "update": Case(
        lambda w: w * w,
        lambda x, w, p: (x * 2).at[1:3].set(p(w)[:2]),
        lambda x, v: np.concatenate([2 * x[:1], v[:2], 2 * x[3:]]),
        _low(W, BRAIN),
        BRAIN,
    ),
    "added at": Case(
        lambda w: w * w,
        lambda x, w, p: (x * 2).at[jnp.array([1, 1])].add(p(w)[:2]),
        lambda x, v: 2 * x + np.array([0, v[0] + v[1], 0, 0]),
        _low(W, BRAIN),
        BRAIN,
    ),
    "matrix": Case(
        lambda w: jnp.outer(w, w) + 0.1,
        lambda x, w, p: x @ p(w),
        lambda x, v: x @ v,
        _low(W, E5M2).astype(BRAIN),
        BRAIN,
    ),
}


@pytest.fixture(scope="module")
def params() -> hesim.CKKSParams:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hesim.CKKSParams(11, 3, 40, 50, 60, security=None)


def build(case: Case) -> tuple[hesim.Program, Callable, np.ndarray]:
    """The Program, its function, and the right result."""

    def fn(x, w):
        return case.fn(x, w, case.public)

    program = hesim.trace(fn, X.astype(case.dtype), case.w)
    value = np.asarray(case.public(jnp.asarray(case.w))).astype(np.float64)
    return program, fn, case.reference(X, value)


def near(found, wanted) -> None:
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_every_executor_takes_the_public_values_that_the_function_finds(name, params):
    case = CASES[name]
    program, fn, wanted = build(case)
    short = jnp.finfo(case.dtype).eps
    np.testing.assert_allclose(
        program(X, case.w), fn(jnp.asarray(X, case.dtype), jnp.asarray(case.w))
    )
    np.testing.assert_allclose(
        np.asarray(program(X, case.w), np.float64), wanted, rtol=float(4.0 * short)
    )
    near(program(X, case.w, precision="float64"), wanted)
    report = he_backend.run(program, X, case.w, params=params, backend="slots")
    near(report.exact, wanted)
    near(report.outputs, wanted)


@pytest.mark.parametrize("name", ["floor", "bfloat16 floor", "pad"])
def test_predictions_take_the_public_values_that_the_function_finds(name, params):
    case = CASES[name]
    program, _, wanted = build(case)
    for jit in (True, False):
        found = hesim.predict(program, params, (X, case.w), 1, jit=jit)
        near(found.exact, wanted)
        np.testing.assert_allclose(found.outputs, wanted, rtol=0, atol=1e-6)


def test_the_search_for_the_worst_input_and_calibration_too(params):
    case = CASES["bfloat16 floor"]
    program, _, wanted = build(case)
    factor = wanted / X
    met = hesim.calibrate(program, [(X, case.w)]).ops[-1]
    near((met.low, met.high), (wanted.min(), wanted.max()))
    worst = hesim.worst_input(program, params, (-1, 1), (X, case.w), steps=2, starts=2, keys=1)
    near(worst.args[1], case.w)
    near(program(*worst.args, precision="float64"), worst.args[0] * factor)


def test_public_results_and_constants_are_those_of_the_function(params):
    table = _low([0.7, 0.1], np.float32)

    def fn(x, w):
        return x[:2] * jnp.floor(jnp.asarray(table) * 10), jnp.round(w * 5)

    w = _low([0.1, 0.3, 0.5, 0.7], np.float32)
    program = hesim.trace(fn, X, w)
    product, rounded = fn(jnp.asarray(X), w)
    factor = program.ops[-1].inputs[1]
    near(program.constant(factor), np.floor(table * np.float32(10)))
    report = he_backend.run(program, X, w, params=params, backend="slots")
    near(report.outputs[0], product)
    near(report.outputs[1], rounded)
    assert program(X, w, precision="float64")[1].dtype == np.float64
