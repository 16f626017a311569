"""Errors that each copy of an element has of its own, beside those that all its copies share.

A Circuit may hold an element in several slots. What a refresh or a rescale rounds there, it rounds
in each of them. An operation that reads all copies, as one that adds a row's mean to the row, then
meets an error of its own in every element of its result, where an error of the tensor would be the
same in all of them. Such errors are kept as standard deviations until it is known in which shape
they are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

__all__ = ["Copies", "Part"]


class Part(NamedTuple):
    """One error of copies: its standard deviation in values, and a name for what made it."""

    std: float
    origin: Hashable


class Copies:
    """The errors of copies of all values of one simulation.

    Args:
      draw: errors of a shape and dtype with this standard deviation.
    """

    def __init__(self, draw: Callable[[tuple[int, ...], Any, float], Any]) -> None:
        self._draw = draw
        self._parts: dict[int, tuple[Part, ...]] = {}
        self._early: dict[int, tuple[Part, ...]] = {}
        self._drawn: dict[Hashable, Any] = {}
        #: How many copies of an element there are, by value.
        self.counts: dict[int, float] = {}

    def of(self, value: int, *, early: bool = False) -> tuple[Part, ...]:
        """Those of a value; `early`: before its ciphertexts were refreshed."""
        found = self._parts.get(value, ())
        return self._early.get(value, found) if early else found

    def keep(self, value: int, parts: Sequence[Part], early: Sequence[Part], count: float) -> None:
        """Notes the errors of a value's copies, and of how many."""
        self._parts[value] = tuple(p for p in parts if p.std)
        self._early[value] = tuple(p for p in early if p.std)
        self.counts[value] = count

    def read(self, parts: Sequence[Part], x: Any, shape: tuple[int, ...]) -> Any:
        """x with these errors, read in a shape that x broadcasts to; the same in every reading."""
        for std, origin in parts:
            place = origin, shape
            if place not in self._drawn:
                self._drawn[place] = self._draw(shape, x.dtype, 1.0)
            x = x + std * self._drawn[place]
        return x

    @staticmethod
    def std(parts: Sequence[Part]) -> float:
        """Of all together."""
        return math.sqrt(sum(p.std**2 for p in parts))

    @staticmethod
    def scaled(parts: Sequence[Part], factor: float) -> tuple[Part, ...]:
        """Of values times a factor."""
        return tuple(Part(p.std * factor, p.origin) for p in parts)
