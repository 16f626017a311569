"""Every plan that the search finds, on the slot machine, against the exact values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hesim.circuit.candidate import Candidate
from hesim.circuit.circuit import Circuit
from hesim.circuit.packing.lowering import lowerings
from hesim.circuit.refresher import KEY_HOLDER
from hesim.params import CKKSParams
from hesim.trace import trace
from tests.hesim.circuit.conftest import close, exact_values, quiet_params, run_slots

TOLERANCE = 1e-9


def check_plans(
    fn: Callable[..., Any],
    *args: Any,
    encrypted: Any = (0,),
    params: CKKSParams | None = None,
    batch: bool = True,
    price: float | None = None,
) -> list[Circuit]:
    """Circuits of all plans, which compute what the function does, operation by operation."""
    program = trace(fn, *args, encrypted=encrypted)
    params = params or quiet_params()
    found = []
    exact, results = exact_values(program, args)
    for lowered in lowerings(program, params, price, KEY_HOLDER, batch):
        circuit = Candidate(lowered, params, price).circuit(params)
        outputs, taps = run_slots(circuit, args)
        for value, wanted in zip(outputs, exact, strict=True):
            if value is not None:
                close(value, wanted, "a result", TOLERANCE)
        for op, value in taps.items():
            if op >= 0 and np.isfinite(value).all():
                close(value, results[op], f"{program.ops[op].name} ({op})", TOLERANCE)
        found.append(circuit)
    return found


@pytest.fixture
def check() -> Callable[..., list[Circuit]]:
    return check_plans
