"""What is said to those who write a training step of their own, where it cannot be as it is."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import approx
import hesim
from hesim.errors import (
    ArgumentError,
    ConstantValuesWarning,
    HesimError,
    ParameterError,
    TraceError,
)

RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 2)).astype(np.float32)
X = RNG.normal(size=(8, 4)).astype(np.float32)
Y = RNG.normal(size=(8, 2)).astype(np.float32)


def step_of(rule: optax.GradientTransformation):
    def step(w, state, x, y):
        gradient = jax.grad(lambda w: jnp.mean((x @ w - y) ** 2))(w)
        updates, state = rule.update(gradient, state, w)
        return optax.apply_updates(w, updates), state

    return step


@pytest.fixture(scope="module")
def params() -> hesim.CKKSParams:
    return hesim.CKKSParams(log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40)


def test_epsilon_outside_of_the_root_is_told_from_one_inside():
    adam = optax.adam(1e-2)
    with pytest.raises(HesimError, match=r"inv_sqrt grows .*eps_root=1e-3.*models\.adamw_he"):
        hesim.approximate(step_of(adam), [(W, adam.init(W), X, Y)])


def test_the_count_of_an_optimizer_is_to_stay_public():
    """What the message says to give is what works."""
    rule = optax.sgd(lambda count: 0.1 / (1 + count))
    args = W, rule.init(W), X, Y
    with pytest.raises(TraceError, match=r"args\[1\]\[1\]\.count .*optimizer.s count"):
        hesim.trace(step_of(rule), *args, encrypted=(0, 1, 2, 3))
    momentum = optax.chain(optax.trace(0.9), rule)
    args = W, momentum.init(W), X, Y
    with pytest.raises(TraceError, match=r"leaf\.dtype, jnp\.floating\), args\[1\]") as told:
        hesim.trace(step_of(momentum), *args, encrypted=(0, 1, 2, 3))
    flags = str(told.value).partition("encrypted=(")[2].partition("), with")[0]
    chosen = eval(f"({flags})", {"jax": jax, "jnp": jnp, "args": args})
    program = hesim.trace(step_of(momentum), *args, encrypted=chosen)
    assert [v.encrypted for v in program.inputs] == [True, True, False, True, True]
    assert hesim.approximate(step_of(momentum), [args]).encrypted == chosen


def test_no_choice_of_what_is_encrypted_is_none():
    with pytest.raises(TraceError, match=r"encrypted=None does not say"):
        hesim.trace(lambda x: x, X, encrypted=None)


def test_a_state_that_is_not_handed_on_is_named_leaf_by_leaf(params):
    state = optax.trace(0.9).init({"a": X, "b": X})

    def compiled(new):
        program = hesim.trace(lambda w, s: (w, new(s)), X, state, encrypted=(0, 1))
        return hesim.compile(program, params, carried={0: 0, 1: 1})

    with pytest.raises(ArgumentError, match=r"result 1 is None, and argument 1 is not"):
        compiled(lambda s: None)
    with pytest.raises(ArgumentError, match=r"args\[1\]\.trace\['b'\] has no counterpart in res"):
        compiled(lambda s: s._replace(trace={"a": s.trace["a"]}))
    with pytest.raises(ArgumentError, match=r"result\[1\]\[1\] have no counterpart in argument 1"):
        compiled(lambda s: (X * s.trace["a"], s.trace["b"]))


def test_values_that_are_no_numbers_are_traced_to_their_argument():
    exp = approx.fit("exp", (-1, 1), degree=3)
    program = hesim.trace(lambda x, w: exp(x) * w, X, X, encrypted=(0,))
    good, bad = (X / 9, X), (X / 9, X * np.inf)
    with pytest.raises(ParameterError, match=r"batch 1 .*such values are in args\[1\]"):
        hesim.calibrate(program, [good, bad])
    with pytest.raises(ParameterError, match=r"met \[.*1e\+200\] outside of its domain \[-1, 1\]"):
        hesim.calibrate(program, [(np.full(X.shape, 1e200), X)])
    with pytest.raises(ArgumentError, match=r"tanh at .* args\[0\] of batch 1 holds such values"):
        hesim.approximate(jnp.tanh, [X, X * np.nan])
    with pytest.raises(ArgumentError, match=r"arguments are finite.* float32 are exp at"):
        hesim.approximate(lambda x: jnp.exp(jnp.exp(x)), [np.array([1.0, 90.0], np.float32)])


def test_weights_that_are_zero_still_are_warned_of():
    """LoRA's B: what a site meets of it is no range to fit a polynomial to."""
    zeros = np.zeros((4, 2), np.float32)
    layer = lambda x, b: jnp.tanh(x @ b) + x[:, :2]
    with pytest.warns(ConstantValuesWarning, match=r"tanh at .*test_own_steps.* met 0 only"):
        hesim.approximate(layer, [(X, zeros)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConstantValuesWarning)
        hesim.approximate(layer, [(X, zeros), (X, W)])
        hesim.approximate(layer, [(X, zeros)], overrides={"tanh": {"domain": (-4, 4)}}, degree=7)
    exp = approx.fit("exp", (-1, 1), degree=3)
    found = hesim.calibrate(hesim.trace(lambda x, b: exp(x @ b), X, zeros), [(X, zeros)])
    with pytest.warns(ConstantValuesWarning, match="met 0 only"):
        assert found.domains() == ((-1e-7, 1e-7),)
    with (
        pytest.warns(ConstantValuesWarning),
        pytest.raises(ArgumentError, match="every result is 0 on the batches"),
    ):
        hesim.approximate(lambda x, b: jnp.tanh(x @ b), [(X, zeros)])
