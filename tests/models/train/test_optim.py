"""AdamW-HE against its formula, with the exact and with a polynomial root."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import approx
from models.errors import CheckpointError
from models.train.checkpoint import Checkpoints
from models.train.optim import AdamHEState, adamw_he, on_stacks, scale_by_adam_he

LR, B1, B2, EPS, WD = 0.1, 0.9, 0.99, 1e-2, 0.3


def run(optimizer, gradients):
    params = {"w": jnp.array([1.0, -2.0])}
    state = optimizer.init(params)
    for g in gradients:
        updates, state = optimizer.update({"w": g}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return np.asarray(params["w"])


def test_update_is_algorithm_one():
    gradients = jax.random.normal(jax.random.key(0), (5, 2))
    theta, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for t, g in enumerate(np.asarray(gradients, float), start=1):
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
        step = (m / (1 - B1**t)) / np.sqrt(v / (1 - B2**t) + EPS)
        theta = theta - LR * (step + WD * theta)
    np.testing.assert_allclose(run(adamw_he(LR, B1, B2, EPS, WD), gradients), theta, rtol=1e-5)


def test_polynomial_root_with_prescale():
    gradients = 0.5 * jax.random.normal(jax.random.key(1), (5, 2))
    root = approx.fit("inv_sqrt", (0.5 * EPS, 1.0), degree=63)
    exact = run(adamw_he(LR, B1, B2, EPS, WD), gradients)
    ours = run(adamw_he(LR, B1, B2, EPS, WD, inv_sqrt=root, prescale=0.5), gradients)
    np.testing.assert_allclose(ours, exact, rtol=1e-2)
    assert not np.array_equal(ours, exact)


def test_stacks_of_leaves_take_the_same_steps():
    keys = iter(jax.random.split(jax.random.key(2), 12))
    shapes: dict[str, Any] = {
        "query": [(2, 3), (3, 2)],
        "key": [(2, 3), (3, 2)],
        "head": (3,),
        "scale": (),
    }

    def drawn():
        is_shape = lambda node: isinstance(node, tuple)
        return jax.tree.map(lambda s: jax.random.normal(next(keys), s), shapes, is_leaf=is_shape)

    params, gradients = drawn(), drawn()
    taken: list[Any] = []
    moments: Any = None
    for stacked in (False, True):
        optimizer = adamw_he(LR, B1, B2, EPS, WD, stacked=stacked)
        state = optimizer.init(params)
        updates: Any = None
        for _ in range(3):
            updates, state = optimizer.update(gradients, state, params)
        taken.append(updates)
        moments = state
    jax.tree.map(np.testing.assert_array_equal, *taken)
    stacks = [x.shape for x in jax.tree.leaves(moments[0].mean)]
    assert sorted(stacks) == [(1,), (1, 3), (4, 2, 3)]


def test_moments_of_a_stack_for_each_of_two_shapes_are_refused(tmp_path):
    params = {"a": jnp.zeros((3, 2)), "b": jnp.zeros((2, 3))}
    state = on_stacks(scale_by_adam_he()).init(params)
    assert isinstance(state, AdamHEState)
    apart = {"3 2": jnp.ones((1, 3, 2)), "2 3": jnp.ones((1, 2, 3))}
    with Checkpoints(tmp_path) as store:
        store.save(1, AdamHEState(state.count, apart, apart))
        with pytest.raises(CheckpointError, match="3 2.*wanted absent"):
            store.restore(state)
