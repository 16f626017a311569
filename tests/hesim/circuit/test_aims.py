"""What a caller asks a plan for: few rounds, no round at all, levels that hold the values."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import approx
import hesim
from hesim import LevelError, compile, refresh, trace
from hesim.circuit.circuit import Kind
from hesim.circuit.refresher import KEY_HOLDER
from hesim.circuit.refreshes.costs import StageCosts
from hesim.circuit.refreshes.rounds import fewest_rounds
from hesim.circuit.shape import Row, StageShape
from hesim.errors import ArgumentError, ParameterError, ValueOverflowError

X = np.linspace(-0.9, 0.9, 12).reshape(4, 3)
W = np.random.default_rng(0).normal(size=(3, 3)) / 2


def stage(number: int, inputs: tuple[int, ...], *, drop: int = 1, width: int = 1, rotations: int):
    rows = {Row(Kind.ROTATE): rotations} | {Row(Kind.RESCALE, k): width for k in range(drop)}
    return StageShape(rows, drop=drop, width=width, inputs=inputs, source=number)


def test_no_set_of_refreshes_has_fewer_rounds(small_params):
    params = small_params(levels=5)
    several = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        shapes = {0: StageShape({Row(Kind.INPUT, terms=0): 2}, width=2)}
        for k in range(1, 9):
            inputs = {int(i) for i in rng.integers(max(0, k - 3), k, size=2)}
            drop, width, rotations = (int(rng.integers(*r)) for r in ((0, 3), (1, 4), (0, 9)))
            shapes[k] = stage(k, tuple(sorted(inputs)), drop=drop, width=width, rotations=rotations)
        costs = StageCosts(shapes, params, None, KEY_HOLDER)
        every = (
            set(itertools.compress(range(1, 9), bits))
            for bits in itertools.product((0, 1), repeat=8)
        )
        fewest = min(
            costs.rounds(chosen.__contains__)
            for chosen in every
            if not isinstance(costs.placed(chosen), int)
        )
        found = fewest_rounds(costs)
        assert found is not None
        assert costs.rounds(found.refreshed.__contains__) == fewest, seed
        several += fewest > 1
    assert several >= 3


def deep(x):
    for _ in range(6):
        x = (x @ W) * x + 0.1 * x
    return x


def test_rounds_are_as_few_as_levels_permit_and_then_seconds(check, small_params):
    params = small_params(levels=4)
    fast, few = (check(deep, X, params=params, objective=o) for o in ("seconds", "rounds"))
    assert few.ledger.refresh_rounds == math.ceil(few.ledger.depth / 4) - 1
    assert few.ledger.refresh_rounds < fast.ledger.refresh_rounds
    assert fast.ledger.seconds <= few.ledger.seconds
    assert check(deep, X, params=small_params(levels=12), objective="rounds").ledger.refreshes == 0


def test_an_objective_that_there_is_not_is_named(small_params):
    with pytest.raises(ParameterError, match="objective='depth' must be 'seconds' or 'rounds'"):
        compile(trace(deep, X), small_params(), objective="depth")


def test_without_the_key_holder_nothing_is_refreshed(check, small_params):
    params = small_params(levels=12)
    assert check(lambda x: x**64, X, params=params).ledger.refreshes > 0
    assert check(lambda x: x**64, X, params=params, interactive=False).ledger.refreshes == 0


def test_what_cannot_do_without_the_key_holder_says_what_it_would_take(small_params):
    gelu = approx.fit("gelu", (-4, 4), degree=31)
    program = trace(lambda x: gelu(x @ W) * x, X)
    params = hesim.CKKSParams(13, 3, 30, 40, 50)
    with pytest.raises(LevelError) as caught:
        compile(program, params, interactive=False)
    text, needed = str(caught.value), caught.value.needed
    assert needed is not None and f"needs {needed} levels but the parameters have 3" in text
    assert "polynomial at " in text and "takes most of them on that path" in text
    assert f"levels={needed} is a modulus of {90 + 30 * needed} bits" in text
    assert "which takes N = 2^14 at 128-bit security" in text
    again = compile(program, hesim.CKKSParams(14, needed, 30, 40, 50), interactive=False)
    assert again.ledger.levels == needed and again.ledger.refreshes == 0
    fewer = hesim.CKKSParams(14, needed - 1, 30, 40, 50)
    with pytest.raises(LevelError, match=f"needs {needed} levels"):
        compile(program, fewer, interactive=False)


def test_a_refresh_of_the_program_is_a_round_that_may_be_forbidden(check, small_params):
    params = small_params(levels=4)
    program = trace(lambda x: refresh(x * x) * x, X)
    with pytest.raises(
        LevelError, match=r"`refresh` at .*test_aims.*interactive=False allows none"
    ):
        compile(program, params, interactive=False)
    server = hesim.bootstrap("lattigo_40", seconds=1.0)
    circuit = compile(program, params, interactive=False, refresher=server)
    assert circuit.ledger.refresh_rounds == 1 and not circuit.refresher.interactive


def mean_and_square(x):
    return x.mean(), (x - x.mean()) ** 2


AGES = np.linspace(18.0, 90.0, 100)
"""Their sum is 5400, and level 0 of `small_params` holds less than 512."""


def test_values_of_a_calibration_are_computed_at_levels_that_hold_them(check, small_params):
    params, program = small_params(levels=6), trace(mean_and_square, AGES)
    ranges = hesim.calibrate(program, [(AGES,)])
    with pytest.raises(ValueOverflowError):
        ranges.check(params, compile(program, params))
    for options in ({}, {"interactive": False}, {"objective": "rounds"}):
        circuit = check(mean_and_square, AGES, params=params, calibration=ranges, **options)
        ranges.check(params, circuit)
        assert circuit.level[circuit.outputs[0].ciphers].min() > 0


def test_what_is_refreshed_holds_its_values_before_and_after(check, small_params):
    def fn(x):
        for _ in range(4):
            x = (x + 2000.0) * 0.5
            x = x * x * 0.001
        return x

    params, x = small_params(levels=3), np.linspace(100.0, 1000.0, 8)
    ranges = hesim.calibrate(trace(fn, x), [(x,)])
    circuit = check(fn, x, params=params, calibration=ranges)
    assert circuit.ledger.refreshes and circuit.level.min() > 0


def test_values_that_no_level_holds_and_foreign_calibrations_are_refused(small_params):
    params, x = small_params(levels=1), np.full(4, 1e7)
    program = trace(lambda x: x * x, x)
    with pytest.raises(LevelError, match="mul at .* above level 1, which its values need"):
        compile(program, params, calibration=hesim.calibrate(program, [(x,)]))
    x = np.full(4, 1e8)
    with pytest.raises(ValueOverflowError, match=r"`?mul.* even level 1, the highest, wraps above"):
        compile(program, params, calibration=hesim.calibrate(program, [(x,)]))
    other = trace(lambda x: x + x, x)
    with pytest.raises(ArgumentError, match="other operations"):
        compile(other, params, calibration=hesim.calibrate(program, [(x,)]))
