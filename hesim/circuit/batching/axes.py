"""Finds the batch axis: the one that every encrypted value carries and nothing mixes.

Its members then lie side by side in the slots, and the compiler works on one member.
"""

from __future__ import annotations

from collections.abc import Iterator

from hesim.circuit.batching.rules import Mixed
from hesim.primitives import PRIMITIVES
from hesim.program import Program

__all__ = ["batch_axes", "candidates"]


def candidates(program: Program) -> Iterator[dict[int, int | None]]:
    """Guesses at the batch axis of the encrypted inputs: axis 0 of all of one size, or of one.

    Two sizes may agree by accident, as those of a batch and of an encrypted matrix.
    """
    secret = [v for v in program.inputs if v.encrypted]
    for size in dict.fromkeys(v.shape[0] for v in secret if v.shape and v.shape[0] > 1):
        fitting = [v for v in secret if v.shape and v.shape[0] == size]
        for chosen in [fitting, *([v] for v in fitting if len(fitting) > 1)]:
            yield {v.id: 0 if v in chosen else None for v in secret}


def batch_axes(
    program: Program, start: dict[int, int | None], size: int
) -> dict[int, int | None] | None:
    """The batch axis of every encrypted value, None for those that are alike in all members.

    Args:
      start: axis per encrypted input.
      size: members of the batch.

    Returns:
      Axes by value id, or None if some operation mixes members, or if most values are alike in all
      of them (they would be computed once for each).
    """
    axes = dict(start)
    try:
        for eqn in program.ops:
            for var, axis in zip(
                eqn.outputs, PRIMITIVES[eqn.name].batch(program, eqn, axes, size), strict=True
            ):
                axes[var.id] = axis
    except Mixed:
        return None
    made = [axes[v.id] for eqn in program.ops for v in eqn.outputs]
    return None if 2 * made.count(None) > len(made) else axes
