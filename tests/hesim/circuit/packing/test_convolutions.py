"""Convolutions by public kernels between layouts: values, and costs as they are foretold."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from hesim.circuit.compile import compile
from hesim.circuit.packing.offers import convolution
from hesim.params import CKKSParams
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


def _pooled(x, extent: int, stride: int):
    window, strides = (1, extent, extent, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, 0.0, lax.add, window, strides, "VALID")


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
    "pooled": (lambda x: _pooled(_convolved(x, SMALL), 2, 2) @ DENSE[:3], normal(1, 6, 8, 1)),
    "pooled by windows that overlap": (
        lambda x: _pooled(x, 3, 2) * DENSE[0, 0],
        normal(1, 7, 8, 2),
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


IMAGES = normal(7, 7, 1, 4), normal(256, 64), normal(64, 10)


def _classified(y):
    return jnp.square(jnp.square(y).reshape(-1) @ IMAGES[1]) @ IMAGES[2]


def test_a_net_on_an_image_costs_what_it_does_on_patches():
    """Without refreshes, where levels are dear while layouts are searched."""
    image = np.zeros((28, 28))
    starts = range(0, 22, 3)
    patches = np.stack([image[i : i + 7, j : j + 7].ravel() for i in starts for j in starts])
    params = CKKSParams(14, 6, 30, 40, 45)
    one, other = (
        compile(trace(fn, x), params, interactive=False).ledger
        for fn, x in (
            (lambda x: _classified(_convolved(x[None, :, :, None], IMAGES[0], 3)[0]), image),
            (lambda x: _classified(x @ IMAGES[0].reshape(49, 4)), patches),
        )
    )
    assert one.refreshes == other.refreshes == 0
    assert one.plain_products < 256 and other.plain_products < 256
    assert one.seconds < 1.5 * other.seconds
    assert max(one.rotation_keys, other.rotation_keys) <= 24
