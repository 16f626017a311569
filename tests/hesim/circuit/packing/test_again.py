"""Searches that are done again with inputs where the plan before wanted them, and copies."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from hesim import trace
from hesim.circuit.circuit import Kind
from hesim.circuit.packing import search
from hesim.circuit.packing.layout import GAP, Coordinate, Layout
from hesim.circuit.packing.lowering import _setting, lowerings
from hesim.circuit.packing.offers.gathered import moved
from hesim.circuit.packing.operations import operations
from hesim.circuit.refresher import KEY_HOLDER
from tests.hesim.circuit.conftest import quiet_params
from tests.hesim.circuit.packing.test_random_plans import program as random_program
from tests.hesim.circuit.test_carried import check_carried

RNG = np.random.default_rng(1)
SCALES, WEIGHTS = RNG.normal(size=(64, 1)), RNG.normal(size=(64, 64)) / 8


def adapted(state, x):
    """A product by a matrix of low rank, scaled row by row, and its gradient."""
    low = SCALES * state
    y = (x @ WEIGHTS) @ low
    return 0.9 * state + 0.01 * SCALES * (x.T @ y), y


def planned(fn, args, again: float) -> search.Plan:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(search, "_WORTH_AGAIN", again)
        traced = trace(fn, *args, encrypted=tuple(range(len(args))))
        return next(lowerings(traced, quiet_params(12, 6), None, KEY_HOLDER, False, beam=1)).plan


def test_an_input_lies_where_the_plan_before_wanted_it():
    args = np.zeros((64, 2)), np.zeros((16, 64))
    first, again = (planned(adapted, args, worth) for worth in (np.inf, 0.0))
    assert again.seconds < 0.99 * first.seconds
    assert again.inputs != first.inputs


@pytest.mark.parametrize("seed", [0, 2, 3, 5])
def test_a_plan_again_is_no_dearer(seed):
    fn, args = random_program(seed)
    first, again = (planned(fn, args, worth) for worth in (np.inf, 0.0))
    assert again.seconds <= first.seconds


def test_what_is_planned_again_computes_the_same(monkeypatch):
    monkeypatch.setattr(search, "_WORTH_AGAIN", 0.0)
    args = RNG.normal(size=(64, 2)) / 8, RNG.normal(size=(16, 64)) / 8
    check_carried(
        *(adapted, args), encrypted=(0, 1), carried={0: 0}, steps=2, params=quiet_params(12, 6)
    )


def test_rows_of_a_stack_stay_where_they_are():
    program = trace(lambda *rows: jnp.stack(rows), *(np.zeros((64, 2)),) * 5)
    axes = {v.id: None for v in (*program.inputs, *program.ops[0].outputs)}
    (op,) = operations(program, axes)
    apart = Coordinate(1, 2, 1)
    row = Layout((64, 2), (Coordinate(GAP, 16), Coordinate(0, 64, 1)), (apart,)).canonical()
    found = list(moved(_setting(program, axes, 1024, {}, math.inf), op, (row,) * 5))
    whole = [offer for offer in found if offer.outs[0].ciphertexts == 1]
    vectors = [
        sum(
            each.terms * number
            for work in offer.works
            for each, number in work.rows.items()
            if each.kind == Kind.DOT_PLAIN
        )
        for offer in whole
    ]
    assert min(vectors) <= 10  # one for each ciphertext of a row, rather than each element
