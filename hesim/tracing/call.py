"""One operation met while tracing, as rewritings see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.core import eval_jaxpr
from jax.extend import core

from hesim.tracing.known import Known

__all__ = ["Call", "Rewriting", "over_elements"]


@dataclass(frozen=True)
class Call:
    """A primitive about to be applied to operands of which at least one is encrypted.

    Attributes:
      primitive, params: as in the jaxpr.
      operands: abstract values (shape, dtype).
      secret: per operand, whether it is encrypted.
      known: per operand, what is known of it while tracing; None if it depends on an argument.
    """

    primitive: Any
    params: dict[str, Any]
    operands: tuple[jax.ShapeDtypeStruct, ...]
    secret: tuple[bool, ...]
    known: tuple[Known | None, ...]

    def constant(self, number: int) -> np.ndarray | None:
        """The value of an operand that depends on no argument, else None."""
        known = self.known[number]
        return None if known is None else known.value()


Rewriting = Callable[[Call], Callable[..., Any] | None]
"""The same operation as a function of its operands in other primitives, which is traced in its
place; None where the operation stays as it is."""


def over_elements(jaxpr: Any, consts: Any, rank: int) -> Callable[..., list[Any]]:
    """A jaxpr of scalars as a function of arrays of this rank, element by element."""
    inner = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    consts = jaxpr.consts if isinstance(jaxpr, core.ClosedJaxpr) else consts

    def apply(*scalars: Any) -> list[Any]:
        return eval_jaxpr(inner, consts, *scalars)

    for _ in range(rank):
        apply = jax.vmap(apply)
    return apply


def identity_matrix(n: int, dtype: Any) -> Any:
    """The identity as a JAX array, one equation of a trace."""
    return lax.full((n, n), 0, dtype).at[np.arange(n), np.arange(n)].set(1)
