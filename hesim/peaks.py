"""Peaks: the few slots in which key switches with un-centred digits make most of their error.

A digit in [0, q) has the mean q/2, and Σ (q/2)·X^k is q / (1 - ζ) in the slot of root ζ, against
the error of the switching key. Four fifths of that variance lie in the one slot whose root is
nearest to 1, and 96 % in five. They are nothing beside the rounding unless the largest prime comes
near the special one; then one result in such a slot has as much error as thousands of others, and
one variance for a whole tensor does not say what becomes of it. So these slots are followed by
themselves, from instruction to instruction and to the elements of tensors that lie in them.

The mean is the same for all digits, so whatever uses one switching key has the same error there:
these errors are kept as amplitudes, by key and slot of origin, and add up or cancel.

What this leaves out: an operand that is rotated before a product of two ciphertexts. What its peak
becomes depends on the other factor's values in that slot, which no schedule knows, so it is taken
as spread over the operand, and independent of what the same key does elsewhere. What that costs
with a first prime of 60 bits, `python -m benchmarks.circuits block` shows: up to 0.7 bit too much
in operations behind the attention of a block, where its errors partly cancel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hesim import embedding
from hesim import noise as formulas
from hesim.circuit.circuit import Tap
from hesim.params import CKKSParams
from hesim.profiles import NoiseProfile

__all__ = [
    "RELINEARIZED",
    "Amplitudes",
    "Origin",
    "Peaks",
    "at_elements",
    "key_switch_peaks",
    "variance",
]

_FARTHEST = 9
"""Odd multiple of the angle π/N, up to which slots are followed by themselves."""

_FAINT = 0.01
"""Share of what all slots have, under which an error in one slot is left out."""


Origin = tuple[int, int]
"""A switching key, by its rotation step or `RELINEARIZED`, and the slot in which it errs."""

Amplitudes = Mapping[int, Mapping[Origin, float]]
"""By slot, amplitudes of the errors that meet there, each that of one origin."""

RELINEARIZED = -1
"""Stands for the relinearization key."""


class Peaks(NamedTuple):
    """What a Circuit's instructions add to a result in single slots, beside what all slots have.

    A ciphertext may hold an element in many slots, and each copy has an error of its own. So the
    peaks in the slots that are read belong to these elements' own readings, and what goes on into
    other operations, from whichever copy, has the mean over all slots in use.

    Attributes:
      mean: standard deviation of that mean, in slots.
      axis: along which members of the batch lie, -1 if none.
      elements: places of the elements in the flattened tensor without that axis.
      members: place of each along that axis, 0 if there is none.
      errors: of each one where it is read, amplitudes by origin, in slots.
    """

    mean: float
    axis: int
    elements: tuple[int, ...]
    members: tuple[int, ...]
    errors: tuple[tuple[tuple[Origin, float], ...], ...]

    @property
    def origins(self) -> set[Origin]:
        """Of all errors."""
        return {origin for error in self.errors for origin, _ in error}

    def matrix(self, order: Mapping[Origin, int]) -> np.ndarray:
        """float64 (elements, origins): amplitudes with the origins in this order."""
        found = np.zeros((len(self.elements), len(order)))
        for row, error in enumerate(self.errors):
            for origin, amplitude in error:
                found[row, order[origin]] = amplitude
        return found

    def within(self, shape: Sequence[int]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Which of them a tensor of this shape has, whatever its batch, and their index in it."""
        chosen = np.array(self.members, np.int64)
        rest = list(shape)
        held = chosen < rest.pop(self.axis) if self.axis >= 0 else np.ones(len(chosen), bool)
        places = np.array(self.elements, np.int64)[held]
        index = list(np.unravel_index(places, rest)) if rest else []
        if self.axis >= 0:
            index.insert(self.axis, chosen[held])
        return held, tuple(index)


def key_switch_peaks(params: CKKSParams, level: int, profile: NoiseProfile) -> dict[int, float]:
    """Variance in the slots near ζ = 1 by slot, as `noise.slot_std` counts it; empty where each has
    less of it than a slot has of a key switch's whole error in the mean.
    """
    if profile.centred_digits or profile.digit_size(params.levels + 1) > 1:
        return {}
    n = params.n
    digits = formulas.digit_key_switch(params, level, profile)
    # Of a digit's second moment 1/3, its mean has 1/4; |1 / (1 - ζ)|² is n/4 over slots.
    mean = 0.5 * n * digits * 0.75
    powers = embedding.roots(n, profile.generator)
    distance = np.minimum(powers, 2 * n - powers)
    near = np.flatnonzero(distance <= _FARTHEST)
    found = mean / (n * np.sin(math.pi * distance[near] / (2 * n)) ** 2)
    whole = formulas.slot_std(formulas.key_switch(params, level, profile), n, profile) ** 2
    if found.max() < whole:
        return {}
    return dict(zip(near.tolist(), found.tolist(), strict=True))


def at_elements(
    tap: Tap, slots: Mapping[int, Amplitudes], mean: float, flat: float
) -> Peaks | None:
    """Errors in single slots as those of the elements of a tensor.

    Args:
      tap: where the tensor lies.
      slots: by ciphertext, the errors.
      mean: of their variances over the slots in use.
      flat: variance that all slots have besides.

    Returns:
      None if all of it is below a hundredth of `flat`.
    """
    members = tap.batch if tap.batch_axis >= 0 else 1
    sign = math.copysign(1.0, tap.gain)
    found = []
    for cipher in tap.ciphers.tolist():
        for slot, errors in slots.get(cipher, {}).items():
            column, member = divmod(slot, tap.width)
            if member < members and variance(errors) > _FAINT * flat:
                own = tuple((origin, sign * a) for origin, a in sorted(errors.items()))
                held = np.flatnonzero((tap.cipher == cipher) & (tap.column == column))
                found += [(int(e), member, own) for e in held]
    if not found and mean <= _FAINT * flat:
        return None
    elements, places, errors = zip(*sorted(found), strict=True) if found else ((), (), ())
    return Peaks(math.sqrt(mean), tap.batch_axis, elements, places, errors)


def variance(errors: Mapping[Origin, float]) -> float:
    """Of the sum of errors of these amplitudes."""
    return sum(amplitude**2 for amplitude in errors.values())
