"""The set of rotation keys: all steps that are used, or fewer, of which others are composed.

A key is as large as a hundred ciphertexts and takes as long to make as ten rotations. Where memory
does not hold them all, rotations by steps without a key become several by steps that have one: by
powers of two to begin with, and by whatever saves the most seconds as long as there is room.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from hesim.circuit.circuit import Kind
from hesim.errors import ArgumentError

__all__ = ["chosen_steps", "composed", "ways"]

_FAR = 1 << 20
"""Rotations to a step that is not reached."""

_MULTIPLES = 3
"""Times that a new step is tried in a row where it shortens ways."""


def chosen_steps(uses: Mapping[int, float], slots: int, most: int) -> tuple[int, ...] | None:
    """Steps that get a key, ascending; None if no set that is small enough reaches all.

    Args:
      uses: seconds spent on rotations by each step. slots: that rotations are cyclic in.
      most: keys, at most.
    """
    if len(uses) <= most:
        return tuple(sorted(uses))
    if most < 1:
        return None
    unit = math.gcd(slots, *uses)
    size = slots // unit
    weights = np.zeros(size)
    for step, seconds in uses.items():
        weights[step // unit] = seconds
    used = np.flatnonzero(weights)
    best: tuple[float, set[int]] | None = None
    for start in _starts(size, used, most):
        found = _grown(start, weights, used, most)
        cost = float((weights[used] * _lengths(found, size)[used]).sum())
        if best is None or cost < best[0]:
            best = cost, found
    return None if best is None else tuple(sorted(unit * step for step in best[1]))


def _starts(size: int, used: np.ndarray, most: int) -> Iterable[set[int]]:
    """Sets that reach every step: the digits of a base, the largest sets first."""
    bits = max((size - 1).bit_length(), 1)
    for digit in range(1, bits + 1):
        start = {1 << b for b in range(0, bits, digit)}
        if len(start) <= most:
            yield start
            negative = start | {size - (1 << b) for b in range(0, bits, digit)}
            if len(negative) <= most:
                yield negative
            if digit > 1:
                return


def _grown(start: set[int], weights: np.ndarray, used: np.ndarray, most: int) -> set[int]:
    """`start` and the steps that save the most, one by one; what nothing needs is given up."""
    size, found = len(weights), set(start)
    length = _lengths(found, size)
    for _ in range(2):
        while len(found) < most:
            saved = weights[used] * (length[used] - 1)
            step = int(used[int(saved.argmax())])
            if saved.max() <= 0.0:
                break
            found.add(step)
            shorter = length
            for times in range(1, _MULTIPLES + 1):
                shorter = np.minimum(shorter, np.roll(length, times * step) + times)
            length = shorter
        total = float((weights[used] * length[used]).sum())
        for step in sorted(found - set(used.tolist())):
            without = _lengths(found - {step}, size)
            cost = float((weights[used] * without[used]).sum())
            if cost <= total * (1 + 1e-12):
                found.remove(step)
                length, total = without, cost
        length = _lengths(found, size)
    return found


def _lengths(steps: Iterable[int], size: int) -> np.ndarray:
    """int64 (size,): the fewest rotations by these steps that make up each step."""
    return _search(steps, size)[0]


def _search(steps: Iterable[int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """The fewest rotations to each step, and the last of them."""
    length, last = np.full(size, _FAR, np.int64), np.zeros(size, np.int64)
    length[0] = 0
    edge, order = np.array([0]), sorted(steps)
    while len(edge):
        reached = []
        for step in order:
            to = (edge + step) % size
            fresh = to[length[to] == _FAR]
            length[fresh], last[fresh] = length[edge[0]] + 1, step
            reached.append(fresh)
        edge = np.concatenate(reached) if reached else np.zeros(0, np.int64)
    return length, last


def ways(keys: Iterable[int], steps: Iterable[int], slots: int) -> dict[int, tuple[int, ...]]:
    """Each step as rotations by `keys` one after another, the fewest there are.

    Raises:
      ArgumentError: one cannot be composed of them.
    """
    known = sorted(keys)
    unit = math.gcd(slots, *known)
    length, last = _search([k // unit for k in known], slots // unit)
    out: dict[int, tuple[int, ...]] = {}
    for step in steps:
        if step % unit or length[step // unit] == _FAR:
            raise ArgumentError(f"a rotation by {step} is no sum of rotations by {known}")
        at, way = step // unit, []
        while at:
            way.append(int(last[at]))
            at = (at - way[-1]) % (slots // unit)
        out[step] = tuple(unit * k for k in reversed(way))
    return out


def composed(
    data: Mapping[str, np.ndarray], keys: Iterable[int], slots: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Instruction arrays with rotations by `keys` only, and the new number of each instruction.

    Rotations of one ciphertext share the beginning of their ways.

    Args:
      data: as of `emission.arrays`.
    """
    kind, ptr, arg, param = data["kind"], data["arg_ptr"], data["arg"], data["param"]
    rotations = np.flatnonzero(kind == Kind.ROTATE)
    steps = ways(keys, np.unique(param[rotations]).tolist(), slots)
    made: dict[tuple[int, int], int] = {}  # (ciphertext, step so far): -1 - place among the new
    before: list[int] = []  # the rotation that each new one comes before
    operand: list[int] = []
    step_of: list[int] = []
    changed_arg, changed_param = arg.copy().astype(np.int64), param.copy()
    for i in rotations.tolist():
        cipher, way = int(arg[ptr[i]]), steps[int(param[i])]
        at, so_far = cipher, 0
        for step in way[:-1]:
            so_far = (so_far + step) % slots
            if (cipher, so_far) not in made:
                made[cipher, so_far] = -1 - len(before)
                before.append(i)
                operand.append(at)
                step_of.append(step)
            at = made[cipher, so_far]
        changed_arg[ptr[i]], changed_param[i] = at, way[-1]
    place = np.asarray(before, np.int64)
    number = np.arange(len(kind)) + np.searchsorted(place, np.arange(len(kind)), side="right")
    new = place + np.arange(len(place))

    def renumbered(found: np.ndarray) -> np.ndarray:
        out = np.where(found >= 0, number[np.maximum(found, 0)], 0)
        return np.where(found < 0, new[np.maximum(-1 - found, 0)], out) if len(new) else out

    terms, starts = np.diff(ptr), ptr[place]
    dots = np.repeat(kind == Kind.DOT, terms)
    second = data["arg2"].astype(np.int64)
    second[dots] = number[second[dots]]
    out = dict(data)
    for name in ("level", "scale", "source"):
        out[name] = np.insert(data[name], place, data[name][place])
    out["kind"] = np.insert(kind, place, Kind.ROTATE)
    out["param"] = np.insert(changed_param, place, step_of)
    out["arg_ptr"] = np.concatenate([[0], np.cumsum(np.insert(terms, place, 1))])
    for name, held, fresh in (
        ("arg", renumbered(changed_arg), renumbered(np.asarray(operand, np.int64))),
        ("arg2", second, np.full(len(place), -1)),
        ("factor", data["factor"], np.ones(len(place))),
    ):
        out[name] = np.insert(held, starts, fresh)
    return {name: out[name].astype(data[name].dtype) for name in out}, number
