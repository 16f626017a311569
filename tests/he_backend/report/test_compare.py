"""Lock-step comparison: intervals from the spread of keys; planted faults are named."""

from __future__ import annotations

import dataclasses
import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import he_backend
import hesim
from he_backend.machines.slots import SlotsMachine
from he_backend.report.intervals import chance, interval
from he_backend.report.verdict import verdict

W = np.random.default_rng(0).normal(size=(6, 6)) / 2


def fn(x):
    y = x @ W
    z = y * y
    return z - 0.5 * x


@pytest.fixture(scope="module")
def traced(params):
    x = np.random.default_rng(1).uniform(-1, 1, (32, 6))
    program = hesim.trace(fn, x)
    return program, hesim.compile(program, params), x


def test_an_interval_holds_the_next_key_as_often_as_it_says():
    rng = np.random.default_rng(0)
    stds = 2.0 ** rng.normal(-28.0, 0.2, (4000, 9))
    inside = 0
    for row in stds:
        low, high = interval(row[:8].tolist(), 1.0, 1, confidence=0.9)
        inside += low <= row[8] <= high
    assert inside / len(stds) == pytest.approx(0.9, abs=0.02)


def test_an_interval_is_wider_for_a_sample_and_for_more_operations():
    by_key = [1.0, 1.1, 0.9, 1.05]

    def width(*args):
        low, high = interval(by_key, *args)
        return np.log2(high / low)

    assert width(0.25, 1) == pytest.approx(2 * width(1.0, 1))
    assert width(1.0, 20) > width(1.0, 1)
    assert interval([1.0], 1.0, 1) == (0.0, np.inf)
    assert interval([1.0, 0.0], 1.0, 1) == (0.0, np.inf)


def test_a_sound_machine_is_within_its_intervals(traced):
    program, circuit, x = traced
    report = he_backend.run(program, x, circuit=circuit, backend="slots", compare=True)
    assert report.first_unpredicted is None
    assert "within their prediction intervals" in report.verdict()
    assert report.verdict() in str(report)


def test_a_wrong_product_kernel_is_named(traced, monkeypatch, tmp_path):
    program, circuit, x = traced
    right = SlotsMachine.dot

    def wrong(self, left, right_, factors):
        found = right(self, left, right_, factors)
        return dataclasses.replace(found, values=found.values * (1 + 2.0**-20))

    monkeypatch.setattr(SlotsMachine, "dot", wrong)
    report = he_backend.run(program, x, circuit=circuit, backend="slots", compare=True)
    _is_named(report, "mul", line=2, bits=3)
    page = report.to_html(tmp_path / "report.html").read_text()
    assert "class=warning" in page and "first outside" in page
    (axes,) = report.plot().axes
    assert "mul" in axes.get_title()


def test_a_wrong_public_operand_is_named_in_an_encrypted_run(traced):
    program, circuit, x = traced
    # All plaintexts of the weights are encoded 2^-20 of themselves too large.
    used = {int(circuit.plain_pack[0])}
    packs = tuple(
        dataclasses.replace(pack, weight=pack.weight * (1 + 2.0**-20)) if k in used else pack
        for k, pack in enumerate(circuit.packs)
    )
    wrong = dataclasses.replace(circuit, packs=packs)
    report = he_backend.run(program, x, circuit=wrong, compare=True)
    _is_named(report, "dot_general", line=1, bits=3)
    sound = he_backend.run(program, x, circuit=circuit, compare=True)
    assert sound.first_unpredicted is None, sound.verdict()


def _is_named(report, name, line, bits):
    found = report.first_unpredicted
    assert found is not None and found.name == name
    assert f"test_compare.py:{fn.__code__.co_firstlineno + line}" in found.source
    assert found.excess_bits > bits
    assert f"`{name}`" in report.verdict() and f"{found.excess_bits:.2f} bits above" in str(report)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 40),
    st.floats(-12.0, 12.0),
    st.sampled_from([1, 3, 500]),
    st.floats(0.05, 1.0),
)
def test_what_leaves_its_interval_has_the_chance_to_do_so(seed, operations, bits, elements, part):
    by_key = (2.0 ** np.random.default_rng(seed).normal(-28.0, 0.3, 6)).tolist()
    measured = 2.0 ** (-28.0 + bits)
    shared = {"elements": elements, "tolerance": 0.25}
    low, high = interval(by_key, part, operations, 0.99, **shared)
    found = chance(measured, by_key, part, operations, **shared)
    assert (low <= measured <= high) is (found >= 0.01)
    one_sided = chance(measured, by_key, part, operations, **shared, above_only=True)
    assert (measured <= high) is (one_sided >= 0.01)


@pytest.mark.parametrize("elements", [1, 4, 100])
def test_a_sound_run_of_many_operations_is_rarely_called_unsound(elements):
    # Independent normal errors, under nine keys each: eight predict, one is measured.
    rng = np.random.default_rng(elements)
    errors = rng.normal(size=(150, 20, 9, elements)) * 2.0 ** rng.normal(0, 0.1, (150, 20, 9, 1))
    stds = np.sqrt(np.mean(errors**2, axis=-1))
    wrong = 0
    for run in stds:
        ends = [interval(op[:8].tolist(), 1.0, 20, elements=elements) for op in run]
        wrong += any(not low <= op[8] <= high for (low, high), op in zip(ends, run, strict=True))
    assert wrong / len(stds) <= 0.02


def test_the_simulator_may_be_off_by_its_tolerance():
    by_key = [1.0, 1.0 + 1e-4, 1.0 - 1e-4, 1.0]
    low, high = interval(by_key, 1.0, 10, elements=10**6, tolerance=0.25)
    assert np.log2([low, high]) == pytest.approx([-0.25, 0.25], abs=0.02)
    assert chance(2.0**0.2, by_key, 1.0, 10, elements=10**6) == 1.0
    assert chance(2.0**0.4, by_key, 1.0, 10, elements=10**6) < 1e-3
    assert interval([0.0, 1.0, 1.1, 0.9], 1.0, 10)[0] == 0.0


def test_an_error_where_none_is_predicted_is_a_fault(params, monkeypatch):
    # As if nobody knew of the encryption of zero in a sum whose ciphertexts cancel.
    for module, law in (("noise.placement", "hiding_variances"), ("certify", "hiding_noise")):
        monkeypatch.setattr(importlib.import_module(f"hesim.{module}"), law, lambda *_: {})
    x = np.random.default_rng(1).uniform(-1, 1, 8)
    program = hesim.trace(lambda x: (x - x, x * x), x)
    circuit = hesim.compile(program, params)
    sound = he_backend.run(program, x, circuit=circuit, backend="slots", compare=True)
    assert sound.ops[0].predicted_std == 0.0 and sound.first_unpredicted is None
    assert "2 of 2 operations judged" in sound.verdict()
    right = SlotsMachine.add

    def wrong(self, *args):
        found = right(self, *args)
        return dataclasses.replace(found, values=found.values + 1e-3)

    monkeypatch.setattr(SlotsMachine, "add", wrong)
    report = he_backend.run(program, x, circuit=circuit, backend="slots", compare=True)
    found = report.first_unpredicted
    assert found is not None and found is report.ops[0]
    assert found.measured_std == pytest.approx(1e-3)
    assert "predicted was no error at all" in report.verdict()
    assert found.chance == 0.0 and "below 0.01 %" in report.verdict()


def test_an_exact_zero_may_be_held_encrypted(params):
    x = np.random.default_rng(1).uniform(-1, 1, 8)
    program = hesim.trace(lambda x: ((x - x) * 1000.0) * x, x)
    report = he_backend.run(program, x, params=params, compare=True)
    assert report.first_unpredicted is None, report.verdict()
    assert report.ops[1].measured_std > 0.0 and report.ops[1].predicted_std > 0.0
    assert "all within their prediction intervals" in report.verdict()


def test_the_verdict_says_how_much_it_judged(traced):
    program, circuit, x = traced
    report = he_backend.run(program, x, circuit=circuit, backend="slots", compare=True, keys=1)
    count = len(report.ops)
    assert report.verdict() == (
        f"none of {count} operations could be judged; not judged: {count} without a spread between "
        "keys (compare with keys=2 or more)"
    )
    assert "first outside" not in report.verdict() and not any(op.judged for op in report.ops)


def test_what_is_computed_with_a_later_operation_is_counted_as_not_judged(params):
    x = np.random.default_rng(1).uniform(-1, 1, (4, 8))
    program = hesim.trace(lambda x: (x * x).sum(-1), x)
    report = he_backend.run(program, x, params=params, backend="slots", compare=True)
    assert [op.judged for op in report.ops] == [False, True]
    assert report.verdict().startswith("1 of 2 operations judged, all within")
    assert report.verdict().endswith("not judged: 1 computed together with a later operation")


def test_results_of_which_a_part_was_decrypted_are_counted(params):
    x = np.random.default_rng(1).uniform(-1, 1, (params.slots, 6))
    program = hesim.trace(lambda x: x * x, x)
    report = he_backend.run(program, x, params=params, backend="slots", compare=True)
    assert (report.ops[0].elements, report.ops[0].size) == (x.size, x.size)
    assert "by a part" not in report.verdict()
    record = dataclasses.replace(report.ops[0], elements=7)
    assert "(1 by a part of their elements)" in verdict([record])


def test_values_that_are_no_numbers_are_far_outside(traced, monkeypatch):
    program, circuit, x = traced
    report = he_backend.run(program, x, circuit=circuit, backend="slots", compare=True)
    lost = dataclasses.replace(report.ops[1], measured_std=np.inf)
    assert lost.judged and lost.excess_bits == np.inf
    assert "inf bits above" in verdict([lost])
    assert chance(np.inf, [1.0, 1.1], 1.0, 3, elements=4) == 0.0
