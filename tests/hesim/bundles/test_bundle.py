"""Bundles: what they hold, what they leave open, and what they are asked for and refuse."""

from __future__ import annotations

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import approx
import hesim
from hesim.bundles.bundle import Bundle
from hesim.circuit.circuit import Circuit
from hesim.circuit.plain.errors import ValueRangeError
from hesim.circuit.plain.execute import Executor
from hesim.circuit.plain.slots import PlainMachine

PARAMS = hesim.CKKSParams(log_n=13, levels=2, scale_bits=40, first_bits=50, special_bits=60)
RNG = np.random.default_rng(5)
X = RNG.uniform(-1, 1, (4, 8)).astype(np.float32)
W = RNG.normal(size=(8, 3)).astype(np.float32)
MASK = np.array([1, 1, 0, 1], np.int32)

Pair = namedtuple("Pair", "first second")


def fn(inputs, parameters, mask):
    kept = mask.astype(jnp.float32).reshape(4, 1)
    h = (inputs["x"] @ parameters["w"]) * kept + kept
    return {"pair": Pair(h * h, [h, None]), "total": parameters["w"].sum(0)}


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    flags = ({"x": True, "scale": False}, {"w": False}, False)
    program = hesim.trace(fn, {"x": X, "scale": 1.0}, {"w": W}, MASK, encrypted=flags)
    return hesim.compile(program, PARAMS)


@pytest.fixture(scope="module")
def bundle(circuit) -> Bundle:
    return hesim.bundle(circuit, {"x": X, "scale": 1.0}, {"w": W}, MASK, open=2)


def run(bundle: Bundle, *args):
    """On plain vectors, by nothing but the bundle."""
    circuit, leaves = bundle.circuit, bundle.arguments(*args)
    machine = PlainMachine(circuit.params, circuit.slots, circuit.rotation_steps)
    executor = Executor(circuit, machine, bundle.filled(leaves))
    ciphers: dict = {}
    for i in range(len(circuit)):
        level, scale = int(circuit.level[i]), float(circuit.scale[i])
        if circuit.kind[i] == 0:
            family, row = circuit.input_rows[int(circuit.param[i])]
            vector = circuit.inputs[family].vector(row, bundle.secret(leaves))
            ciphers[i] = machine.encrypt(vector, level, scale)
        elif circuit.kind[i] == 9:
            ciphers[i] = machine.encrypt(ciphers[circuit.operands(i)[0]].values, level, scale)
        else:
            executor.run([i], ciphers)
    return bundle.outputs({c: machine.decrypt(ciphers[c]) for c in bundle.decrypted})


@pytest.mark.parametrize("mask", [MASK, 1 - MASK, np.ones(4, np.int8)])
def test_open_arguments_are_filled_in_and_the_result_has_its_structure(bundle, mask):
    found = run(bundle, {"x": X}, mask)
    exact = fn({"x": X.astype(np.float64)}, {"w": W.astype(np.float64)}, mask)
    assert list(found) == ["pair", "total"] and found["pair"]["second"][1] is None
    np.testing.assert_allclose(found["pair"]["first"], exact["pair"].first, atol=1e-6)
    np.testing.assert_allclose(found["pair"]["second"][0], exact["pair"].second[0], atol=1e-6)
    np.testing.assert_allclose(found["total"], exact["total"], rtol=1e-6)


def test_the_key_holders_part_has_no_number_of_the_function(bundle):
    part = bundle.for_key_holder()
    assert part.operands is None and not part.circuit.packs and not part.circuit.plain_pack.size
    assert part.whole == part.evaluated == bundle.digest != part.digest
    assert part.decrypted == bundle.decrypted and part.ranges == bundle.ranges
    np.testing.assert_array_equal(part.circuit.components, bundle.circuit.components)
    with pytest.raises(hesim.BundleError, match="has no operands"):
        part.filled(part.arguments({"x": X}, MASK))


def test_ranges_are_those_of_all_examples(circuit, bundle):
    args = {"x": X, "scale": 1.0}, {"w": W}, MASK
    wider = hesim.bundle(circuit, *args, examples=[({"x": 3 * X, "scale": 1.0}, {"w": W}, MASK)])
    assert wider.leaves[0].low < 2 * bundle.leaves[0].low < 0
    assert all(wider.ranges[c][1] > high for c, (_, high) in bundle.ranges.items())
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    free = hesim.bundle(circuit, {"x": shape, "scale": 1.0}, {"w": W}, MASK)
    assert free.ranges == {} and free.leaves[0].high == np.inf


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        (({"x": X},), hesim.BundleError, "takes 2 arguments"),
        (({"y": X}, MASK), hesim.BundleError, "with the keys"),
        ((X, MASK), hesim.BundleError, "must be a dict"),
        (({"x": X[:2]}, MASK), hesim.BundleError, r"shape \(4, 8\)"),
        (({"x": X}, MASK * 0.5), hesim.BundleError, "must be int32"),
        (({"x": X + np.nan}, MASK), ValueRangeError, "NaN"),
        (({"x": 9 * X}, MASK), ValueRangeError, "examples lay"),
        (({"x": X * (1 + 1j)}, MASK), hesim.BundleError, "not complex64"),
        (({"x": X}, MASK.astype(np.int64) + 2**40), hesim.BundleError, "no int32"),
    ],
)
def test_a_call_of_another_form_is_refused(bundle, args, error, words):
    with pytest.raises(error, match=words):
        bundle.arguments(*args)


def test_what_is_computed_from_an_open_argument_is_refused_with_its_line():
    program = hesim.trace(lambda x, m: x * (1 - m), X, X)
    with pytest.raises(hesim.BundleError, match=r"`sub` at .*test_bundle.py:\d+ .* own"):
        hesim.bundle(hesim.compile(program, PARAMS), X, X, open=1)
    program = hesim.trace(lambda x, m: jnp.where(m > 0, x, 0.0), X, X)
    with pytest.raises(hesim.BundleError, match=r"`select_n` at .*test_bundle.py:\d+"):
        hesim.bundle(hesim.compile(program, PARAMS), X, X, open=1)
    program = hesim.trace(lambda x, m: (x, m), X, X)
    with pytest.raises(hesim.BundleError, match="part of the result"):
        hesim.bundle(hesim.compile(program, PARAMS), X, X, open=1)


def test_a_reciprocal_of_an_open_argument_is_filled_in():
    program = hesim.trace(lambda x, m: x / m, X, X)
    bundle = hesim.bundle(hesim.compile(program, PARAMS), X, X, open=1)
    np.testing.assert_allclose(run(bundle, X, X + 4), X / (X + 4), atol=1e-6)
    with pytest.raises(hesim.BundleError, match=r"args\[1\]: its reciprocal"):
        bundle.filled(bundle.arguments(X, 0 * X))


def test_what_cannot_be_plain_data_is_refused(circuit, tmp_path):
    @jax.tree_util.register_pytree_node_class
    class Odd:
        def __init__(self, x):
            self.x = x

        def tree_flatten(self):
            return (self.x,), None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls(*children)

    program = hesim.trace(lambda odd: odd.x + 1, Odd(X), encrypted=0)
    with pytest.raises(hesim.BundleError, match="argument 0 holds a Odd"):
        hesim.bundle(hesim.compile(program, PARAMS), Odd(X))
    with pytest.raises(hesim.BundleError, match="argument 0 is encrypted"):
        hesim.bundle(circuit, {"x": X, "scale": 1.0}, {"w": W}, MASK, open=0)
    with pytest.raises(hesim.BundleError, match="from 0 to 2"):
        hesim.bundle(circuit, {"x": X, "scale": 1.0}, {"w": W}, MASK, open=3)
    circuit.save(tmp_path / "c.npz")
    with pytest.raises(hesim.BundleError, match="carries no program"):
        hesim.bundle(Circuit.load(tmp_path / "c.npz"), X)


def test_a_public_value_outside_its_polynomials_domain_is_refused():
    exp = approx.fit("exp", (-1, 1), degree=3)
    program = hesim.trace(lambda x, w: x * exp(w), X, X)
    circuit = hesim.compile(program, PARAMS)
    hesim.bundle(circuit, X, X)
    with pytest.raises(hesim.BundleError, match="leave the domain"):
        hesim.bundle(circuit, X, 3 * X)
