"""Schedules over the share of a training that is behind: 0 at its start, 1 at its end.

A training may end after a number of steps or after a time; its schedules read the share alone, so
both anneal to their end. `scale_by_progress` is the optax transformation that reads it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hesim.errors import ArgumentError

__all__ = ["Budget", "BudgetClock", "one_cycle", "ramp", "scale_by_progress"]

Schedule = Callable[[Any], Any]
"""From the share of the training that is behind (number or array in [0, 1]) to a factor."""


def one_cycle(rise: float = 0.1, start: float = 0.05, floor: float = 0.0) -> Schedule:
    """A triangle: from `start` up to 1 at the share `rise`, then straight down to `floor` at 1.

    Source: the budgeted one-cycle of Geiping and Goldstein 2023 (section 4.2); Rho et al. 2025 use
    it with rise = 0.25 and start = 0.25. ArgumentError unless 0 < rise < 1.
    """
    if not 0 < rise < 1:
        raise ArgumentError(f"rise={rise}, the share with the highest rate, is between 0 and 1")

    def factor(progress: Any) -> Any:
        up = start + (1 - start) * progress / rise
        down = floor + (1 - floor) * (1 - progress) / (1 - rise)
        return jnp.clip(jnp.minimum(up, down), 0.0, 1.0)

    return factor


def ramp(last: float) -> Schedule:
    """0 until the last share `last` of the training, then straight up to 1 at half of that share,
    and 1 to the end; 0 throughout for last = 0.
    """
    if not 0 <= last <= 1:
        raise ArgumentError(f"last={last} is a share of the training, between 0 and 1")

    def factor(progress: Any) -> Any:
        if last == 0:
            return jnp.zeros(())
        return jnp.clip(2 * (progress - (1 - last)) / last, 0.0, 1.0)

    return factor


def scale_by_progress(rate: float, schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    """Multiply updates by -rate * schedule(progress); `update` takes `progress` as a keyword."""

    def init(params: optax.Params) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: optax.Updates, state: Any, params: Any = None, *, progress: Any, **others: Any
    ) -> tuple[optax.Updates, Any]:
        del params, others
        factor = -rate * schedule(progress)
        return jax.tree.map(lambda u: (factor * u).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True)
class Budget:
    """When a training ends: after a number of steps, or after a time if that is earlier.

    Only without a limit in seconds does a resumed run repeat its bits.

    Attributes:
      steps: optimizer steps, at least 1.
      seconds: of running, over all attempts; 0 for no such limit.

    Raises:
      ArgumentError: no step, or a time that is negative or not finite.

    Examples:
      >>> from models import Budget
      >>> Budget(steps=100, seconds=60.0).seconds
      60.0
      >>> Budget(steps=0)
      Traceback (most recent call last):
          ...
      hesim.errors.ArgumentError: a budget has steps >= 1 and finite seconds >= 0, got ...
    """

    steps: int
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.seconds < math.inf:
            raise ArgumentError(f"a budget has steps >= 1 and finite seconds >= 0, got {self}")


class BudgetClock:
    """How much of a budget is spent; `spent` are the seconds that earlier runs used of it."""

    def __init__(
        self, budget: Budget, spent: float = 0.0, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.budget = budget
        self._now = now
        self._start = now() - spent

    @property
    def seconds(self) -> float:
        """Seconds of running, those of earlier runs included."""
        return self._now() - self._start

    def progress(self, step: int) -> float:
        """Share of the budget behind before step number `step`, in [0, 1]."""
        share = step / self.budget.steps
        if self.budget.seconds:
            share = max(share, self.seconds / self.budget.seconds)
        return min(1.0, share)
