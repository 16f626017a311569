"""One step of encrypted training with bootstraps alone: planned, in range, and right on slots.

What it hands on is refreshed in fewer ciphertexts than it is, and so the step is cheaper.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest

import hesim
from benchmarks.lora_step import lora_step
from hesim.circuit import compile as compiling
from hesim.circuit.candidate import Candidate
from hesim.circuit.circuit import Circuit, Kind
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


def refreshes_of(circuit: Circuit) -> dict[int, int]:
    """By ciphertext that is handed on, the refresh that it is, or is taken out of."""
    found: dict[int, int] = {}
    for cipher, _ in circuit.carried:
        at = cipher
        while circuit.kind[at] != Kind.REFRESH:
            at = circuit.operands(at)[0]
        found[cipher] = at
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::hesim.errors.EmptySlotsWarning")
@pytest.mark.parametrize("carried", [None, {0: 0, 1: 1}])
def test_a_step_of_adapters_needs_no_key_holder(carried, monkeypatch):
    planned: list[Circuit] = []  # with a refresh for each ciphertext that is handed on
    joined = compiling.with_joint_refreshes

    def noted(plan: Candidate) -> Candidate:
        planned.append(plan.circuit(ring))
        return joined(plan)

    monkeypatch.setattr(compiling, "with_joint_refreshes", noted)
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
        (alone,) = planned
        assert len(circuit.carried) == circuit.ledger.carried == alone.ledger.carried
        assert all(cipher == made for cipher, made in refreshes_of(alone).items())
        shared = refreshes_of(circuit)
        inputs = {c: circuit.input_labels[circuit.param[i]] for c, i in circuit.carried}
        joint = {inputs[c] for c, made in shared.items() if c != made}
        assert joint > {name for name in inputs.values() if name.startswith("args[1]")}  # moments
        together = len(shared) - len(set(shared.values()))
        assert together > len(shared) // 2
        assert circuit.ledger.refreshes <= alone.ledger.refreshes - together // 2
        assert circuit.ledger.seconds < alone.ledger.seconds
        assert circuit.ledger.peak_bytes < 1.01 * alone.ledger.peak_bytes
    sizes = refreshed_sizes(circuit, args)
    assert np.mean(np.array(sizes) <= 1.0) > 0.9 and max(sizes) <= 4.0
    outputs, _ = run_slots(circuit, args)
    for got, right in zip(outputs, wanted, strict=True):
        if got is not None:
            np.testing.assert_allclose(got, right, atol=1e-6)
