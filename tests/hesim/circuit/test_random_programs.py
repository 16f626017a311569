"""Random compositions: what one kernel leaves behind, the next one must understand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import approx
from hesim import refresh

POLY = approx.fit("tanh", (-8, 8), degree=5)


def step(kind: int, rng: np.random.Generator, x, y, w):
    """One random operation on encrypted x and y and public w, all of rank 2."""
    n, m = x.shape
    axis = int(rng.integers(0, 2))
    match kind:
        case 0:
            return x.T
        case 1:
            return x @ y[:m, :] if y.shape[0] >= m else x @ jnp.ones((m, 2)) * 0.5
        case 2:
            return x * w[:n, :m]
        case 3:
            return x @ w[:m, : rng.integers(1, 5)]
        case 4:
            return x - x.mean(axis, keepdims=True)
        case 5:
            return jnp.concatenate([x, 0.5 * x[::-1]], axis)[:4, :4]
        case 6:
            return jnp.cumsum(x, axis) * 0.3
        case 7:
            return POLY(x)
        case 8:
            return x * x - 0.25
        case 9:
            rows = rng.integers(0, n, rng.integers(1, 4))
            return x[rows]
        case 10:
            return jnp.where(np.tri(n, m, dtype=bool), x, w[:n, :m])
        case 11:
            return lax.pad(x, jnp.float32(0.5), ((1, 0, 0), (-1 if m > 1 else 0, 1, 0)))[:4, :4]
        case 12:
            return x.reshape(m, n)
        case 13:
            return jnp.broadcast_to(x.sum(axis, keepdims=True) * 0.25, (n, m)) + x
        case 14:
            return x.at[rng.integers(0, n)].add(x[0]) * 0.5
        case 15:
            return refresh(x)
        case 16:
            k, j = min(n, y.shape[0]), min(m, y.shape[1])
            return x[:k, :j] * y[:k, :j] + (x[:k, :j] - y[:k, :j])
        case 17:
            return jnp.einsum("ij,kj->ik", x, x)[:4, :4] * 0.2
        case 18:
            return x * 0.0 if rng.random() < 0.3 else -x / 3.0
        case _:
            return x.prod(axis, keepdims=True) + x


@settings(max_examples=12)
@given(data=st.data())
def test_random_programs(check, drawing, data):
    draw = drawing(data)
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    kinds = draw(st.lists(st.integers(0, 19), min_size=2, max_size=6), "operations")
    seed = draw(st.integers(0, 2**16), "places")

    def fn(x, w):
        rng = np.random.default_rng(seed)
        values = [x]
        for kind in kinds:
            other = values[rng.integers(0, len(values))]
            values.append(step(kind, rng, values[-1], other, w))
        return values[-1], values[len(values) // 2].sum(0)

    x = np.clip(draw.array(*shape), -1.5, 1.5)
    check(fn, x, 0.5 * draw.array(8, 8), tolerance=1e-8, **draw.options(shape))
