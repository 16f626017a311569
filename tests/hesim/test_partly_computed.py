"""Tensors of which a Circuit computes only what is read later: their noise is neither lost nor
counted twice, in whichever operation it first comes to light.
"""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from hesim.certify import certify
from hesim.circuit.circuit import Circuit
from hesim.circuit.compile import compile
from hesim.noise.placement import of_circuit
from hesim.params import CKKSParams
from hesim.predict import predict
from hesim.trace import trace

pytestmark = pytest.mark.filterwarnings("ignore::hesim.params.InsecureParametersWarning")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    PARAMS = CKKSParams(12, 4, 40, 50, 60, security=None)

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(16, 6, 6, 1)).astype(np.float32)
KERNEL = RNG.normal(size=(3, 3, 1, 2)).astype(np.float32)
SECOND = RNG.normal(size=(2, 2, 2, 3)).astype(np.float32)
ROWS = RNG.normal(size=(64, 16)).astype(np.float32)
WEIGHT = (RNG.normal(size=(16, 16)) / 4).astype(np.float32)


def conv(x, kernel=KERNEL, stride=1, padding="SAME"):
    layout = ("NHWC", "HWIO", "NHWC")
    weights = jnp.asarray(kernel)
    return lax.conv_general_dilated(x, weights, (stride,) * 2, padding, dimension_numbers=layout)


def pooled(x):
    return x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean((2, 4))


CASES = {
    "a slice of a convolution": (lambda x: conv(x)[:, :4, :4], IMAGES),
    "of one with a stride": (lambda x: conv(x, stride=2)[:, :2, :2], IMAGES),
    "a pool that leaves out the rim": (
        lambda x: pooled(conv(conv(x) ** 2 * 0.1, SECOND, padding="VALID")[:, :4, :4]),
        IMAGES,
    ),
    "two overlapping slices": (
        lambda x: (lambda c: (c[:, :4, :4] * 2.0, c[:, 1:5, 2:5] ** 2))(conv(x)),
        IMAGES,
    ),
    "a slice that is moved and padded": (
        lambda x: jnp.pad(
            conv(x)[:, :4, :4].transpose(0, 3, 1, 2), ((0, 0), (0, 0), (1, 1), (0, 0))
        ),
        IMAGES,
    ),
    "the gradient by a slice": (jax.grad(lambda x: (conv(x)[:, :4, :4] ** 2).sum()), IMAGES),
    "sums of products in a slice": (lambda y: ((y @ WEIGHT)[:, 3:9] ** 2).sum(-1), ROWS),
    "the second part of a split": (
        lambda y: jnp.split(y @ WEIGHT, [4], axis=1)[1] @ WEIGHT[:12] + 1.0,
        ROWS,
    ),
    "a sum of two parts": (lambda y: sum(jnp.split(y @ WEIGHT, 2, axis=1)), ROWS),
    "a product padded with ones": (
        lambda y: jnp.pad((y @ WEIGHT)[:, 3:9], ((0, 0), (2, 2)), constant_values=1.0),
        ROWS,
    ),
}


def compiled(fn, args):
    program = trace(fn, *args, encrypted=(0,))
    return program, compile(program, PARAMS)


@pytest.mark.parametrize("name", CASES)
def test_errors_of_what_is_computed_are_those_of_the_certificate(name):
    fn, x = CASES[name]
    program, circuit = compiled(fn, (x,))
    schedule = of_circuit(program, circuit)
    certificate = certify(circuit, (x,), keys=16)
    for tier in ("train", "predict"):
        found = predict(program, PARAMS, (x,), 16, schedule=schedule, tier=tier, jit=False)
        for op, certified in zip(found.ops, certificate.ops, strict=True):
            if certified.std > 0:
                assert abs(math.log2(op.std / certified.std)) < 0.2, op


def test_an_operation_is_shown_as_far_as_it_is_computed(tmp_path):
    program, circuit = compiled(lambda x: conv(x)[:, :4, :4], (IMAGES,))
    first, second = certify(circuit, (IMAGES,), keys=4).ops
    assert first.level == second.level >= 0
    assert 0.5 < first.std / second.std < 2.0
    tap = circuit.taps[0]
    assert (tap.cipher == -2).any() and (tap.cipher >= 0).any()
    circuit.save(tmp_path / "circuit.npz")
    again = Circuit.load(tmp_path / "circuit.npz")
    assert np.array_equal(again.taps[0].cipher, tap.cipher)
    values = tap.read({int(c): np.zeros(circuit.slots) for c in tap.ciphers})
    assert np.isnan(values).any() and not np.isnan(values[:, :4, :4]).any()
    assert len(program.ops) == len(circuit.taps) == 2
