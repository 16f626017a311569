"""Giant steps for shifts that are multiples of one unit and a few offsets.

What is sheared and copied at once, or wraps in some places, has shifts u n + e with n = 0, 1, ...
and a few e, which no single unit divides. Steps of the n are giant or baby steps as elsewhere; the
offsets go with either. What is different for every result, the shift of its first term, goes into
the giant steps, which are its own in any case.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

__all__ = ["chained_steps"]

_MOST = 1024
"""Distinct shifts beyond which no unit is looked for."""

_UNITS = 3
"""Units that are tried: the most frequent differences."""

_OFFSETS = 16
"""Offsets beyond which shifts are taken to have no unit."""


def chained_steps(
    out: np.ndarray, shift: np.ndarray, repeats: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ways to split the shifts of terms, int64 arrays (terms,): (giant steps, baby steps), which
    add up to the shifts modulo `repeats`.

    Args:
      out: result of each term. repeats: columns after which operands repeat.
    """
    results, place = np.unique(out, return_inverse=True)
    first = np.full(len(results), repeats, np.int64)
    np.minimum.at(first, place, shift % repeats)
    own = first[place]
    distinct, at = np.unique((shift - own) % repeats, return_inverse=True)
    if not 8 <= len(distinct) <= _MOST:
        return
    for unit in _units(distinct, repeats):
        number, offset = _chains(distinct, unit, repeats)
        if len(np.unique(offset)) > _OFFSETS:
            continue
        n, e = number[at], offset[at]
        for size in _sizes(int(number.max()) + 1):
            giant = unit * (n - n % size)
            yield own + giant, unit * (n % size) + e
            yield own + giant + e, unit * (n % size)


def _units(distinct: np.ndarray, repeats: int) -> list[int]:
    """The most frequent differences, each once for both signs."""
    ends = (distinct[:, None] - distinct[None, :]).ravel() % repeats
    ends = np.minimum(ends, repeats - ends)
    values, counts = np.unique(ends[ends > 0], return_counts=True)
    return values[np.argsort(-counts, kind="stable")[:_UNITS]].tolist()


def _chains(distinct: np.ndarray, unit: int, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, e) of each shift u n + e, so that n counts from the first one that has no predecessor.

    Shifts that only follow one another in a circle stay as they are, with n = 0.
    """
    place = {s: k for k, s in enumerate(distinct.tolist())}
    number = np.zeros(len(distinct), np.int64)
    offset = distinct.copy()
    for start in place:
        if (start - unit) % repeats in place:
            continue
        n, s = 0, start
        while s in place:
            number[place[s]], offset[place[s]] = n, start
            n, s = n + 1, (s + unit) % repeats
    return number, offset


def _sizes(length: int) -> list[int]:
    """Baby steps of a chain that are tried."""
    some = {2**k for k in range(1, length.bit_length())}
    return sorted(some | {round(length**0.5 * f) for f in (0.5, 0.7, 1.0, 1.4, 2.0)} - {0})
