"""Values that are zero whatever is encrypted: what is added to them is public if it was.

A loop that starts from zeros and multiplies first, as `jnp.polyval` does, would otherwise spend a
level and a product of ciphertexts on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hesim.tracing.known import Known

__all__ = ["always_zero", "zero_operand"]

_MOST_ELEMENTS = 2**16
"""Elements of a constant that is looked at."""

_LINEAR = frozenset(
    {
        *("neg", "broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "slice"),
        *("rev", "reduce_sum", "cumsum", "copy", "copy_p", "convert_element_type", "add", "sub"),
        *("add_any", "concatenate", "stop_gradient", "reduce_precision"),
    }
)
"""Operations whose result is zero where all operands are."""


def always_zero(name: str, values: Sequence[Any], zeros: Sequence[bool]) -> bool:
    """Whether an operation gives zero.

    Args:
      name: of the primitive. values: the traced operands. zeros: whether each is zero.
    """
    if name == "sub" and values[0] is values[1]:
        return True
    if name in ("mul", "dot_general", "conv_general_dilated"):
        return any(zeros)
    if name == "div":
        return zeros[0]
    return name in _LINEAR and all(zeros)


def zero_operand(known: Known | None, size: int) -> bool:
    """Whether what is known of an operand is that it is zero."""
    return known is not None and 0 < size <= _MOST_ELEMENTS and not np.any(known.value())
