"""Lock-step comparison: intervals from the spread of keys; planted faults are named."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import he_backend
import hesim
from he_backend.intervals import interval
from he_backend.machines.slots import SlotsMachine

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
    _is_named(report, "mul", line=20, bits=3)
    page = report.to_html(tmp_path / "report.html").read_text()
    assert "class=warning" in page and "first outside" in page
    (axes,) = report.plot().axes
    assert "mul" in axes.get_title()


def test_a_wrong_public_operand_is_named_in_an_encrypted_run(traced):
    program, circuit, x = traced
    # All plaintexts of the weights are encoded 2^-20 of themselves too large.
    used = {int(circuit.plain_pack[0])}
    packs = tuple(
        dataclasses.replace(pack, gain=pack.gain * (1 + 2.0**-20)) if k in used else pack
        for k, pack in enumerate(circuit.packs)
    )
    wrong = dataclasses.replace(circuit, packs=packs)
    report = he_backend.run(program, x, circuit=wrong, compare=True)
    _is_named(report, "dot_general", line=19, bits=3)
    sound = he_backend.run(program, x, circuit=circuit, compare=True)
    assert sound.first_unpredicted is None, sound.verdict()


def _is_named(report, name, line, bits):
    found = report.first_unpredicted
    assert found is not None and found.name == name
    assert f"test_compare.py:{line}" in found.source
    assert found.excess_bits > bits
    assert f"`{name}`" in report.verdict() and f"{found.excess_bits:.2f} bits above" in str(report)
