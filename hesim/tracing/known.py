"""Values that depend on no argument: what they are is found while tracing, if somebody asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

__all__ = ["Known", "Step", "known_result"]


class Step:
    """One operation on known operands, evaluated at most once.

    Attributes:
      primitive, params: of the operation. operands: what it works on.
      results: its results, None until they are asked for.
    """

    def __init__(self, primitive: Any, params: dict[str, Any], operands: Sequence[Known]):
        self.primitive = primitive
        self.params = params
        self.operands = tuple(operands)
        self.results: list[Any] | None = None

    def run(self) -> None:
        """Evaluates the operation; its operands have been."""
        with jax.ensure_compile_time_eval():
            params = self.primitive.get_bind_params(self.params)
            out = self.primitive.bind(*(k.held for k in self.operands), **params)
        self.results = list(out) if self.primitive.multiple_results else [out]


class Known:
    """A value that depends on no argument, held or still to be computed by a `Step`."""

    def __init__(self, held: Any = None, step: Step | None = None, number: int = 0):
        self._held = held
        self._step = step
        self._number = number

    @property
    def held(self) -> Any:
        """The value, once its step has run."""
        if self._step is None:
            return self._held
        assert self._step.results is not None
        return self._step.results[self._number]

    def value(self) -> np.ndarray:
        """The value, computed with whatever it depends on (without recursion: chains are long)."""
        waiting: list[Known] = [self]
        while waiting:
            step = waiting[-1]._step
            if step is None or step.results is not None:
                waiting.pop()
                continue
            missing = [k for k in step.operands if k._step is not None and k._step.results is None]
            if missing:
                waiting.extend(missing)
            else:
                step.run()
        return np.asarray(self.held)


def known_result(eqn: Any, operands: Sequence[Known | None]) -> list[Known | None]:
    """What is known of the results of a jaxpr equation: all if all operands are, else nothing."""
    if eqn.effects or any(k is None for k in operands):
        return [None] * len(eqn.outvars)
    step = Step(eqn.primitive, dict(eqn.params), [k for k in operands if k is not None])
    return [Known(step=step, number=i) for i in range(len(eqn.outvars))]
