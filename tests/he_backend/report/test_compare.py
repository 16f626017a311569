"""Lock-step comparison of runs: planted faults are named, sound runs are called sound."""

from __future__ import annotations

import dataclasses
import importlib

import numpy as np
import pytest

import he_backend
import hesim
from he_backend.machines.slots import SlotsMachine
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
    assert sound.as_predicted, sound.verdict()
    assert sound.key_seconds > 0.0
    assert sound.seconds == pytest.approx(sound.key_seconds + sound.evaluation_seconds)


def _is_named(report, name, line, bits):
    found = report.first_unpredicted
    assert found is not None and found.name == name
    assert f"test_compare.py:{fn.__code__.co_firstlineno + line}" in found.source
    assert found.excess_bits > bits
    assert f"`{name}`" in report.verdict() and f"{found.excess_bits:.2f} bits above" in str(report)


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
