"""Holds Programs and their Circuits to the function itself, not to its trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from he_backend import run
from hesim import CKKSParams, Program, trace


def as_function(
    fn: Callable[..., Any],
    *args: Any,
    encrypted: Any = (0,),
    levels: int = 6,
    tolerance: float = 1e-9,
) -> Program:
    """Asserts that the Program of `fn`, in float64, and its run on slots give what `fn` itself
    gives under x64; returns the Program.
    """
    with jax.enable_x64(True):
        wide = jax.tree.map(jnp.asarray, args)
        wanted = [np.asarray(x) for x in jax.tree.leaves(fn(*wide))]
        program = trace(fn, *args, encrypted=encrypted)
        params = CKKSParams(11, levels, 40, 50, 60, security=None)
        found = jax.tree.leaves(program(*args, precision="float64"))
        ran = jax.tree.leaves(run(program, *args, params=params, backend="slots").outputs)
    for want, exact, slots in zip(wanted, found, ran, strict=True):
        assert np.shape(exact) == np.shape(slots) == want.shape
        size = max(1.0, float(np.max(np.abs(want), initial=0.0)))
        np.testing.assert_allclose(exact, want, rtol=0, atol=tolerance * size)
        np.testing.assert_allclose(slots, want, rtol=0, atol=tolerance * size)
    return program


@pytest.fixture(scope="session", name="as_function")
def as_function_fixture() -> Callable[..., Program]:
    """`as_function`."""
    return as_function
