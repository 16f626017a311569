"""Gains that make slots as large as a bootstrap is made for, without a level more."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

import approx
import hesim
from hesim.circuit.circuit import Circuit
from hesim.circuit.compile import planned
from hesim.circuit.refresher import Refresher
from hesim.circuit.refreshes.costs import Placed, StageCosts
from hesim.circuit.shape import stage_shapes
from hesim.noise.placement import of_circuit
from tests.hesim.circuit.conftest import quiet_params, refreshed_sizes, run_slots

rng = np.random.default_rng(0)
WIDTH = 16
UP, GATE, DOWN = (rng.normal(size=(WIDTH, WIDTH)) / 4 for _ in range(3))
X = rng.uniform(-1, 1, (4, WIDTH))
RELU = approx.fit("relu", (-8, 8), degree=15)

BOOTSTRAP = Refresher(
    "bootstrap",
    interactive=False,
    min_input_level=2,
    price=10.0,
    error="lattigo_30",
    value_range=1.0,
)


def gated(x, times: float = 1.0):
    """Values of up to 4, gates of up to 6, their products, small ones, and large sums of those."""
    made = RELU(4.0 * x @ UP) * (times * 6.0 * x @ GATE)
    normed = (made @ DOWN) * 0.1
    again = RELU(normed * 2.0) * normed
    return (again * (made @ GATE * 0.05)) @ DOWN * 0.2


pytestmark = pytest.mark.filterwarnings("ignore::hesim.errors.EmptySlotsWarning")


@pytest.fixture(scope="module")
def program() -> hesim.Program:
    with jax.enable_x64(True):
        return hesim.trace(gated, X)


@pytest.fixture(scope="module")
def calibration(program) -> hesim.Calibration:
    return hesim.calibrate(program, [(X,)])


@pytest.fixture(scope="module")
def ring() -> hesim.CKKSParams:
    with pytest.warns(hesim.params.InsecureParametersWarning):
        return hesim.CKKSParams(11, 7, 40, 58, 60, security=None)


@pytest.fixture(scope="module")
def fitted(program, calibration, ring) -> Circuit:
    return hesim.compile(program, ring, refresher=BOOTSTRAP, calibration=calibration)


def test_what_is_refreshed_is_within_its_range_and_costs_nothing(program, ring, fitted):
    plain = hesim.compile(program, ring, refresher=BOOTSTRAP)
    assert max(refreshed_sizes(plain, (X,))) > 2.0
    sizes = refreshed_sizes(fitted, (X,))
    assert 0.25 < max(sizes) <= 1.0 and min(sizes) > 0.05
    # The next values may be a quarter larger.
    assert max(refreshed_sizes(fitted, (X * 1.25 ** (1 / 6),))) <= 1.0
    for name in ("refreshes", "depth", "plain_products", "rescales", "products"):
        assert getattr(fitted.ledger, name) <= getattr(plain.ledger, name)


def test_values_come_back_at_their_own_size(fitted):
    (output,), taps = run_slots(fitted, (X,))
    exact = np.asarray(gated(X))
    assert output is not None
    np.testing.assert_allclose(output, exact, atol=1e-6 * np.abs(exact).max())
    gains = {tap.op: tap.gain for tap in fitted.taps}
    (first, *_) = [k for k, eqn in enumerate(fitted.program.ops) if eqn.name == "polynomial"]
    assert abs(gains[first]) > 1.0  # the coefficients of a polynomial take it
    assert np.max(taps[first]) > 2.0


def test_errors_are_predicted_as_certified(program, ring, fitted):
    certified = hesim.certify(fitted, (X,), keys=8)
    schedule = of_circuit(program, fitted)
    found = hesim.predict(program, ring, (X,), 2, schedule=schedule, jit=False, seed=1)
    assert abs(math.log2(found.ops[-1].std / certified.ops[-1].std)) < 0.5


def test_small_values_are_raised_where_they_are_refreshed(ring):
    small = UP * 2.0**-6
    with jax.enable_x64(True):
        program = hesim.trace(lambda x: hesim.refresh(x @ small) @ DOWN, X)
    calibration = hesim.calibrate(program, [(X,)])
    plain = hesim.compile(program, ring, refresher=BOOTSTRAP)
    raised = hesim.compile(program, ring, refresher=BOOTSTRAP, calibration=calibration)
    (before,), (after,) = refreshed_sizes(plain, (X,)), refreshed_sizes(raised, (X,))
    assert before < 2.0**-5 and 0.25 < after <= 1.0
    errors = [hesim.certify(c, (X,), keys=4).ops[-1].std for c in (plain, raised)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(math.log2(after / before), abs=0.1)


def test_what_has_no_coefficients_is_scaled_before_a_refresh_by_a_level(ring):
    def grown(x):
        return hesim.refresh(x * x + 3.0 * x) * (x + 1.0)

    with jax.enable_x64(True):
        program = hesim.trace(grown, X)
    short = quiet_params(11, 5)
    plain = hesim.compile(program, short, refresher=BOOTSTRAP)
    calibration = hesim.calibrate(program, [(X,)])
    found = hesim.compile(program, short, refresher=BOOTSTRAP, calibration=calibration)
    assert (
        max(refreshed_sizes(plain, (X,))) > 2.0 and 0.25 < max(refreshed_sizes(found, (X,))) <= 1.0
    )
    assert found.ledger.refreshes == plain.ledger.refreshes
    assert found.ledger.depth == plain.ledger.depth + 1
    (output,), _ = run_slots(found, (X,))
    assert output is not None
    np.testing.assert_allclose(output, grown(X), atol=1e-8)


def test_what_a_polynomial_holds_inside_is_known_and_spared(ring):
    poly = approx.fit("inv_sqrt", (0.01, 1), degree=31)
    with jax.enable_x64(True):
        program = hesim.trace(lambda x: poly(x), 0.5 + 0.49 * X)
    plan = planned(program, ring, refresher=BOOTSTRAP)
    sizes, points = plan.builder.sizes, np.linspace(0.01, 1, 1000)
    assert max(sizes) == max(plan.builder.nodes[n].stage for n in plan.planner.live)
    assert sizes[max(sizes)] == pytest.approx(np.abs(poly(points)).max(), rel=1e-3)
    large = min(s for s, x in sizes.items() if x > 1.01)
    shapes = stage_shapes(plan.builder, plan.planner.live)
    seconds = []
    for dear in ({}, {large: 5.0}):
        costs = StageCosts(shapes, ring, None, BOOTSTRAP, dear=dear)
        placed = costs.placed({costs.names.index(large)})
        assert isinstance(placed, Placed)
        seconds.append(placed.seconds)
    assert seconds[1] - seconds[0] == pytest.approx(4 * 10.0)


def test_what_an_applied_gain_makes_large_is_refreshed_before_it_is_applied(ring):
    large = 64.0 * UP

    def powers(x):
        return ((x @ large) ** 2 * (x @ DOWN)) ** 2 * (x @ GATE)

    with jax.enable_x64(True):
        program = hesim.trace(powers, X)
    calibration = hesim.calibrate(program, [(X,)])
    found = hesim.compile(
        program, quiet_params(11, 4), refresher=BOOTSTRAP, calibration=calibration
    )
    square = next(tap for tap in found.taps if found.op_names[tap.op] in ("square", "integer_pow"))
    sizes, most = refreshed_sizes(found, (X,)), float(np.max((X @ large) ** 2))
    assert square.gain > 2.0**10
    assert any(size == pytest.approx(most / square.gain) for size in sizes)
    assert max(sizes) < most


def test_key_holders_take_values_as_they_are(program, calibration, ring):
    plain = hesim.compile(program, ring)
    known = hesim.compile(program, ring, calibration=calibration)
    assert plain.ledger == known.ledger
    for name in ("kind", "level", "scale", "arg", "plain_scale"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(known, name))
