"""Costs of a machine, measured and fitted."""

import dataclasses
import json
import warnings

import numpy as np
import pytest

import hesim
from experiments import calibration
from experiments.calibration import Timing, fitted, rings, working_rings
from he_backend.errors import BackendError
from he_backend.machines.measuring import measure
from hesim.circuit.costs.table import OPERATIONS, CostTable


@pytest.fixture(scope="module")
def shipped() -> CostTable:
    return CostTable.shipped()


def test_what_a_table_says_is_found_again(shipped):
    rng = np.random.default_rng(0)
    timings = [
        Timing(
            name, n, level, terms, shipped.seconds(name, level, n, terms) * rng.uniform(0.9, 1.1)
        )
        for name in OPERATIONS
        for n in (13, 14, 15)
        for level in (0, 1, 2, 4, 8)
        for terms in (1, 16)
    ]
    table = dataclasses.replace(shipped, operations=fitted(timings))
    for t in timings:
        ratio = table.seconds(t.operation, t.level, t.log_n, t.terms) / t.seconds
        assert 0.8 < ratio < 1.25, t


def test_every_operation_is_measured_at_every_level_that_has_it():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        params = hesim.CKKSParams(11, 2, 40, 50, 60, security=None)
    whole = measure("slots", params)
    assert whole.base_bytes > 1 << 20 and whole.key_factor >= 0.0
    found = {(t.operation, t.level) for t in whole.timings}
    assert {name for name, _ in found} == set(OPERATIONS)
    lowest = {name for name, level in found if level == 0}
    assert set(OPERATIONS) - lowest == {"rescale", "drop"}


def test_rings_are_secure_and_as_deep_as_they_can_be():
    assert [(p.log_n, p.levels) for p in rings(12, 14)] == [(13, 2), (14, 8)]


def test_the_command_writes_a_table_that_is_read_again(tmp_path, monkeypatch, capsys, shipped):
    from experiments.cli.app import main

    monkeypatch.setattr(calibration, "calibrate", lambda *_: shipped)
    monkeypatch.delenv("HESIM_COSTS", raising=False)
    path = tmp_path / "costs.json"
    with pytest.raises(SystemExit) as ended:
        main(["calibrate-costs", str(path)])
    assert ended.value.code == 0 and "rotate" in capsys.readouterr().out
    assert CostTable.load(path).operations == shipped.operations
    held = json.loads(path.read_text())
    del held["operations"]["rotate"]
    path.write_text(json.dumps(held))
    with pytest.raises(SystemExit) as ended:
        main(["--costs", str(path), "doctor"])
    assert ended.value.code == 2 and "has no rotate" in capsys.readouterr().err


def test_rings_have_digits_where_a_machine_switches_keys_in_some():
    assert [(p.log_n, p.levels, p.digits) for p in rings(13, 14, 3)] == [(13, 2, 3), (14, 5, 3)]


def test_what_fails_elsewhere_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        params = hesim.CKKSParams(11, 2, 40, 50, 60, security=None, digits=3)
    with pytest.raises(BackendError, match="measuring pyfhel failed.*leave out digits=3"):
        measure("pyfhel", params)


def test_a_machine_that_bootstraps_is_timed_on_the_chain_that_it_works_on():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = working_rings(13, 14)
    assert [(p.log_n, p.levels, p.digits, p.scale_bits) for p in found] == [
        *((13, 9, 2, 59), (14, 9, 2, 59)),
    ]
