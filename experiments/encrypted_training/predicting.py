"""The prediction that an encrypted training is held against: the same steps simulated beside it."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable

import jax

from experiments.encrypted_training.preparing import Planned
from experiments.encrypted_training.rehearsing import state_error
from models.recipes.encrypted_training import State, Watched

__all__ = ["Beside"]

_APART = 2
"""Folded into the seed, so that the noise is not that of the rehearsal."""

_RUNS = 8
_STEPS = 64
"""A training is simulated so often, as long as it makes no more steps in all than this."""


class Beside:
    """Simulated steps from the state that an encrypted run begins with, several times over, since
    the largest of few errors differs much from run to run; compiled at the first step.

    Args:
      planned: the training. start: steps that have been made. begin: the state after them.
    """

    def __init__(self, planned: Planned, start: int, begin: State) -> None:
        self._planned, self._start, self._at = planned, start, start
        count = max(1, min(_RUNS, _STEPS // max(1, planned.steps - start)))
        seed = jax.random.fold_in(jax.random.key(planned.training.settings.seed), _APART)
        self._keys = jax.random.split(seed, count)
        self._states = [begin] * count

    @functools.cached_property
    def _run(self) -> Callable[..., Watched]:
        return self._planned.training.simulated(self._planned.state, self._planned.circuit)

    def errors(self, done: int, exact: State) -> list[float]:
        """Of each run, `state_error` after so many steps of the whole training, no fewer than at
        the call before. exact: the state that they are held against.
        """
        while self._at < done:
            inputs, carried = self._planned.inputs(self._at), self._at > self._start
            keys = [jax.random.fold_in(key, self._at) for key in self._keys]
            pairs = zip(keys, self._states, strict=True)
            self._states = [self._run(key, state, inputs, carried).state for key, state in pairs]
            self._at += 1
        return [state_error(state, exact) for state in self._states]

    def figures(self, done: int, exact: State) -> dict[str, float]:
        """The same as `predicted_bits`, the mean of all runs, and `predicted_spread`, the standard
        deviation of one, in bits; there is none of one run alone, or where nothing differs.
        """
        bits = self.errors(done, exact)
        spread = len(bits) > 1 and all(map(math.isfinite, bits))
        own = {"predicted_spread": statistics.stdev(bits)} if spread else {}
        return {"predicted_bits": statistics.fmean(bits)} | own
