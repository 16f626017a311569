"""Chance told from a fault: sound runs stay within their intervals, noisier ones are noticed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import approx
import hesim
from he_backend.local import run_local
from he_backend.machines.pyfhel.machine import PyfhelMachine
from he_backend.report import twin
from he_backend.report.compare import op_records
from he_backend.report.intervals import Interval, Observed, Overall, judge
from hesim.circuit.plain.execute import Spent
from hesim.noise.profiles import profile as find_profile
from hesim.predict import walked

KEYS = 32
GELU = approx.fit("gelu", (-6, 6), degree=6)


def block(x, a, b):
    """Sums of squares, a polynomial between two products, and two residual sums."""
    y = x - x.mean(-1, keepdims=True)
    y = y * (y * y).mean(-1, keepdims=True)
    z = x + GELU(y @ a) @ b
    return z + GELU(z @ a) @ b


@pytest.fixture(scope="module")
def compiled(params):
    rng = np.random.default_rng(1)
    args = rng.normal(size=(16, 8)) / 2, rng.normal(size=(8, 16)) / 4, rng.normal(size=(16, 8)) / 4
    program = hesim.trace(block, *args, encrypted=(0,))
    return program, hesim.compile(program, params), args


def observed(measured, by_key, operands, elements=256):
    """Of arrays (operations,) and (keys, operations)."""
    columns = zip(measured, by_key.T, operands, strict=True)
    return [Observed(float(m), tuple(k.tolist()), elements, tuple(o)) for m, k, o in columns]


def sound(ops, intervals: list[Interval], overall: Overall | None) -> bool:
    within = all(i.low <= op.measured <= i.high for op, i in zip(ops, intervals, strict=True))
    return within and (overall is None or overall.sound)


@pytest.fixture(scope="module")
def drawn(compiled):
    """Errors of 240 simulated keys (keys, operations), and what operations are made of."""
    program, circuit, args = compiled
    found = [hesim.certify(circuit, args, keys=60, seed=seed) for seed in range(4)]
    kept = [k for k, op in enumerate(found[0].ops) if op.by_key]
    by_key = np.array([[x for c in found for x in c.ops[k].by_key] for k in kept]).T
    made = {v.id: k for k, e in enumerate(program.ops) for v in e.outputs}
    place = {k: j for j, k in enumerate(kept)}
    operands = []
    for k in kept:
        ids = [getattr(v, "id", None) for v in program.ops[k].inputs]
        operands.append([place[made[i]] for i in ids if made.get(i) in place])
    return by_key, operands


def rounds(by_key, seed=0, each=4):
    """Some keys that predict, and one that is measured."""
    rng = np.random.default_rng(seed)
    for start in range(0, len(by_key), len(by_key) // 30):
        order = rng.permutation(len(by_key))[: KEYS + each]
        for measured in by_key[order[KEYS:]]:
            yield measured, by_key[order[:KEYS]], start


def test_a_sound_run_of_many_operations_is_called_sound(drawn):
    by_key, operands = drawn
    wrong = total = 0
    for measured, predicted, _ in rounds(by_key):
        ops = observed(measured, predicted, operands)
        wrong += not sound(ops, *judge(ops, tolerance=0.0))
        total += 1
    assert total >= 120 and wrong <= 0.03 * total


@pytest.mark.parametrize("elements", [1, 4, 100])
def test_so_is_one_of_errors_of_few_elements(elements):
    # Errors whose size depends on the key's slot: a normal of exponential variance, as under CKKS.
    rng = np.random.default_rng(elements)
    shape = (KEYS + 1, 20, elements)
    wrong = 0
    for _ in range(150):
        errors = rng.normal(size=shape) * np.sqrt(0.5 + rng.exponential(size=shape))
        stds = np.sqrt(np.mean(errors**2, axis=-1))
        ops = observed(stds[0], stds[1:], [()] * 20, elements)
        wrong += not sound(ops, *judge(ops))
    assert wrong / 150 <= 0.02


@pytest.mark.parametrize("shift", [0.4, -0.4])
def test_a_run_that_is_noisier_throughout_or_quieter_is_not(drawn, shift):
    by_key, operands = drawn
    noticed, total, said = 0, 0, []
    for measured, predicted, _ in rounds(by_key, seed=1, each=1):
        ops = observed(measured * 2.0**shift, predicted, operands)
        intervals, overall = judge(ops)
        assert overall is not None
        said.append(overall.bits)
        noticed += not sound(ops, intervals, overall)
        total += 1
    assert noticed > 0.8 * total
    assert np.mean(said) == pytest.approx(shift, abs=0.04)


def test_a_deviation_counts_where_it_arises_and_not_again(drawn):
    by_key, operands = drawn
    measured, predicted = by_key[0].copy(), by_key[1 : 1 + KEYS]
    last = len(measured) - 1
    # The last sum takes three quarters of its error from the sum before it.
    (before,) = [j for j in operands[last] if by_key[:, j].std() > 0][:1]
    ops = observed(measured, predicted, operands)
    alone = observed(measured, predicted, [()] * len(measured))
    narrow, wide = (judge(x)[0][last] for x in (ops, alone))
    assert np.log2(narrow.high / narrow.low) < 0.7 * np.log2(wide.high / wide.low)
    measured[before] *= 2.0**4
    found, _ = judge(observed(measured, predicted, operands))
    assert measured[before] > found[before].high and found[before].chance < 1e-4


def test_a_copy_has_the_error_of_what_it_copies():
    rng = np.random.default_rng(0)
    by_key = 2.0 ** rng.normal(-28.0, 0.2, (KEYS, 1)) * np.array([1.0, 0.25])
    right = observed(np.array([2.0**-28.3, 2.0**-30.3]), by_key, [(), (0,)])
    wrong = observed(np.array([2.0**-28.3, 2.0**-30.1]), by_key, [(), (0,)])
    assert sound(right, *judge(right)) and not sound(wrong, *judge(wrong))
    # It leaves nothing to chance, so that others lose nothing by it.
    assert judge(right)[0][0] == judge(right[:1])[0][0]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 12),
    st.floats(-8.0, 8.0),
    st.sampled_from([1, 3, 500]),
    st.booleans(),
)
def test_what_leaves_its_interval_has_the_chance_to_do_so(seed, operations, bits, elements, above):
    rng = np.random.default_rng(seed)
    by_key = 2.0 ** rng.normal(-28.0, 0.3, (9, operations))
    measured = 2.0 ** (-28.0 + rng.normal(0.0, 0.3, operations))
    measured[-1] *= 2.0**bits
    ops = observed(
        measured, by_key, [() if k == 0 else (k - 1,) for k in range(operations)], elements
    )
    found, overall = judge(ops, above_only=above)
    for op, interval in zip(ops, found, strict=True):
        assert (interval.low <= op.measured <= interval.high) is (interval.chance >= 0.01)
    assert (overall is None) is above


def test_the_simulator_may_be_off_by_its_tolerance():
    by_key = 2.0**-28 * (1.0 + np.random.default_rng(0).normal(0.0, 1e-4, (KEYS, 1)))
    shared = {"operands": [()], "elements": 10**8}
    (found,), _ = judge(observed(np.array([2.0**-28]), by_key, **shared), tolerance=0.25)
    assert np.log2([found.low, found.high]) + 28 == pytest.approx([-0.25, 0.25], abs=0.002)
    for bits, is_sound in ((0.2, True), (-0.2, True), (0.3, False), (-0.3, False)):
        ops = observed(np.array([2.0 ** (bits - 28)]), by_key, **shared)
        assert sound(ops, *judge(ops, tolerance=0.25)) is is_sound


def test_without_a_spread_between_keys_nothing_is_judged():
    ops = observed(np.array([1.0]), np.array([[1.0]]), [()])
    (found,), overall = judge(ops)
    assert (found.low, found.high, overall) == (0.0, np.inf, None)
    assert judge([]) == ([], None)


def test_what_is_no_number_is_far_outside(drawn):
    by_key, operands = drawn
    measured = by_key[0].copy()
    measured[3] = np.inf
    found, _ = judge(observed(measured, by_key[1:33], operands))
    assert found[3].chance == 0.0 and np.isfinite(found[3].high)


def recorded(compiled, vectors, prediction):
    program, circuit, args = compiled
    exact = twin.evaluate(program, args)
    return op_records(circuit, exact, vectors, prediction, Spent())


@pytest.fixture(scope="module")
def encrypted(compiled):
    """Decrypted results of a few runs, under a key each."""
    program, circuit, args = compiled
    exact = twin.evaluate(program, args)
    operands = circuit.publics.evaluate(program.flatten(args))
    decrypt = sorted({int(c) for tap in circuit.taps for c in tap.ciphers})
    found = []
    for _ in range(4):
        machine = PyfhelMachine.generate(circuit.params, circuit.rotation_steps, circuit.slots)
        found.append(run_local(circuit, machine, exact.inputs, operands, decrypt)[0])
    return found


@pytest.mark.parametrize("bits", [0.0, -0.5, 0.5])
def test_encrypted_runs_are_as_noisy_as_the_profile_says_and_as_no_other(compiled, encrypted, bits):
    _, circuit, args = compiled
    seal = find_profile("seal")
    variances = (seal.error_variance * 4.0**bits, seal.rounding_variance * 4.0**bits)
    named = dict(zip(("error_variance", "rounding_variance"), variances, strict=True))
    other = dataclasses.replace(seal, name="another", **named)
    prediction = walked(circuit, args, KEYS, other)
    found, sound = [], []
    for vectors in encrypted:
        ops, overall = recorded(compiled, vectors, prediction)
        assert overall is not None
        found.append(overall.bits)
        sound.append(overall.sound and not any(op.excess_bits for op in ops))
    # SEAL draws the keys: one of four runs may be the one in a hundred.
    assert np.median(found) == pytest.approx(-bits, abs=0.2)
    assert sum(one is (bits == 0.0) for one in sound) >= 3
