"""Convolutions by public kernels between layouts: values, and costs as they are foretold."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from hesim.circuit.packing.offers import convolution
from hesim.trace import trace
from tests.hesim.circuit.packing.test_small_cases import normal
from tests.hesim.circuit.packing.vectors import checked_offers, random_layout

NHWC = ("NHWC", "HWIO", "NHWC")


def _random(rng: np.random.Generator):
    """(function, operand, kernel) of a convolution of any form."""
    h, w = (int(d) for d in rng.integers(2, 8, 2))
    groups = int(rng.choice([1, 1, 2, 3]))
    ins, outs = groups * int(rng.integers(1, 4)), groups * int(rng.integers(1, 4))
    taps = tuple(int(d) for d in rng.integers(1, 4, 2))
    options = {
        "window_strides": tuple(int(d) for d in rng.choice([1, 1, 2, 3], 2)),
        "padding": [tuple(int(d) for d in rng.integers(0, 3, 2)) for _ in range(2)],
        "lhs_dilation": tuple(int(d) for d in rng.choice([1, 1, 1, 2], 2)),
        "rhs_dilation": tuple(int(d) for d in rng.choice([1, 1, 2], 2)),
        "feature_group_count": groups,
    }
    x = rng.normal(size=(int(rng.integers(1, 3)), h, w, ins))
    kernel = jnp.asarray(rng.normal(size=(*taps, ins // groups, outs)))

    def fn(x):
        return lax.conv_general_dilated(x, kernel, dimension_numbers=NHWC, **options)

    return fn, x, kernel


def _kernel(seed: int) -> int:
    """How many offers were right."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        fn, x, kernel = _random(rng)
        if 0 in jax.eval_shape(fn, x).shape:
            return 0
        program, wanted = trace(fn, x), np.asarray(fn(x))
    columns = int(rng.choice([16, 64, 256]))
    layout = random_layout(rng, x.shape, columns, rolled=False).canonical()
    rules = convolution.convolution, convolution.anywhere
    return checked_offers(rules, program, layout, x, wanted)


def test_random_convolutions():
    assert sum(_kernel(seed) for seed in range(20)) > 30


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 3000, 500))
def test_many_random_convolutions(start):
    assert sum(_kernel(seed) for seed in range(start, start + 500)) > 500


def _convolved(x, kernel, stride: int = 1, padding: str = "VALID", **options):
    return lax.conv_general_dilated(
        x, jnp.asarray(kernel), (stride, stride), padding, dimension_numbers=NHWC, **options
    )


SMALL, MORE, DENSE = normal(3, 3, 1, 3), normal(2, 2, 3, 2), normal(27, 5)
DEEP, TURNED = normal(3, 3, 1, 4), normal(3, 3, 2, 2)

NETS = {
    "a strided layer before a dense one": (
        lambda x: jnp.square(_convolved(x, SMALL, 3) + 0.5).reshape(len(x), -1) @ DENSE,
        normal(1, 10, 9, 1),
    ),
    "two strided layers": (
        lambda x: _convolved(jnp.square(_convolved(x, SMALL, 2, "SAME")), MORE, 2).sum(3),
        normal(1, 8, 7, 1),
    ),
    "by channels, of a batch": (
        lambda x: _convolved(x * x, DEEP, 1, "SAME", feature_group_count=2).sum((1, 2)),
        normal(3, 4, 5, 2),
    ),
    "a transposed one": (
        lambda x: x.sum() + lax.conv_transpose(x, jnp.asarray(TURNED), (2, 2), "SAME"),
        normal(1, 3, 4, 2),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_nets(check, name):
    fn, x = NETS[name]
    assert check(fn, x, finalists=4)
    assert check(fn, x, finalists=4, seed=0, batch=False)
