"""One step of encrypted training with bootstraps alone: planned, in range, and right on slots."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import hesim
from benchmarks.lora_step import lora_step
from hesim.circuit.circuit import Kind
from hesim.circuit.refresher import Refresher
from tests.hesim.circuit.conftest import exact_values, refreshed_sizes, run_slots

BOOTSTRAP = Refresher(
    "bootstrap",
    interactive=False,
    min_input_level=2,
    price=5.0,
    error="lattigo_40",
    value_range=1.0,
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::hesim.errors.EmptySlotsWarning")
@pytest.mark.parametrize("carried", [None, {0: 0, 1: 1}])
def test_a_step_of_adapters_needs_no_key_holder(carried):
    with pytest.warns(hesim.params.InsecureParametersWarning):
        ring = hesim.CKKSParams(11, 8, 40, 58, 60, security=None)
    with jax.enable_x64(True):
        program, args = lora_step()
        calibration = hesim.calibrate(program, [args])
        circuit = hesim.compile(
            *(program, ring),
            refresher=BOOTSTRAP,
            interactive=False,
            calibration=calibration,
            carried=carried,
        )
        wanted, _ = exact_values(program, args)
    made = np.flatnonzero(circuit.kind == Kind.REFRESH).tolist()
    assert len(made) == circuit.ledger.refreshes > 5
    before = [circuit.operands(i)[0] for i in made]
    assert set(circuit.level[before].tolist()) == {2} and circuit.level[made].max() <= 8
    if carried:
        assert len(circuit.carried) == circuit.ledger.carried > 0
        kinds = {circuit.kind[c] for c, _ in circuit.carried}
        assert kinds <= {Kind.REFRESH, Kind.RESCALE, Kind.ADD}  # some are taken out of joint ones
    sizes = refreshed_sizes(circuit, args)
    assert np.mean(np.array(sizes) <= 1.0) > 0.9 and max(sizes) <= 4.0
    outputs, _ = run_slots(circuit, args)
    for got, right in zip(outputs, wanted, strict=True):
        if got is not None:
            np.testing.assert_allclose(got, right, atol=1e-6)
