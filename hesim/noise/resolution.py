"""Whether the numbers of a result can show the noise that is simulated in them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer

from hesim.errors import SwallowedNoiseWarning
from hesim.noise import formulas
from hesim.noise.profiles import NoiseProfile
from hesim.params import CKKSParams

__all__ = ["warn_if_swallowed"]


def warn_if_swallowed(
    results: Sequence[Any], params: CKKSParams, profile: NoiseProfile, stacklevel: int
) -> bool:
    """Warns if results are rounded more coarsely than the noise of a fresh encryption is large.

    Args:
      results: arrays with the noise in them.
      params, profile: what that noise is by.
      stacklevel: frames from here up to the caller's own line, as for `warnings.warn`.

    Returns:
      Whether it could tell; nothing is known of what is being traced.
    """
    if any(isinstance(x, Tracer) for x in results):
        return False
    noise = formulas.value_std(formulas.fresh(params.n, profile), params, params.levels, profile)
    for x in results:
        if not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype.itemsize > 4 or not x.size:
            continue
        size = float(jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)))))
        rounding = 0.5 * float(jnp.finfo(x.dtype).eps) * size
        if noise < rounding < math.inf:
            warnings.warn(
                f"noise near 2^{math.log2(noise):.0f} is rounded away in {x.dtype} beside values "
                f"near {size:.2g}, which it resolves to 2^{math.log2(rounding):.0f}: call the "
                "simulated function inside `with jax.enable_x64(True):`, on float64 arguments, to "
                "see it (a training does not need to)",
                SwallowedNoiseWarning,
                stacklevel=stacklevel + 1,
            )
            return True
    return True
