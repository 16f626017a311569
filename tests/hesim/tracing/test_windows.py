"""Sums over windows as sums of few slices, or of parts."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from hesim.trace import trace

X = np.random.default_rng(0).normal(size=(2, 9, 8)).astype(np.float32)

WINDOWS = {
    "side by side": ((1, 2, 4), (1, 2, 4), "VALID", {}),
    "with some left over": ((1, 4, 3), (1, 4, 3), "VALID", {}),
    "overlapping": ((1, 3, 5), (1, 1, 1), "SAME", {}),
    "overlapping, strided": ((2, 3, 3), (1, 2, 3), [(0, 0), (1, 2), (0, 1)], {}),
    "apart": ((1, 3, 2), (1, 1, 2), "VALID", {"window_dilation": (1, 2, 3)}),
    "between": ((1, 3, 1), (1, 2, 1), "SAME", {"base_dilation": (1, 2, 1)}),
    "negative padding": ((1, 2, 2), (1, 2, 2), [(0, 0), (-1, 0), (1, -1)], {}),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_values(name):
    window, strides, padding, options = WINDOWS[name]

    def fn(x):
        return lax.reduce_window(x, 0.0, lax.add, window, strides, padding, **options)

    program = trace(fn, X)
    assert np.allclose(program(X), fn(X), atol=1e-5)
    sums = [e for e in program.ops if e.name in ("add", "reduce_sum")]
    assert len(sums) <= sum(2 * d.bit_length() for d in window if d > 1)


def test_windows_side_by_side_are_no_slices():
    fn = lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 3, 4), (1, 3, 4), "VALID")
    names = {e.name for e in trace(fn, jnp.asarray(X)).ops}
    assert "slice" not in names and "add" not in names
