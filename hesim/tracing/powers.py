"""Powers with exponents that are known while tracing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from hesim.tracing.call import Call

__all__ = ["whole_powers"]

_MOST_EXPONENTS = 16
"""Different exponents in one power."""


def whole_powers(call: Call) -> Callable[..., Any] | None:
    """x ** a for whole a >= 0, known while tracing: one power for each different exponent."""
    exponent = call.constant(1)
    if call.secret[1] or exponent is None or exponent.size == 0:
        return None
    exponent = exponent.astype(np.float64)
    distinct = np.unique(exponent)
    if len(distinct) > _MOST_EXPONENTS or not np.all(np.isfinite(distinct)):
        return None
    if np.any(distinct < 0) or np.any(distinct != np.round(distinct)):
        return None
    shape = np.broadcast_shapes(call.operands[0].shape, exponent.shape)

    def fn(x: Any, _exponent: Any) -> Any:
        x = jnp.broadcast_to(x, shape)
        powers = [lax.integer_pow(x, int(a)) if a else jnp.ones_like(x) for a in distinct]
        if len(powers) == 1:
            return powers[0] if distinct[0] else lax.integer_pow(x, 0)
        out = powers[0]
        for a, power in zip(distinct[1:], powers[1:], strict=True):
            out = jnp.where(np.broadcast_to(exponent == a, shape), power, out)
        return out

    return fn
