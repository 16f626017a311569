"""Runs whose values do not fit the lowest levels: they are planned where there is room."""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import he_backend
import hesim
from he_backend.errors import ValueRangeError
from hesim.circuit.plain.contents import slot_contents


def params_of(levels: int) -> hesim.CKKSParams:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hesim.CKKSParams(11, levels, 40, 50, 60, security=None)


CASES = [
    (jnp.mean, np.linspace(18.0, 90.0, 1000)),
    (lambda x: jnp.sum(x / 1000.0), np.linspace(18.0, 90.0, 500)),
    (lambda x: x @ x, np.full(1000, 40.0)),
    (lambda x: x.reshape(14, 2, 14, 2).mean((1, 3)).sum(), np.arange(784.0).reshape(28, 28)),
    (lambda x: (x + x) @ (10 * np.eye(4)), np.array([0.2, 2.4e5, 3.0, 1.0])),
]


@pytest.mark.parametrize("case", CASES, ids=["mean", "sum", "product", "pool", "matrix"])
def test_unused_levels_are_room_for_values(case):
    fn, x = case
    program = hesim.trace(fn, x)
    report = he_backend.run(program, x, params=params_of(5), backend="slots")
    np.testing.assert_allclose(report.outputs, report.exact, rtol=1e-9)
    assert report.ledger.refreshes == 0


def test_values_that_no_level_holds_are_refused_with_what_would():
    program = hesim.trace(jnp.mean, np.ones(1000))
    with pytest.raises(ValueRangeError, match=r"too large for level 0 .*: take first_bits=\d+"):
        he_backend.run(program, np.full(1000, 54.0), params=params_of(0), backend="slots")


def test_a_circuit_of_the_callers_is_not_replaced_but_advised_on():
    x = np.linspace(18.0, 90.0, 1000)
    program = hesim.trace(jnp.mean, x)
    circuit = hesim.compile(program, params_of(5))
    with pytest.raises(ValueRangeError, match=r"calibration=hesim.calibrate\(program, \[args\]\)"):
        he_backend.run(program, x, circuit=circuit, backend="slots")
    advised = hesim.compile(program, params_of(5), calibration=hesim.calibrate(program, [(x,)]))
    report = he_backend.run(program, x, circuit=advised, backend="slots")
    assert report.outputs == pytest.approx(54.0)


def test_contents_are_what_slots_hold_before_gains():
    x = np.full(512, 2.0)
    circuit = hesim.compile(hesim.trace(lambda x: jnp.mean(x) * 3.0, x), params_of(2))
    found = slot_contents(circuit, [x], circuit.publics.evaluate([x]))
    assert found[-1] == 2.0 and max(found.values()) == 1024.0


def test_a_run_is_planned_as_it_is_asked():
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(24, 24)) / 5, rng.normal(size=(5, 24))
    program, params = hesim.trace(lambda x: (x @ w) ** 2 @ w, x), params_of(3)
    usual = he_backend.run(program, x, params=params, backend="slots").ledger
    memory = usual.peak_bytes - 3 * params.key_bytes()
    asked = {"memory": memory, "interactive": False, "objective": "rounds"}
    report = he_backend.run(program, x, params=params, backend="slots", **asked)
    np.testing.assert_allclose(report.outputs, report.exact, rtol=1e-9)
    assert report.ledger.rotation_keys < usual.rotation_keys
    assert report.ledger.peak_bytes <= memory and report.ledger.refreshes == 0
