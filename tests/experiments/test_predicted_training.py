"""The simulated runs that an encrypted training is held against: how many, and what they say."""

from __future__ import annotations

import math
import statistics
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import pytest

from experiments.encrypted_training.predicting import Beside
from experiments.encrypted_training.preparing import Planned
from experiments.encrypted_training.rehearsing import state_error
from models.recipes.encrypted_training import State

EXACT = State({"lora": {"A": jnp.array([1.0, -2.0])}}, ())


class Simulated:
    """A training whose steps add normal noise to what is trained; remembers what it was asked."""

    def __init__(self, noise: float) -> None:
        self.noise = noise
        self.asked: list[tuple[int, bool]] = []
        self.settings = SimpleNamespace(seed=0)

    def simulated(self, state: State, circuit: Any) -> Any:
        def run(key: jax.Array, state: State, inputs: int, carried: bool) -> Any:
            self.asked.append((inputs, carried))
            a = state.trained["lora"]["A"]
            noisy = a + self.noise * jax.random.normal(key, a.shape)
            return SimpleNamespace(state=State({"lora": {"A": noisy}}, ()))

        return run


def beside(noise: float, steps: int, start: int = 0) -> tuple[Beside, Simulated]:
    training = Simulated(noise)
    planned = SimpleNamespace(
        training=training, steps=steps, state=EXACT, circuit=None, inputs=lambda number: number
    )
    return Beside(cast(Planned, planned), start, EXACT), training


def test_few_steps_are_simulated_eight_times_under_noise_of_their_own():
    simulated, training = beside(2.0**-10, steps=6, start=4)
    bits = simulated.errors(6, EXACT)
    assert len(set(bits)) == 8 and all(-16 < each < -7 for each in bits)
    assert training.asked == [(4, False)] * 8 + [(5, True)] * 8
    found = simulated.figures(6, EXACT)
    assert len(training.asked) == 16, "what is simulated is not simulated again"
    assert found["predicted_bits"] == pytest.approx(statistics.fmean(bits))
    assert found["predicted_spread"] == pytest.approx(statistics.stdev(bits))


def test_the_first_run_of_one_step_has_the_error_of_its_state():
    simulated, _ = beside(2.0**-10, steps=1)
    first = simulated.errors(1, EXACT)[0]
    (state, *_) = simulated._states
    assert first == state_error(state, EXACT)


@pytest.mark.parametrize(("steps", "runs"), [(8, 8), (20, 3), (200, 1)])
def test_many_steps_are_simulated_less_often(steps: int, runs: int):
    simulated, _ = beside(2.0**-10, steps)
    found = simulated.figures(1, EXACT)
    assert len(simulated.errors(1, EXACT)) == runs
    assert ("predicted_spread" in found) == (runs > 1)


def test_without_noise_there_is_no_spread():
    simulated, _ = beside(0.0, steps=2)
    assert simulated.figures(2, EXACT) == {"predicted_bits": -math.inf}
