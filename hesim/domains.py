"""What a Program and its polynomials are fed: numbers, within the domains of their fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from hesim.program import Equation, Literal, Program, is_key

if TYPE_CHECKING:
    from jaxtyping import ArrayLike, Bool, Shaped

__all__ = ["inside", "not_finite", "public_polynomials"]


def inside(equation: Equation, fed: Shaped[ArrayLike, "*shape"]) -> Bool[np.ndarray, "*shape"]:
    """Whether values that a `polynomial` equation is fed lie in its domain, gaps left out.

    Args:
      equation: its ``params["poly"]`` has the domain.
      fed: values of its operand, of any shape.

    Returns:
      bool, in the shape of `fed`. Public values may miss the ends by the rounding of the dtype in
      which they are computed; encrypted ones are evaluated in float64.
    """
    operand = equation.inputs[0]
    values = np.asarray(fed, np.float64)
    slack = 1e-9
    if not equation.encrypted and not isinstance(operand, Literal):
        dtype = jnp.dtype(operand.dtype)
        if jnp.issubdtype(dtype, jnp.floating):
            slack = max(slack, 4.0 * float(jnp.finfo(dtype).eps))
    return equation.params["poly"].contains(values, slack)


def not_finite(labels: Sequence[str], leaves: Sequence[Any]) -> list[str]:
    """The labels of arguments that hold NaN or infinite values, of any shapes and dtypes."""
    return [
        label
        for label, leaf in zip(labels, leaves, strict=True)
        if not is_key(leaf)
        and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        and not np.all(np.isfinite(np.asarray(leaf, np.float64)))
    ]


def public_polynomials(
    program: Program, flat: Sequence[Any]
) -> list[tuple[Equation, Shaped[np.ndarray, "..."]]]:
    """The `polynomial` equations on public values, each with what it is fed.

    Args:
      program: from ``hesim.trace``.
      flat: argument leaves in the order of ``program.inputs``.

    Returns:
      (equation, float64 values) in program order; nothing is evaluated if there are none.
    """
    found = [e for e in program.equations if e.name == "polynomial" and not e.encrypted]
    operands = [e.inputs[0] for e in found]
    variables = [v for v in operands if not isinstance(v, Literal)]
    if not found:
        return []
    values = program.public_values(flat, variables)
    known = {number: np.asarray(x, np.float64) for number, x in values.items()}
    return [
        (e, np.asarray(v.value, np.float64) if isinstance(v, Literal) else known[v.id])
        for e, v in zip(found, operands, strict=True)
    ]
