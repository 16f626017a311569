"""DC errors of operands moved before a product: the other factor's values in those slots."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import hesim
from he_backend.local import run_local
from he_backend.machines.slots import SlotsMachine
from hesim.certify import certify
from hesim.circuit.circuit import Kind
from hesim.noise.circuit import OperationNoise
from hesim.noise.dc_products import SlotValues
from hesim.noise.dc_slots import ALONE, places
from hesim.noise.placement import of_circuit, transferred
from hesim.noise.profiles import profile
from hesim.params import CKKSParams
from hesim.predict import predict
from hesim.simulate import TIERS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    PARAMS = CKKSParams(13, 3, 40, 60, 60, security=None)


def distances(x, y):
    """2·x·y² - |y²|² for all pairs: the same keys move y² in the product and its norm after."""
    y = y * y
    return 2 * jnp.einsum("bid,bjd->bij", x, y) - (y * y).sum(-1)[:, None, :]


@pytest.fixture(scope="module")
def compiled():
    rng = np.random.default_rng(0)
    args = tuple(rng.normal(size=(32, 4, 8)).astype(np.float32) for _ in range(2))
    program = hesim.trace(distances, *args, encrypted=(0, 1))
    return program, hesim.compile(program, PARAMS), args


def values(circuit) -> SlotValues:
    return OperationNoise(circuit, profile("seal"))._values


def factors(circuit) -> list[int]:
    """Ciphertexts that meet another in a product."""
    dots = [circuit.args(i) for i in np.flatnonzero(circuit.kind == Kind.DOT)]
    return sorted({int(c) for part in dots for c in (*circuit.arg[part], *circuit.arg2[part])})


def test_slots_of_moved_factors_are_sums_of_elements(compiled):
    program, circuit, args = compiled
    tensors = {-1: args[0], -2: args[1], 0: args[1].astype(np.float64) ** 2}
    machine = SlotsMachine(PARAMS, circuit.slots, circuit.rotation_steps)
    operands = circuit.publics.evaluate(program.flatten(args))
    decrypt = factors(circuit)
    vectors, _ = run_local(
        circuit, machine, [a.astype(np.float64) for a in args], operands, decrypt
    )
    found, met = values(circuit), set()
    for cipher in decrypt:
        for slot in (0, 1, 2, 33, 100, circuit.slots - 1):
            terms = found.at(cipher, slot)
            assert terms is not None
            total = 0.0
            for factor, weight in terms.items():
                element, ratio = found.element(factor)
                _, (place,) = places([element], tensors[element.tensor].shape)
                total += weight * ratio * float(tensors[element.tensor].flat[place])
                met.add((element.tensor, circuit.kind[cipher] == Kind.INPUT))
            assert total == pytest.approx(vectors[cipher][slot], rel=1e-5, abs=1e-9)
    assert {(-1, True), (-2, True), (0, False)} <= met  # inputs, and a result that is moved


def test_slots_that_public_tensors_are_in_are_not_followed():
    x, w = np.zeros((32, 8), np.float32), np.zeros((8, 8), np.float32)
    circuit = hesim.compile(hesim.trace(lambda x, w: x @ w, x, w, encrypted=(0,)), PARAMS)
    product = int(np.flatnonzero(circuit.kind == Kind.DOT_PLAIN)[0])
    found = values(circuit)
    assert found.at(product, 0) is None
    errors = {0: {((5, 0), ALONE): 1.0, ((5, 0), (0, 0)): 7.0}}
    assert found.product(errors, product) == ({}, {0: {((5, 0), ALONE): 1.0}})


def test_errors_are_multiplied_by_what_lies_in_their_slot(compiled):
    _, circuit, _ = compiled
    found = values(circuit)
    moved = next(c for c in factors(circuit) if circuit.kind[c] == Kind.ROTATE)
    (term,) = (found.at(moved, 3) or {}).items()
    met, rest = found.product({3: {((5, 3), ALONE): 2.0}}, moved)
    assert rest == {} and met == {3: {((5, 3), term[0]): pytest.approx(2.0 * term[1])}}


@pytest.mark.parametrize("tier", TIERS)
def test_errors_of_a_product_and_a_sum_by_one_key_meet(compiled, tier):
    """With independent ones, spread over all elements, the difference is 0.66 bit too low."""
    program, circuit, args = compiled
    certified = certify(circuit, args, keys=96, seed=1)
    schedule = of_circuit(program, circuit)
    assert any(place.dc_errors and place.dc_errors.products for place in schedule.values())
    found = predict(program, PARAMS, args, keys=48, schedule=schedule, tier=tier)
    for k, name in enumerate(e.name for e in program.ops):
        if name in ("dot_general", "reduce_sum", "sub"):
            assert abs(np.log2(found.ops[k].std / certified.ops[k].std)) < 0.35, name


def test_of_a_smaller_batch(compiled):
    """Errors in the slots of the members that are left stay."""
    program, circuit, args = compiled
    schedule = of_circuit(program, circuit)
    args = tuple(a[:2] for a in args)
    other = hesim.trace(distances, *args, encrypted=(0, 1))
    moved = transferred(schedule, program, other)
    found = predict(other, PARAMS, args, keys=8, schedule=moved, tier="train")
    whole = predict(program, PARAMS, compiled[2], keys=8, schedule=schedule, tier="train")
    k = [e.name for e in program.ops].index("dot_general")
    assert found.ops[k].std > 2 * whole.ops[k].std  # the first members are those near slot 0
