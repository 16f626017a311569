"""The linear maps of OpenFHE's bootstrap: which products by matrices they are, and what they cost.

A transform of log2(slots) layers is done in as many steps as it has levels, each a product by a
matrix of few diagonals, by baby steps and giant steps (OpenFHE 1.6: `ckksrns-fhe`,
`ckksrns-utils`). Held against the keys that it makes by the tests.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Step", "rotations", "share_of_seconds", "steps"]

_REST = 38.0
"""Key switches of the way from coefficients to slots that cost as much as all else of a bootstrap:
between CPU seconds of budgets (3, 3) at N = 2^11, where 512 of 1,024 slots take 0.79 (0.85 by this)
and 32 take 0.75 (0.72), and of (2, 2) with all and (3, 2) with 512 slots at 2^13: 0.60 (0.61).
"""


@dataclass(frozen=True)
class Step:
    """One product by a matrix: rotations by multiples of `stride`, `diagonals` of them, in so many
    `baby` steps and `giant` steps.
    """

    stride: int
    diagonals: int
    baby: int
    giant: int


def share_of_seconds(log_n: int, slots: int, up: int) -> float:
    """What a bootstrap of so many slots takes of the seconds of one of all slots, which has larger
    matrices: they are products of fewer diagonals, in fewer rotations.

    Args:
      log_n: log2 of the ring degree. slots: in use. up: levels of coefficients to slots.

    Examples:
      >>> from hesim.circuit.costs.transforms import share_of_seconds
      >>> round(share_of_seconds(16, 2**15, 3), 2), round(share_of_seconds(16, 64, 3), 2)
      (1.0, 0.64)
    """
    full = 2 ** (log_n - 1)
    if slots >= full:
        return 1.0
    return (_REST + _switches(full, slots, up)) / (_REST + _switches(full, full, up))


def _switches(full: int, slots: int, up: int) -> int:
    """Key switches of coefficients to slots, and of the sum of what lies between the slots in use
    before it.
    """
    summed = (full // slots).bit_length() - 1
    return summed + sum(s.baby + s.giant - 2 for s in steps(slots, up, rest_first=True))


def rotations(n: int, slots: int, up: int, down: int) -> set[int]:
    """The steps that a bootstrap rotates by.

    Args:
      n: ring degree. slots: in use. up, down: levels of the two transforms.
    """
    half = n // 2
    found = {slots << k for k in range((half // slots).bit_length() - 1)}
    for step in (*steps(slots, up, rest_first=True), *steps(slots, down)):
        found |= {j * step.stride for j in range(1, step.giant)}
        found |= {i * step.giant * step.stride for i in range(1, step.baby)}
    return {k % half for k in found} - {0}


def steps(slots: int, levels: int, *, rest_first: bool = False) -> list[Step]:
    """The products of a transform, by their strides: as many as levels, or as layers if fewer."""
    count = slots.bit_length() - 1
    levels = min(levels, count)
    if not levels:
        return []
    layers, rest = _layers(count, levels)
    parts = [layers] * (levels - (rest > 0)) + ([rest] if rest else [])
    if rest_first and rest:
        parts = [rest, *parts[:-1]]
    return [_step(1 << sum(parts[:i]), part) for i, part in enumerate(parts)]


def _step(stride: int, layers: int) -> Step:
    diagonals = (1 << (layers + 1)) - 1
    giant = 1 << (layers // 2 + (2 if diagonals > 7 else 1))
    return Step(stride, diagonals, (diagonals + 1) // giant, giant)


def _layers(count: int, levels: int) -> tuple[int, int]:
    """Layers to a product, and those that are left for the last."""
    each = -(-count // levels)
    rows, rest = divmod(count, each)
    if rows + (rest > 0) < levels:
        each -= 1
        rows, rest = divmod(count, each)
        while rows + (rest > 0) != levels:
            rows -= 1
            rest = count - rows * each
    return each, rest
