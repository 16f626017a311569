"""Schedules over a budget, and the clock that says how much of it is spent."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.train.schedules import Budget, BudgetClock, one_cycle, ramp, scale_by_progress


def test_one_cycle_rises_once_and_falls_to_its_floor():
    factor = one_cycle(rise=0.25, start=0.1, floor=0.02)
    shares = np.linspace(0, 1, 401)
    values = np.asarray(factor(shares))
    assert values[0] == pytest.approx(0.1) and values[-1] == pytest.approx(0.02)
    assert shares[values.argmax()] == 0.25 and values.max() == pytest.approx(1.0)
    assert (np.diff(values[:101]) > 0).all() and (np.diff(values[100:]) < 0).all()


def test_ramp_acts_in_the_last_share_only():
    factor = ramp(0.2)
    assert [round(float(factor(p)), 6) for p in (0.0, 0.8, 0.85, 0.9, 1.0)] == [0, 0, 0.5, 1, 1]
    assert float(ramp(0.0)(1.0)) == 0


@pytest.mark.parametrize("make", [lambda: one_cycle(0.0), lambda: ramp(1.5), lambda: Budget(0)])
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ValueError):
        make()


def test_updates_are_scaled_by_the_progress_of_the_step():
    transform = optax.chain(optax.scale(2.0), scale_by_progress(0.1, one_cycle(0.5, 0.0)))
    update: Any = transform.update
    updates, _ = update(jnp.ones(3), transform.init(jnp.ones(3)), progress=jnp.float32(0.25))
    np.testing.assert_allclose(updates, -0.1 * np.ones(3), rtol=1e-6)


def test_a_clock_counts_steps_or_seconds_whichever_is_further():
    now = [100.0]
    clock = BudgetClock(Budget(steps=10, seconds=50.0), spent=5.0, now=lambda: now[0])
    assert clock.progress(0) == pytest.approx(0.1)
    assert clock.progress(7) == pytest.approx(0.7)
    now[0] += 100
    assert clock.seconds == 105 and clock.progress(7) == 1.0
    assert BudgetClock(Budget(steps=10), now=lambda: now[0]).progress(3) == pytest.approx(0.3)
