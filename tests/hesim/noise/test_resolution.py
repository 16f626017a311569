"""Noise that float32 rounds away is told of, once, where it can be seen."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hesim
from hesim.errors import SwallowedNoiseWarning

FINE = hesim.CKKSParams(13, 2, 40, 50, 60)
COARSE = hesim.CKKSParams(12, 1, 24, 34, 36)
X = np.linspace(-1, 1, 32, dtype=np.float32)
KEY = jax.random.key(0)


def square(x):
    return x * x


def test_the_caller_is_told_once_what_to_do():
    simulated = hesim.simulate(square, FINE)
    with pytest.warns(
        SwallowedNoiseWarning, match=r"rounded away in float32.*jax\.enable_x64"
    ) as w:
        simulated(KEY, X)
    assert len(w) == 1 and w[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulated(KEY, X)


def test_noise_that_can_be_seen_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error", SwallowedNoiseWarning)
        found = hesim.simulate(square, COARSE)(KEY, X)
        assert np.any(np.asarray(found) != X * X)
        with jax.enable_x64(True):
            wide = X.astype(np.float64)
            assert np.any(np.asarray(hesim.simulate(square, FINE)(KEY, wide)) != wide * wide)


def test_neither_training_nor_what_is_public_is_warned_of():
    simulated = hesim.simulate(lambda x, w: (x * 1e-6, w), FINE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SwallowedNoiseWarning)
        jax.jit(hesim.simulate(square, FINE))(KEY, X)
        jax.grad(lambda x: jnp.sum(hesim.simulate(square, FINE)(KEY, x)))(X)
        simulated(KEY, X, X)
