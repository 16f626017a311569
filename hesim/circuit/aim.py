"""What a plan is chosen for: who refreshes, at what price, and fewest seconds or fewest rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from hesim.circuit.refresher import BOOTSTRAP_SECONDS, KEY_HOLDER, Refresher
from hesim.errors import ParameterError

__all__ = ["OBJECTIVES", "Aim"]

OBJECTIVES = ("seconds", "rounds")
"""What a plan may have as little of as can be."""


@dataclass(frozen=True)
class Aim:
    """What a plan is chosen for.

    Attributes:
      price: seconds that a refresh of one ciphertext counts, infinite where it is forbidden; None
        for the refresher's own.
      refresher: who refreshes.
      objective: "seconds", or "rounds" for the fewest rounds and, of these plans, fewest seconds.
      contents: largest absolute slot value of the stages of an operation, by its number, -1 for
        inputs: they end at levels that hold it.
      values: largest absolute value of each operation's result, by its number, alike.
    """

    price: float | None = None
    refresher: Refresher = KEY_HOLDER
    objective: str = "seconds"
    contents: Mapping[int, float] = field(default_factory=dict)
    values: Mapping[int, float] = field(default_factory=dict)

    @property
    def rounds(self) -> bool:
        """Whether the fewest rounds are wanted."""
        return self.objective == "rounds"

    @classmethod
    def of(
        cls,
        refresh_price: float | str | None,
        refresher: Refresher,
        objective: str = "seconds",
        interactive: bool = True,
        contents: Mapping[int, float] | None = None,
        values: Mapping[int, float] | None = None,
    ) -> Aim:
        """The aim that arguments of `hesim.compile` describe.

        Raises:
          ParameterError: one of them cannot be.
        """
        if objective not in OBJECTIVES:
            raise ParameterError(f"objective={objective!r} must be 'seconds' or 'rounds'")
        price = _price(refresh_price)
        if not interactive and refresher.interactive:
            price = math.inf
        return cls(price, refresher, objective, contents or {}, values or {})


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
