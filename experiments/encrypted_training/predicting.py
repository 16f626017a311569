"""The prediction that an encrypted training is held against: the same steps simulated beside it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

from experiments.encrypted_training.preparing import Planned
from models.recipes.encrypted_training import State, Watched

__all__ = ["Beside"]

_APART = 2
"""Folded into the seed, so that the noise is not that of the rehearsal."""


class Beside:
    """Simulated steps from the state that an encrypted run begins with; compiled at the first.

    Args:
      planned: the training. start: steps that have been made. begin: the state after them.
    """

    def __init__(self, planned: Planned, start: int, begin: State) -> None:
        self._planned, self._start = planned, start
        self._at, self._state = start, begin
        self._key = jax.random.fold_in(jax.random.key(planned.training.settings.seed), _APART)

    @functools.cached_property
    def _run(self) -> Callable[..., Watched]:
        return self._planned.training.simulated(self._planned.state, self._planned.circuit)

    def state(self, done: int) -> State:
        """The state after so many steps of the whole training, no fewer than at the call before."""
        while self._at < done:
            inputs = self._planned.inputs(self._at)
            key = jax.random.fold_in(self._key, self._at)
            made = self._run(key, self._state, inputs, self._at > self._start)
            self._state, self._at = made.state, self._at + 1
        return self._state
