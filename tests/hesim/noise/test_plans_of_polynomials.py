"""Every plan that a polynomial carries runs on the slot machine, with the products it promises."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import approx
import he_backend
import hesim


@pytest.mark.parametrize("plan", ["fewest", "quiet", "deeper"])
def test_the_slot_machine_runs_the_plan_that_a_polynomial_carries(plan: str) -> None:
    p = approx.fit("exp", (-2.0, 1.0), degree=7, plan=plan)
    x = np.random.default_rng(0).uniform(-2.0, 1.0, (2, 8))
    params = hesim.CKKSParams(
        log_n=10, levels=6, scale_bits=40, first_bits=50, special_bits=60, security=None
    )
    program = hesim.trace(lambda x: p(x), x, encrypted=(0,))
    ledger = hesim.compile(program, params).ledger
    assert ledger.products == p.plan.nonscalar_mults
    with jax.enable_x64(True):
        report = he_backend.run(program, x, params=params, backend="slots", compare=False)
    np.testing.assert_allclose(report.outputs, p(x), atol=1e-6)
