"""Domains keep to the side of a pole that their values were met on."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import hesim


@pytest.mark.parametrize("name", ["inv", "inv_sqrt", "log"])
def test_positive_values_of_different_orders_of_magnitude_stay_positive(name):
    # Wide ranges: a grid over the domain need not meet the pole at 0.
    function = {"inv": lambda x: 1 / x, "inv_sqrt": lambda x: 1 / jnp.sqrt(x), "log": jnp.log}
    x = np.geomspace(0.08, 86.0, 400)
    smooth = hesim.approximate(function[name], [x], tol=0.3, margin=0.1)
    (site,) = smooth.sites
    assert site.operation == name and site.domain[0] > 0.0
    assert smooth.output_error <= 0.3
