"""Products by public matrices from any layout, with gaps and padding: values, and counts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hesim.circuit.packing.offers import contraction
from hesim.trace import trace
from tests.hesim.circuit.packing.vectors import checked_offers, random_layout


def _product(seed: int) -> int:
    """How many offers were right."""
    rng = np.random.default_rng(seed)
    letters = "abc"[: rng.integers(1, 4)]
    shape = [int(d) for d in rng.choice([1, 2, 3, 4, 5, 8], len(letters))]
    summed = [c for c in letters if rng.random() < 0.7] or [letters[0]]
    out = "".join(c for c in letters if c not in summed) + "z"
    sizes = [shape[letters.index(c)] for c in summed]
    weight = rng.normal(size=(*sizes, int(rng.choice([1, 2, 3, 5, 8]))))
    x = rng.normal(size=shape)
    form = f"{letters},{''.join(summed)}z->{out}"
    layout = random_layout(rng, shape, int(rng.choice([16, 64])), rolled=False).canonical()
    with jax.enable_x64(True):
        program = trace(lambda x: jnp.einsum(form, x, weight), x)
    if len(program.ops) != 1:
        return 0
    return checked_offers([contraction.dot_general], program, layout, x, np.einsum(form, x, weight))


def test_random_products():
    assert sum(_product(seed) for seed in range(80)) > 100


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 3000, 500))
def test_many_random_products(start):
    assert sum(_product(seed) for seed in range(start, start + 500)) > 500
