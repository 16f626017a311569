"""OpenFHE's operations are timed where they run."""

from __future__ import annotations

from he_backend.machines.measuring import measure
from hesim.circuit.costs.table import OPERATIONS


def test_every_operation_is_measured_in_the_python_that_has_it(digit_params, needs_openfhe):
    found = measure("openfhe", digit_params)
    assert {t.operation for t in found.timings} == set(OPERATIONS)
    assert all(t.seconds > 0.0 for t in found.timings)
    assert 0.5 < found.key_factor < 2.0 and found.base_bytes > 1 << 24
