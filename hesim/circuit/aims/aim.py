"""What a plan is chosen for: who refreshes, at what price, and fewest seconds or fewest rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hesim.circuit.aims.carried import Pair, carried_pairs
from hesim.circuit.refresher import BOOTSTRAP_SECONDS, KEY_HOLDER, Refresher
from hesim.errors import LevelError, ParameterError

if TYPE_CHECKING:
    from hesim.calibrate import Calibration
    from hesim.program import Program

__all__ = ["OBJECTIVES", "SPARE", "Aim"]

OBJECTIVES = ("seconds", "rounds")
"""What a plan may have as little of as can be."""

SPARE = 1.25
"""Times the largest value met that is planned for: calibrations are taken to be as wide."""


@dataclass(frozen=True)
class Aim:
    """What a plan is chosen for.

    Attributes:
      price: seconds that a refresh of one ciphertext counts, infinite where it is forbidden; None
        for the refresher's own.
      refresher: who refreshes.
      objective: "seconds", or "rounds" for the fewest rounds and, of these plans, fewest seconds.
      memory: bytes that evaluation may take, by one process; None for any.
      contents: largest absolute slot value of the stages of an operation, by its number, -1 for
        inputs: they end at levels that hold it.
      values: largest absolute value of each operation's result, by its number, alike.
      carried: results that are arguments of the next run, in the same ciphertexts.
      carries: (argument, result) by number, as they were asked for.
    """

    price: float | None = None
    refresher: Refresher = KEY_HOLDER
    objective: str = "seconds"
    memory: int | None = None
    contents: Mapping[int, float] = field(default_factory=dict)
    values: Mapping[int, float] = field(default_factory=dict)
    carried: tuple[Pair, ...] = ()
    carries: tuple[tuple[int, int], ...] = ()

    @property
    def rounds(self) -> bool:
        """Whether the fewest rounds are wanted."""
        return self.objective == "rounds"

    @property
    def fitted(self) -> bool:
        """Whether slots are to hold values of the size that the refresher is made for."""
        return bool(self.values) and math.isfinite(self.refresher.value_range)

    @classmethod
    def of(
        cls,
        program: Program,
        refresh_price: float | str | None = None,
        refresher: Refresher = KEY_HOLDER,
        objective: str = "seconds",
        interactive: bool = True,
        calibration: Calibration | None = None,
        memory: float | None = None,
        carried: Mapping[int, int] | None = None,
    ) -> Aim:
        """The aim that arguments of `hesim.compile` describe.

        Raises:
          ParameterError: one of them cannot be. LevelError: the program asks for a refresh that is
          not allowed, or what is carried needs one. ArgumentError: the calibration is of another
          program, or no such results can be carried.
        """
        if objective not in OBJECTIVES:
            raise ParameterError(f"objective={objective!r} must be 'seconds' or 'rounds'")
        price = _price(refresh_price)
        pairs = carried_pairs(program, carried)
        if not interactive and refresher.interactive:
            price = math.inf
            _check_without_rounds(program, pairs)
        values = {} if calibration is None else calibration.largest(program)
        if memory is not None and not 0 < memory < math.inf:
            raise ParameterError(f"memory={memory!r} must be a positive number of bytes, or None")
        limit = None if memory is None else int(memory)
        asked = tuple((carried or {}).items())
        return cls(price, refresher, objective, limit, {}, values, pairs, asked)


def _check_without_rounds(program: Program, pairs: Sequence[Pair]) -> None:
    """LevelError if the program asks for a refresh itself, or hands on what uses levels up."""
    for op in program.ops:
        if op.name == "refresh":
            raise LevelError(
                f"`refresh` at {op.source} is a round trip to the key holder, and "
                "interactive=False allows none: take it out and use more levels, or pass "
                "refresher=hesim.bootstrap(...), which refreshes on the server"
            )
    for pair in pairs:
        if pair.result is not pair.argument:
            raise LevelError(
                f"{program.labels[pair.input]} is carried from run to run, which a refresh by the "
                "key holder brings back to the level that it started from, and interactive=False "
                "allows none: pass refresher=hesim.bootstrap(...), which refreshes on the server"
            )


def _price(refresh_price: float | str | None) -> float | None:
    if refresh_price is None:
        return None
    if refresh_price == "bootstrap":
        return BOOTSTRAP_SECONDS
    if isinstance(refresh_price, str):
        raise ParameterError(
            f"refresh_price must be None, 'bootstrap' or seconds, not {refresh_price!r}"
        )
    if not refresh_price >= 0:
        raise ParameterError("refresh_price is seconds per refreshed ciphertext, at least 0")
    return float(refresh_price)
