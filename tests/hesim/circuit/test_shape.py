"""Shapes of stages: read from a Builder or made by hand, planned alike."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hesim import LevelError, trace
from hesim.circuit.circuit import Kind
from hesim.circuit.compile import planned
from hesim.circuit.levels import ShapePlanner
from hesim.circuit.shape import Row, StageShape, stage_shapes

X = np.linspace(-0.9, 0.9, 12).reshape(4, 3)
W = np.random.default_rng(0).normal(size=(3, 3)) / 2

INPUT = StageShape({Row(Kind.INPUT, terms=0): 1})


def product(number: int, drop: int = 1) -> StageShape:
    """The square of the stage before, or a masked product with it."""
    if drop == 1:
        rows = {Row(Kind.DOT): 1, Row(Kind.RELINEARIZE): 1, Row(Kind.RESCALE): 1}
    else:
        rows = {Row(Kind.DOT_PLAIN): 1, Row(Kind.DOT): 1, Row(Kind.RELINEARIZE, 1): 1}
        rows |= {Row(Kind.RESCALE, below): 1 for below in range(2)}
    return StageShape(rows, drop=drop, inputs=(number - 1,), source=number)


def chain(length: int, drop: int = 1) -> dict[int, StageShape]:
    return {0: INPUT} | {k: product(k, drop) for k in range(1, length + 1)}


def test_a_plan_from_shapes_is_that_of_the_stages(small_params):
    def fn(x):
        for _ in range(6):
            x = (x @ W) * x + 0.1 * x
        return x

    params = small_params(levels=3)
    plan = planned(trace(fn, X), params)
    shapes = stage_shapes(plan.builder, plan.planner.live)
    planner = ShapePlanner(shapes, params, str, None)
    schedule = planner.improved(planner.greedy())
    assert schedule == plan.planner.improved(plan.planner.greedy()) and schedule.refreshed
    # What the ledger finds in the instructions, but for few drops.
    spent = sum(op.seconds for op in plan.circuit(params).ledger.operations)
    assert schedule.seconds == pytest.approx(spent, rel=0.05)


@pytest.mark.parametrize("drop", [1, 2])
def test_shapes_by_hand_are_planned_before_there_are_stages(small_params, drop):
    params = small_params(levels=3)
    planner = ShapePlanner(chain(6 // drop, drop), params, "operation {}".format, 1.0)
    found = planner.improved(planner.greedy())
    levels = [found.level[s] - drop for s in range(1, 6 // drop + 1)]
    assert len(found.refreshed) == math.ceil(6 / (3 // drop * drop)) - 1
    assert min(levels) == 0 and max(found.level) <= 3
    assert found.seconds == pytest.approx(
        len(found.refreshed) * 1.0
        + sum(shape.seconds(found.level[s], 11) for s, shape in chain(6 // drop, drop).items())
    )
    forbidden = ShapePlanner(chain(6 // drop, drop), params, "operation {}".format, math.inf)
    with pytest.raises(LevelError, match=r"needs 6 levels.*run out at operation \d"):
        forbidden.greedy()


def test_a_stage_that_takes_more_levels_than_there_are_is_named(small_params):
    planner = ShapePlanner(chain(2, 2), small_params(levels=1), "operation {}".format, None)
    with pytest.raises(LevelError, match="operation 1 takes 2 at once.*levels=2"):
        planner.greedy()


@pytest.mark.parametrize("exact", [False, True])
def test_what_meets_plaintexts_alone_comes_to_a_lower_level_for_nothing(small_params, exact):
    def fn(x):
        y = ((x * x) ** 2) ** 2
        return y * x if exact else y + x * X

    params = small_params(levels=5)
    plan = planned(trace(fn, X), params, refresh_price=math.inf)
    circuit = plan.circuit(params)
    assert circuit.ledger.drops == 1 and circuit.ledger.plain_products == 1
    assert circuit.ledger.rescales == 3 + (2 if exact else 1)
    spent = sum(op.seconds for op in circuit.ledger.operations)
    assert plan.schedule.seconds == pytest.approx(spent)
