"""Pending gains: a constant factor is kept beside a ciphertext until something has to apply it.

One definition for the compiler, which applies gains, and for schedules without a Circuit, which say
when it will. Imports no JAX.
"""

from __future__ import annotations

import math

__all__ = [
    "GAIN_BITS",
    "inflated",
    "meeting",
    "representable",
    "scales_left",
    "stays_pending",
]

_WHOLE = 2
"""Largest whole ratio of two gains that repeated addition bridges; more would inflate the slots."""

GAIN_BITS = 7
"""Bits by which a pending gain may let slots differ from values before a product or a sum."""

_SLIGHT_BITS = 3
"""Bits by which slots may grow for the sake of rescaling the operand of fewer ciphertexts."""

_LIMIT = 2.0**200
"""Size of a pending gain, or of its inverse, beyond which it is applied: float64 holds far more."""


def representable(gain: float) -> bool:
    """Whether a gain is far enough from overflow and underflow to be kept."""
    return 1.0 / _LIMIT <= abs(gain) <= _LIMIT


def inflated(growth: float, gain: float) -> bool:
    """Whether a sum's gain is applied because sums made its slots that many times larger while the
    gain shrank, as in running averages.
    """
    return growth >= 2.0**GAIN_BITS and abs(gain) <= 0.5


def stays_pending(gain: float) -> bool:
    """Whether a gain is left pending through a product; otherwise it is applied first, to 1 in
    size, at one level.
    """
    return abs(math.log2(abs(gain))) <= GAIN_BITS


def meeting(left: float, right: float) -> tuple[tuple[int, int], float] | None:
    """How two tensors of these gains are added: whole factors for their slots, and the gain of the
    sum. None if a level has to bring one gain to the other first, see `scales_left`.
    """
    if _whole(right / left):
        return (1, round(right / left)), left
    if _whole(left / right):
        return (round(left / right), 1), right
    return None


def scales_left(left: float, right: float, *, fewer: bool = False) -> bool:
    """Whether the left of two tensors whose gains do not meet is brought to the right one's gain.

    Scaling the smaller gain to the larger never inflates the slots.

    fewer: the left one has fewer ciphertexts, for which slots may grow slightly.
    """
    ratio = abs(right / left)
    return ratio > 2.0**_SLIGHT_BITS or fewer and ratio > 2.0**-_SLIGHT_BITS


def _whole(ratio: float) -> bool:
    return 1 <= abs(ratio) <= _WHOLE and float(ratio).is_integer()
