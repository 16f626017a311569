"""Public arguments that a bundle leaves open, and the operands that are filled in from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hesim.errors import BundleError

if TYPE_CHECKING:
    from jaxtyping import Float64, Int, Shaped

__all__ = ["DTYPES", "OpenOperand", "filled"]

DTYPES = frozenset(
    {
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64"),
    }
)
"""Names of the dtypes that NumPy alone converts as JAX does."""


@dataclass(frozen=True, eq=False)
class OpenOperand:
    """An operand that is an open argument, moved and converted.

    Attributes:
      operand: its number.
      leaf: number of the argument among the leaves of the call.
      steps: in order, a dtype's name to convert to, or the flat places that are taken, an array of
        the shape that results.
      inverse: whether the operand is the reciprocal of that.
    """

    operand: int
    leaf: int
    steps: tuple[str | Int[np.ndarray, "..."], ...] = field(repr=False)
    inverse: bool = False

    def value(self, argument: Shaped[np.ndarray, "..."], label: str) -> Float64[np.ndarray, "..."]:
        """The operand, float64.

        Raises:
          BundleError: it is not finite.
        """
        found = np.asarray(argument)
        for step in self.steps:
            found = found.astype(step) if isinstance(step, str) else found.reshape(-1)[step]
        found = found.astype(np.float64)
        if self.inverse:
            with np.errstate(divide="ignore"):
                found = 1.0 / found
        if not np.all(np.isfinite(found)):
            what = "its reciprocal, which is divided by," if self.inverse else "it"
            raise BundleError(
                f"the open argument {label}: {what} has NaN or infinite values; clean it first"
            )
        return found


def filled(
    operands: Sequence[np.ndarray | None],
    opened: Sequence[OpenOperand],
    arguments: Mapping[int, Shaped[np.ndarray, "..."]],
    labels: Sequence[str],
) -> list[Float64[np.ndarray, "..."]]:
    """All operands of a call.

    Args:
      operands: those that are known, None for the open ones.
      opened: how these are made. arguments, labels: leaves of the call, by number.

    Raises:
      BundleError: an open argument has values that are not finite.
    """
    found = list(operands)
    for each in opened:
        found[each.operand] = each.value(arguments[each.leaf], labels[each.leaf])
    whole = [operand for operand in found if operand is not None]
    assert len(whole) == len(found), "every operand is known or open"
    return whole
