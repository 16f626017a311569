"""Slots near ζ = 1, where key switches with un-centred digits make most of their error."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hesim
from hesim.certify import certify
from hesim.noise import formulas
from hesim.noise.circuit import OperationNoise
from hesim.noise.dc_slots import Element, key_switch_dc_errors, places, variance
from hesim.noise.placement import of_circuit, transferred
from hesim.noise.profiles import profile
from hesim.params import CKKSParams
from hesim.predict import predict
from hesim.simulate import TIERS, simulate

SEAL = profile("seal")


def ring(first_bits: int, log_n: int = 13) -> CKKSParams:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CKKSParams(log_n, 3, 40, first_bits, 60, security=None)


NEAR = ring(60)


def centred(x):
    mean = x.mean(1, keepdims=True)
    return mean, x - mean


@pytest.fixture(scope="module")
def compiled():
    x = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    program = hesim.trace(centred, x, encrypted=(0,))
    return program, hesim.compile(program, NEAR), x


@pytest.fixture(scope="module")
def certified(compiled):
    _, circuit, x = compiled
    return certify(circuit, (x,), keys=128, seed=1)


def test_five_slots_have_almost_all_that_means_of_digits_do():
    dc_errors = key_switch_dc_errors(NEAR, 0, SEAL)
    assert len(dc_errors) == 5 and max(dc_errors, key=dc_errors.__getitem__) == 0
    whole = formulas.slot_std(formulas.key_switch(NEAR, 0, SEAL), NEAR.n, SEAL) ** 2
    rounding = formulas.slot_std(formulas.rescale(SEAL), NEAR.n, SEAL) ** 2
    digits = (whole - rounding) * NEAR.slots
    assert 0.95 * 0.75 < sum(dc_errors.values()) / digits < 0.75


@pytest.mark.parametrize("log_n", [13, 14, 15])
def test_none_where_the_special_prime_is_far_larger(log_n):
    assert key_switch_dc_errors(ring(50, log_n), 1, SEAL) == {}


def test_none_in_a_library_with_centred_digits():
    assert key_switch_dc_errors(NEAR, 0, dataclasses.replace(SEAL, centred_digits=True)) == {}


def test_elements_of_a_larger_and_of_a_smaller_batch():
    two = [Element(4, 1, 0, 0), Element(4, 1, 5, 7)]
    held, found = places(two, (2, 8, 3))
    assert held.all() and [np.unravel_index(k, (2, 8, 3)) for k in found] == [(0, 0, 0), (1, 7, 2)]
    held, found = places(two, (2, 4, 3))
    assert held.tolist() == [True, False] and found.tolist() == [0]
    assert places([Element(4, -1, 3, 0)], (4,))[1].tolist() == [3]
    assert places([Element(4, -1, 0, 0)], ())[1].tolist() == [0]


def test_flat_part_and_dc_errors_are_the_whole_of_a_key_switch(compiled):
    _, circuit, _ = compiled
    facts = OperationNoise(circuit, SEAL)
    first = next(iter(facts.dc_errors))
    params = circuit.params
    level, scale = int(circuit.level[first]), float(circuit.scale[first])
    whole = formulas.slot_std(formulas.key_switch(params, level, SEAL), params.n, SEAL) / scale
    dc_errors = sum(variance(errors) for errors in facts.dc_errors[first].values())
    found = facts.variance[first] + dc_errors / params.slots
    assert found == pytest.approx(whole**2, rel=1e-9)


@pytest.mark.parametrize("tier", TIERS)
def test_sums_that_are_read_near_slot_0_and_what_is_made_of_copies(compiled, certified, tier):
    """Without DC errors the sum is predicted 0.9 bit too low; with those of the one copy that is
    read in all copies, the difference is 0.7 bit too high.
    """
    program, circuit, x = compiled
    schedule = of_circuit(program, circuit)
    simulated = predict(program, NEAR, (x,), keys=96, schedule=schedule, tier=tier)
    names = [e.name for e in program.ops]
    for name in ("reduce_sum", "sub"):
        k = names.index(name)
        assert abs(np.log2(simulated.ops[k].std / certified.ops[k].std)) < 0.3


def test_they_are_in_what_a_simulation_returns_under_jit_grad_and_vmap(compiled):
    program, circuit, x = compiled
    with jax.enable_x64(True):
        wide = jnp.asarray(x, jnp.float64)
        run = jax.jit(simulate(centred, NEAR, circuit=circuit))
        keys = jax.random.split(jax.random.key(0), 64)
        means, rest = jax.vmap(run, (0, None))(keys, wide)
        squares = np.mean(
            (np.asarray(means) - np.asarray(wide.mean(1, keepdims=True))) ** 2, (0, 2)
        )
        assert squares[0] > 20 * np.median(squares)  # the first row is read in slot 0
        spread = np.mean((np.asarray(rest) - np.asarray(centred(wide)[1])) ** 2, (0, 2))
        assert spread[0] < 4 * np.median(spread)  # its copies are not
        slope = jax.grad(lambda v: run(keys[0], v)[0].sum())(wide)
        np.testing.assert_allclose(slope, np.full(x.shape, 1 / 16), rtol=1e-6)


def test_one_key_errs_alike_in_all_its_uses():
    """x rotated twice by one step, over two ciphertexts: amplitudes add, and cancel in x - x."""
    x = np.zeros((64, 16), np.float32)

    def fn(x, y):
        return x.sum(1) + y.sum(1), x.sum(1) - y.sum(1)

    program = hesim.trace(fn, x, x, encrypted=(0, 1))
    circuit = hesim.compile(program, NEAR)
    certified = certify(circuit, (x, x), keys=128, seed=2)
    assert certified.outputs[0].std > 8 * certified.outputs[1].std  # pyright: ignore[reportOptionalMemberAccess]
    found = predict(
        program, NEAR, (x, x), keys=64, schedule=of_circuit(program, circuit), tier="train"
    )
    assert abs(np.log2(found.ops[2].std / certified.ops[2].std)) < 0.4


def test_of_a_single_number():
    x = np.zeros((64, 16), np.float32)
    program = hesim.trace(jnp.sum, x, encrypted=(0,))
    circuit = hesim.compile(program, NEAR)
    certified = certify(circuit, (x,), keys=96, seed=3)
    found = predict(
        program, NEAR, (x,), keys=96, schedule=of_circuit(program, circuit), tier="train"
    )
    assert abs(np.log2(found.ops[-1].std / certified.ops[-1].std)) < 0.4


def test_of_another_batch(compiled):
    program, circuit, x = compiled
    schedule = of_circuit(program, circuit)
    other = hesim.trace(centred, x[:8], encrypted=(0,))
    moved = transferred(schedule, program, other)
    assert any(place.dc_errors for place in moved.values())
    found = predict(other, NEAR, (x[:8],), keys=2, schedule=moved, tier="train")
    assert all(op.std > 0 for op in found.ops)
