"""Circuits whose operations share operands: the same errors meet again in other places."""

import dataclasses
import math

import jax
import numpy as np
import pytest

import hesim
from benchmarks.shared_cases import random_case
from benchmarks.shared_errors import Line
from hesim.noise.circuit import OperationNoise
from hesim.noise.columns import Columns
from hesim.noise.placement import CircuitSchedule, of_circuit
from hesim.noise.pools import Draws
from hesim.noise.profiles import profile
from hesim.noise.slot_errors import SlotErrors, summed
from hesim.params import CKKSParams
from hesim.simulate import TIERS, simulate_program

pytestmark = pytest.mark.filterwarnings("ignore::hesim.params.InsecureParametersWarning")

PARAMS = CKKSParams(13, 3, 32, 50, 60)
X = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)


def off(fn, x, tier, keys=16, **options):
    """log2 of the predicted over the certified std of the last operation."""
    program = hesim.trace(fn, x)
    circuit = hesim.compile(program, PARAMS)
    certified = hesim.certify(circuit, (x,), keys=keys).ops[-1].std
    schedule = of_circuit(program, circuit)
    found = hesim.predict(
        program, PARAMS, (x,), keys, schedule=schedule, tier=tier, jit=False, **options
    )
    return math.log2(found.ops[-1].std / certified)


SHARED = {
    "centred squares": lambda x: ((x - x.mean(-1, keepdims=True)) ** 2).mean(-1) * 3,
    "products with the reverse": lambda x: (x * x[::-1]).sum(-1),
    "a mean times its row": lambda x: (x * x.mean(-1, keepdims=True)).sum(-1),
}


@pytest.mark.parametrize("name", SHARED)
def test_tensors_simulated_by_themselves_follow_copies_and_masks(name):
    for tier in TIERS:
        assert abs(off(SHARED[name], X, tier, walk=False)) < 0.25


def test_a_prediction_with_a_circuit_is_its_walk():
    """A sum of what was centred by a sum across the end of the effective slots: no tensor tells
    that the copies of the mean are sums of other slots' errors.
    """
    x = X[:16, :16]

    def fn(x):
        y = x * x
        return (y - y.mean(0)).sum(0)

    assert abs(off(fn, x, "predict", keys=32)) < 0.1
    program = hesim.trace(fn, x)
    schedule = of_circuit(program, hesim.compile(program, PARAMS))
    assert isinstance(schedule, CircuitSchedule) and schedule.program is program
    walked = hesim.predict(program, PARAMS, (x,), 2, schedule=schedule, jit=False)
    plain = hesim.predict(program, PARAMS, (x,), 2, schedule=dict(schedule), jit=False)
    assert walked.ops[-1].std != plain.ops[-1].std
    assert walked.ops[-1].spare_bits == plain.ops[-1].spare_bits
    assert len(walked.ops[-1].by_key) == 2
    np.testing.assert_array_equal(walked.outputs, plain.outputs)


@pytest.mark.parametrize("seed", [5, 11])
def test_random_circuits_agree_with_their_certificates(seed):
    case = random_case(seed)
    circuit = hesim.compile(case.program, PARAMS)
    certified = hesim.certify(circuit, case.args, keys=16).ops[-1]
    schedule = of_circuit(case.program, circuit)
    for tier, limit in (("predict", 0.15), ("train", 0.3)):
        found = hesim.predict(
            case.program, PARAMS, case.args, 16, schedule=schedule, tier=tier, jit=False, seed=7
        )
        assert abs(math.log2(found.ops[-1].std / certified.std)) < limit


@pytest.mark.slow
def test_products_of_random_circuits_stay_below_the_modulus():
    """Number 30 draws a product that would wrap around, and takes another step instead."""
    case = random_case(30)
    certified = hesim.certify(hesim.compile(case.program, PARAMS), case.args, keys=1)
    assert min(certified.spare_bits.values()) > 1.0


def test_a_line_is_off_beyond_its_limit_and_chance():
    line = Line(0, 5, 1, 8, -20.0, 0.05, 0.16, 0.34, 0.0, 0.01)
    assert not line.off("certify") and not line.off("predict") and not line.off("training")
    assert dataclasses.replace(line, certify=0.17).off("certify")
    assert dataclasses.replace(line, predict=-0.35).off("predict")


def test_errors_of_masked_columns_stay_where_they_are():
    """Each of two masks keeps half of the columns: their sum has one error in each."""
    noisy = SlotErrors().plus(1.0, 1.0)
    left = np.array([1.0, 1.0, 0.0, 0.0])
    halves = [noisy.times(left), noisy.times(1.0 - left)]
    total = summed(halves, np.ones(2), doubled=False)
    np.testing.assert_array_equal(total.variance, np.ones(4))
    assert total.copies(np.ones(4, bool), 4) == 1.0


def test_copies_by_doubling_share_what_came_before_them():
    one = SlotErrors().plus(1.0, 1.0).times(np.array([1.0, 0.0, 0.0, 0.0]))
    spread = one
    for step in (1, 2):
        spread = summed([spread, spread.rotated(-step)], np.ones(2), doubled=True)
    np.testing.assert_array_equal(spread.variance, np.ones(4))
    every = np.ones(4, bool)
    assert spread.copies(every, 1) == 4.0
    # All four copies have the one error: what they have in common is all of it.
    assert np.mean(spread.total) / 4.0 == 1.0


def test_columns_that_are_needed_are_those_that_masks_and_readings_leave():
    program = hesim.trace(lambda x: (x - x.mean(-1, keepdims=True))[:, :4], X)
    circuit = hesim.compile(program, PARAMS)
    columns = Columns(circuit)
    mean = next(tap for tap in circuit.taps if circuit.op_names[tap.op] == "reduce_sum")
    (cipher,) = mean.ciphers
    assert columns.read[int(cipher)].sum() == 1 and columns.needed[int(cipher)].sum() >= 4
    facts = OperationNoise(circuit, profile("seal"))
    assert facts.result(mean).copies == columns.needed[int(cipher)].sum()


@pytest.mark.parametrize("seed", [7, 11])
def test_training_draws_at_most_once_a_tensor(seed, monkeypatch):
    """Copies, refreshes and lowered operands included."""
    case = random_case(seed)
    schedule = of_circuit(case.program, hesim.compile(case.program, PARAMS))
    drawn = []
    normal = Draws._normal
    monkeypatch.setattr(Draws, "_normal", lambda self, n: drawn.append(n) or normal(self, n))
    flat = [np.asarray(leaf) for leaf in case.program.flatten(case.args)]
    simulate_program(case.program, PARAMS, jax.random.key(0), flat, schedule=schedule, tier="train")
    assert 0 < len(drawn) <= len(case.program.ops) + len(case.program.inputs)
