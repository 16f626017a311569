"""DC slots: the few in which key switches with un-centred digits make most of their error.

A digit in [0, q) has the mean q/2, and Σ (q/2)·X^k is q / (1 - ζ) in the slot of root ζ, against
the error of the switching key. Four fifths of that variance lie in the one slot whose root is
nearest to 1, and 96 % in five. They are nothing beside the rounding unless the largest prime comes
near the special one; then one result in such a slot has as much error as thousands of others, and
one variance for a whole tensor does not say what becomes of it. So these slots are followed by
themselves, from instruction to instruction and to the elements of tensors that lie in them.

The mean is the same for all digits, so whatever uses one switching key has the same error there:
these errors are kept as amplitudes, by key and slot of origin, and add up or cancel.

A product of two ciphertexts multiplies the error in a slot by the other factor's value in that very
slot. So an operand that is rotated or masked first brings errors into the result whose amplitudes
are linear in elements of the other factor, and add up or cancel with what the same key does
elsewhere. ``hesim.noise.dc_products`` finds these elements; a simulation knows their values.

What this leaves out: slots whose value is no sum of few elements of whole tensors, products by
public tensors, and a second product within one operation. There such an error is taken as spread
over the operand, and independent of what the same key does elsewhere. Where a tensor is held in
several copies, operations that read it in other slots meet the mean over all copies. And a rotation
across the end of the effective slots reads the next of their copies in the ring, which has no DC
errors before a refresh makes all copies alike; here it counts as reading the same errors.
`python -m benchmarks.circuits` shows what is left of that with a first prime of 60 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hesim.circuit.circuit import TensorLocation
from hesim.noise import embedding, formulas, slots_read
from hesim.noise.profiles import NoiseProfile
from hesim.params import CKKSParams

__all__ = [
    "ALONE",
    "RELINEARIZED",
    "Amplitudes",
    "DCErrors",
    "Element",
    "Factor",
    "Origin",
    "at_elements",
    "key_switch_dc_errors",
    "places",
    "variance",
]

_FARTHEST = 9
"""Odd multiple of the angle π/N, up to which slots are followed by themselves."""

_FAINT = 0.01
"""Share of what all slots have, under which an error in one slot is left out."""


Origin = tuple[int, int]
"""A switching key, by its rotation step or `RELINEARIZED`, and the slot in which it errs."""

Factor = tuple[int, int]
"""A ciphertext of a whole tensor and the slot by whose value an error was multiplied."""

ALONE: Factor = (-1, -1)
"""The factor 1."""

Amplitudes = Mapping[int, Mapping[tuple[Origin, Factor], float]]
"""By slot, amplitudes of the errors that meet there."""

RELINEARIZED = -1
"""Stands for the relinearization key."""


class Element(NamedTuple):
    """An element of an encrypted tensor, whatever its batch.

    Attributes:
      tensor: the operation that makes it, or -1 - k for the k-th encrypted input.
      axis: along which members of the batch lie, -1 if none.
      place: in the flattened tensor without that axis.
      member: place along that axis, 0 if there is none.
    """

    tensor: int
    axis: int
    place: int
    member: int


class DCErrors(NamedTuple):
    """What a Circuit's instructions add to a result in single slots, beside what all slots have.

    A ciphertext may hold an element in many slots, and each copy has an error of its own. So the
    DC errors in the slots that are read belong to these elements' own readings, and what goes on
    into other operations, from whichever copy, has the mean over all slots in use. Where no element
    has copies, both are one.

    Attributes:
      slots: in use, in all ciphertexts of the result.
      copied: whether any of them is not read.
      errors: for each, the slot's number among those with DC errors, and the origin; no two alike.
      amplitudes: of each, in slots, without `products`.
      products: (which error, coefficient, element): the element's value times the coefficient is
        part of that error's amplitude. Those by one tensor are neighbours.
      read: (element of the result, number of the slot in which it is read).
    """

    slots: int
    copied: bool
    errors: tuple[tuple[int, Origin], ...]
    amplitudes: tuple[float, ...]
    products: tuple[tuple[int, float, Element], ...]
    read: tuple[tuple[Element, int], ...]

    @property
    def origins(self) -> set[Origin]:
        """Of all errors."""
        return {origin for _, origin in self.errors}


def places(elements: Sequence[Element], shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Which of these elements of one tensor it has in this shape, with a batch of any size, and
    their places in it flattened.
    """
    axis = elements[0].axis if elements else -1
    chosen = np.array([e.member for e in elements], np.int64)
    rest = list(shape)
    held = chosen < rest.pop(axis) if axis >= 0 else np.ones(len(chosen), bool)
    found = np.array([e.place for e in elements], np.int64)[held]
    if axis >= 0:
        stride = math.prod(rest[axis:])
        found = (found // stride * shape[axis] + chosen[held]) * stride + found % stride
    return held, found


def key_switch_dc_errors(params: CKKSParams, level: int, profile: NoiseProfile) -> dict[int, float]:
    """Variance in the slots near ζ = 1 by slot, as `noise.slot_std` counts it; empty where each has
    less of it than a slot has of a key switch's whole error in the mean.
    """
    if profile.centred_digits or formulas.digit_size(params, profile) > 1:
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
    tap: TensorLocation,
    slots: Mapping[int, Amplitudes],
    used: Mapping[int, np.ndarray],
    flat: float,
    element: Callable[[Factor], tuple[Element, float]],
) -> DCErrors | None:
    """Errors in single slots as those of the elements of a tensor.

    Args:
      tap: where the tensor lies.
      slots: by ciphertext, the errors.
      used: by ciphertext of the tensor, bool[slots], those in use.
      flat: variance that all slots have besides.
      element: which one is a factor, and the slot's value over the element's.

    Returns:
      None if in each slot they are below a hundredth of `flat`, values in factors taken as 1.
    """
    sign = math.copysign(1.0, tap.gain)
    numbers: dict[tuple[int, int], int] = {}
    alone: dict[tuple[int, Origin], float] = {}
    products: list[tuple[tuple[int, Origin], float, Element]] = []
    for cipher, held in used.items():
        for slot, errors in slots.get(cipher, {}).items():
            faint = sum(a * a for a in errors.values()) <= _FAINT * flat
            if faint or slot >= len(held) or not held[slot]:
                continue
            number = numbers.setdefault((cipher, slot), len(numbers))
            for (origin, factor), amplitude in sorted(errors.items()):
                error = number, origin
                alone.setdefault(error, 0.0)
                if factor == ALONE:
                    alone[error] = sign * amplitude
                else:
                    other, ratio = element(factor)
                    products.append((error, sign * amplitude * ratio, other))
    if not numbers:
        return None
    order = {error: k for k, error in enumerate(alone)}
    products.sort(key=lambda product: product[2].tensor)
    return DCErrors(
        slots=sum(int(held.sum()) for held in used.values()),
        copied=not slots_read.within(tap, used),
        errors=tuple(alone),
        amplitudes=tuple(alone.values()),
        products=tuple((order[error], size, other) for error, size, other in products),
        read=tuple(
            (element, number)
            for (cipher, slot), number in numbers.items()
            for element in _elements(tap, cipher, slot)
        ),
    )


def _elements(tap: TensorLocation, cipher: int, slot: int) -> list[Element]:
    """Those that are read in a slot."""
    column, member = divmod(slot, tap.width)
    if member >= (tap.batch if tap.batch_axis >= 0 else 1):
        return []
    held = np.flatnonzero((tap.cipher == cipher) & (tap.column == column))
    return [Element(tap.op, tap.batch_axis, int(e), member) for e in held]


def variance(errors: Mapping[tuple[Origin, Factor], float]) -> float:
    """Of the sum of errors of these amplitudes, without those that were multiplied by values."""
    return sum(amplitude**2 for (_, factor), amplitude in errors.items() if factor == ALONE)
