"""Constant factors kept beside ciphertexts neither underflow nor let the slots grow."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from hesim import certify

X = np.linspace(-1.0, 1.0, 8)


def shrunk(x):
    """x * 2^-1200, by factors that each are a float32."""
    for _ in range(12):
        x = x * 2.0**-100
    return x


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: shrunk(x) + x,
        lambda x: shrunk(x) + shrunk(x[::-1]),
        lambda x: x * 1e-30 * 1e-30 * 1e-30 * 1e-30 + 1.0,
        lambda x: (x * 1e-14) * 1e14,
    ],
)
def test_small_factors_do_not_underflow(check, fn):
    check(fn, X)


@pytest.mark.parametrize("steps", [12, 40])
def test_running_averages_stay_in_the_slots(check, small_params, steps):
    """Half of each, again and again: the values stay at most 1, so the slots may hold no more than
    level 0 can.
    """

    def fn(x):
        for _ in range(steps):
            x = 0.5 * x + 0.5 * jnp.roll(x, 1)
        return x

    params = small_params(levels=3)
    circuit = check(fn, np.ones(8), params=params)
    assert min(abs(tap.gain) for tap in circuit.taps) >= 2.0**-8


def test_sums_of_small_multiples_cost_no_level(check):
    """A step of gradient descent with momentum keeps its gains pending."""
    circuit = check(lambda x, g: 0.001 * x + 0.001 * g, X, X[::-1], encrypted=(0, 1))
    assert circuit.ledger.depth == 0


def test_small_public_factors_keep_their_precision(check):
    """Encoded as they are they would drown in the noise that the large ones then magnify."""
    small, large = 1e-13 * np.arange(1.0, 9.0), 1e13 * np.arange(8.0, 0.0, -1.0)
    circuit = check(lambda x: (x * small) * large, X)
    found = certify(circuit, (X,)).ops[-1]
    assert found.std < 1e-5
