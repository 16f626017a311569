"""Plans whose levels have room for the values at hand: found out on plain vectors, planned anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from he_backend.errors import EncodeError, ValueRangeError
from hesim.circuit.aims.aim import Aim
from hesim.circuit.circuit import Circuit
from hesim.circuit.compile import planned_for
from hesim.circuit.plain.contents import slot_contents
from hesim.errors import LayoutError, LevelError, ValueOverflowError
from hesim.program import Program

__all__ = ["with_room"]

_PLANS = 4
"""Plans that are made, at most: another plan may hold sums that the one before did not."""

Found = TypeVar("Found")


def with_room(
    program: Program,
    circuit: Circuit,
    aim: Aim | None,
    args: Sequence[Any],
    inputs: Sequence[np.ndarray],
    attempt: Callable[[Circuit], Found],
    phase: Callable[[str], None],
) -> tuple[Circuit, Found]:
    """A Circuit that holds these values, and what `attempt` returns for it.

    Args:
      circuit: to begin with. aim: what it is planned for; None if it must not be replaced.
      args: of the Program. inputs: the encrypted leaves, float64.
      attempt: runs a Circuit on plain vectors; raises ValueRangeError or EncodeError where a level
        does not hold a value.
      phase: told if a Circuit is planned anew.

    Raises:
      ValueRangeError, EncodeError: as `attempt`, if no plan holds the values, or none may be made.
    """
    for left in reversed(range(_PLANS)):
        try:
            return circuit, attempt(circuit)
        except (ValueRangeError, EncodeError) as error:
            if aim is None or not left:
                raise
            operands = circuit.publics.evaluate(program.flatten(args))
            held = slot_contents(circuit, inputs, operands)
            if not all(map(np.isfinite, held.values())):
                raise
            known = aim.contents
            larger = {s: max(x, known.get(s, 0.0)) for s, x in held.items()}
            aim = dataclasses.replace(aim, contents={**known, **larger})
            phase("planning at levels that hold the values")
            try:
                circuit = planned_for(program, circuit.params, aim).circuit(circuit.params)
            except (ValueOverflowError, LevelError, LayoutError):
                raise error from None
    raise AssertionError("the last plan returns or raises")
