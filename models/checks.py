"""Numbers of settings that no training can mean, refused by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hesim.errors import ArgumentError

__all__ = ["check_numbers", "check_range"]


def check_range(name: str, bounds: Sequence[float]) -> None:
    """ArgumentError unless these are two finite numbers, the lower first; `name` is whose."""
    if len(bounds) != 2 or not all(map(math.isfinite, bounds)) or not bounds[0] < bounds[1]:
        raise ArgumentError(f"the range of {name} is {list(bounds)}: a low and a high number")


def check_numbers(
    settings: Any,
    *,
    positive: Sequence[str] = (),
    at_least_0: Sequence[str] = (),
    shares: Sequence[str] = (),
    below_1: Sequence[str] = (),
    seeds: Sequence[str] = (),
) -> None:
    """ArgumentError naming the first of these attributes that is out of bounds or no finite number.

    shares lie in [0, 1], those of `below_1` in [0, 1), seeds of random numbers in
    [0, 2^63).
    """
    for names, holds, wanted in (
        (positive, lambda x: x > 0, "greater than 0"),
        (at_least_0, lambda x: x >= 0, "at least 0"),
        (shares, lambda x: 0 <= x <= 1, "between 0 and 1"),
        (below_1, lambda x: 0 <= x < 1, "at least 0 and below 1"),
        (seeds, lambda x: 0 <= x < 2**63, "at least 0 and below 2^63"),
    ):
        for name in names:
            value = getattr(settings, name)
            if not (isinstance(value, int) or math.isfinite(value)) or not holds(value):
                raise ArgumentError(f"{name} must be {wanted}, got {value}")
