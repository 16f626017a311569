"""What the giant steps of a map cost, counted for all of them together."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hesim.circuit.packing import maps
from hesim.circuit.packing.maps import KEY, Terms, distinct


def counted(terms: Terms, unit: int, number: np.ndarray, step: int, ring: tuple[int, int]) -> float:
    """Rotations and keys of one step, term by term."""
    columns, repeats = ring
    baby = unit * (number % step if step else number)
    giant = unit * (number - number % step if step else np.zeros_like(number))
    keys = len(np.unique(baby % repeats)) + bool(step & (step - 1))
    rotations = distinct(terms.into, baby, repeats) + 2 * distinct(terms.out, giant, columns)
    return rotations + KEY * keys


@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(1, 9), st.integers(0, 2))
def test_all_steps_cost_together_what_each_one_costs(seed: int, count: int, unit: int, times: int):
    rng = np.random.default_rng(seed)
    columns, repeats = 256, 256 >> times
    number = rng.integers(-64, 64, count)
    terms = Terms(rng.integers(0, 4, count), rng.integers(0, 3, count), unit * number)
    steps = [0, 1, 2, 3, 8, 12, 64]
    found = maps._counts(terms, unit, number, steps, columns, repeats, outs=2)
    each = [counted(terms, unit, number, step, (columns, repeats)) for step in steps]
    np.testing.assert_allclose(found, each)
