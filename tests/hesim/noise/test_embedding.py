"""The canonical embedding, in the slot orders of two generators."""

import numpy as np
import pytest

from hesim.noise import embedding

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("generator", [3, 5])
def test_slots_are_values_at_powers_of_the_generator(generator):
    m = RNG.normal(size=64)
    powers = embedding.roots(64, generator)
    direct = [np.sum(m * np.exp(1j * np.pi * k * np.arange(64) / 64)).real for k in powers]
    np.testing.assert_allclose(embedding.slots(m, generator), direct, atol=1e-12)
    assert powers[:3].tolist() == [1, generator, generator**2]


@pytest.mark.parametrize("generator", [3, 5])
def test_coefficients_of_real_slots(generator):
    values = RNG.normal(size=(3, 64))
    m = embedding.coefficients(values, generator)
    np.testing.assert_allclose(embedding.slots(m, generator), values, atol=1e-12)
    np.testing.assert_allclose(m[:, 1:], -m[:, :0:-1], atol=1e-12)
    assert np.mean(m**2) == pytest.approx(np.mean(values**2) / 128)
    constant = embedding.coefficients(np.full(64, 0.7), generator)
    np.testing.assert_allclose(constant, 0.7 * (np.arange(128) == 0), atol=1e-12)
