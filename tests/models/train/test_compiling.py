"""The first step of a training is announced, and left at a stop."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.train.compiling import COMPILING, Abandoned, announced, pending
from models.train.loop import run_steps
from models.train.step import initial_state, make_update


def loss(trained, frozen, batch, key):
    del frozen, key
    value = ((trained["w"] - batch) ** 2).sum()
    return value, {"loss": value}


@pytest.fixture
def state():
    return initial_state({"w": jnp.zeros(2)}, optax.sgd(0.1), jax.random.key(0))


def never():
    return False


def test_the_first_call_is_announced_and_its_end_too(state):
    said: list[str] = []
    step = make_update(loss, optax.sgd(0.1))
    plain = run_steps(
        make_update(loss, optax.sgd(0.1)),
        jax.tree.map(jnp.copy, state),
        lambda n: jnp.ones(2),
        until=3,
    )
    ended = run_steps(announced(step, never, said.append), state, lambda n: jnp.ones(2), until=3)
    assert said == [COMPILING, ""]
    np.testing.assert_array_equal(plain.params["w"], ended.params["w"])
    assert announced(step, never, None) is step


def test_a_stop_leaves_the_step_and_the_state_as_it_was(state):
    go_on, said = threading.Event(), []

    def slow(state, batch):
        go_on.wait(30)
        return make_update(loss, optax.sgd(0.1))(state, batch)

    began = time.monotonic()
    with pytest.raises(Abandoned):
        run_steps(
            announced(slow, lambda: bool(said), said.append), state, lambda n: jnp.ones(2), until=3
        )
    assert time.monotonic() - began < 20  # the step takes 30
    assert said == [COMPILING] and int(state.step) == 0 and pending()
    go_on.set()
    while pending():
        time.sleep(0.01)
    np.testing.assert_array_equal(state.params["w"], np.zeros(2))  # still there: a copy was donated


def test_what_the_first_call_raises_is_raised(state):
    def broken(state, batch):
        raise ZeroDivisionError

    def sleeping(state, batch):
        time.sleep(0.5)
        return state, {}

    with pytest.raises(ZeroDivisionError):
        announced(broken, never, lambda note: None)(state, None)
    with pytest.raises(Abandoned):
        announced(sleeping, lambda: True, lambda note: None)(state, None)


def test_numbers_are_as_precise_as_outside(state):
    def double(state, batch):
        return state, {"loss": jnp.asarray(1 / 3)}

    with jax.enable_x64(True):
        _, found = announced(double, never, lambda note: None)(state, None)
        assert found["loss"].dtype == jnp.float64
