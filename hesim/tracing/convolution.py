"""Convolutions by encrypted kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from hesim.tracing.call import Call

__all__ = ["weighed"]


def weighed(call: Call) -> Callable[..., Any] | None:
    """A convolution by an encrypted kernel: patches, which are moves, times the kernel."""
    if not call.secret[1]:
        return None
    p = call.params
    spec = p["dimension_numbers"]
    groups, batches = p["feature_group_count"], p["batch_group_count"]

    def fn(x: Any, kernel: Any) -> Any:
        w = kernel.transpose(spec.rhs_spec)  # out in spatial
        patches = _patches(x.transpose(spec.lhs_spec), w.shape[2:], p)  # taps N C spatial
        taps, members, channels = patches.shape[:3]
        spatial = patches.shape[3:]
        split = (taps, batches, members // batches, groups, channels // groups, -1)
        patches = patches.reshape(split)
        w = w.reshape(batches, groups, w.shape[0] // (groups * batches), w.shape[1], taps)
        out = jnp.einsum("tbngcs,bgoct->nbgos", patches, w)
        out = out.reshape(members // batches, -1, *spatial)
        return out.transpose(np.argsort(spec.out_spec))

    return fn


def _patches(x: Any, extents: tuple[int, ...], p: dict[str, Any]) -> Any:
    """What lies under each tap of a kernel: (taps, N, C, *out spatial)."""
    pads = [(low, high, d - 1) for (low, high), d in zip(p["padding"], p["lhs_dilation"])]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *pads])
    apart, strides = p["rhs_dilation"], p["window_strides"]
    sizes = x.shape[2:]
    counts = [
        (d - (w - 1) * a - 1) // s + 1
        for d, w, a, s in zip(sizes, extents, apart, strides, strict=True)
    ]
    found = []
    for place in np.ndindex(*extents):
        start = [i * a for i, a in zip(place, apart, strict=True)]
        stop = [b + (n - 1) * s + 1 for b, n, s in zip(start, counts, strides, strict=True)]
        found.append(lax.slice(x, [0, 0, *start], [*x.shape[:2], *stop], [1, 1, *strides])[None])
    return lax.concatenate(found, 0)
