"""Results: checks that fail when they should, and figures against their definitions."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from experiments.validation.folder import RunFolder
from experiments.validation.results import LOGIT_ERROR, Results, bits
from experiments.validation.table import groups, render, ways
from he_backend.report.html import power_of_two

Finished = tuple[Results, RunFolder, str]


@pytest.fixture
def results(finished: Finished) -> Results:
    """Results whose logits are set by hand: margins of 1, but for the last sentence's 2^-11."""
    reference = np.tile([1.0, 0.0], (12, 1))
    reference[-1] = [2.0**-11, 0.0]
    return dataclasses.replace(
        finished[0], reference=reference, simulated=reference, encrypted=reference.copy()
    )


def test_a_clear_label_that_differs_breaks_the_guarantee(results: Results) -> None:
    assert results.broken == []
    results.encrypted[3] = [0.0, 1.0]
    broken = dataclasses.replace(results).broken
    assert len(broken) == 2
    assert broken[0].detail == "10 of 11 equal"


def test_a_label_within_the_margin_may_differ(results: Results) -> None:
    results.encrypted[-1] = [0.0, 2.0**-13]
    again = dataclasses.replace(results)
    assert again.agreement == 11 / 12
    assert again.checks[0].passed


@pytest.mark.parametrize(("error", "kept"), [(0.99 * LOGIT_ERROR, True), (2**-11.9, False)])
def test_the_limit_of_the_logit_error(results: Results, error: float, kept: bool) -> None:
    results.encrypted[5, 0] += error
    assert (dataclasses.replace(results).broken == []) is kept


def test_nan_breaks_the_guarantee(results: Results) -> None:
    results.encrypted[0, 0] = np.nan
    assert dataclasses.replace(results).broken


def test_scores_are_those_of_the_labels(results: Results) -> None:
    share = float(np.mean(results.labels[:12] == 0))
    assert results.score(results.encrypted) == pytest.approx(share)
    assert [way.score for way in ways(results)][1:] == [f"{share:.1%}"] * 3


def test_a_run_on_plain_vectors_is_never_called_encrypted(results: Results) -> None:
    assert "nothing encrypted" in ways(results)[3].name
    encrypted = dataclasses.replace(
        results, batches=[{**b, "encrypted": True} for b in results.batches]
    )
    assert ways(encrypted)[3].name.endswith("encrypted")
    assert len(encrypted.checks) == len(results.checks) + 2


def test_batches_are_as_predicted_but_for_one_in_a_hundred(results: Results) -> None:
    verdicts: dict[bool | None, str] = {True: "all within", False: "first outside"}

    def check(*sound: bool | None) -> list[tuple[bool, str]]:
        told = [{"encrypted": True, "as_predicted": s, "verdict": verdicts.get(s)} for s in sound]
        batches = [{**results.batches[0], **batch} for batch in told]
        found = dataclasses.replace(results, batches=batches).checks
        return [(c.passed, c.detail) for c in found if c.name.startswith("errors of all")]

    assert check(True) == [(True, "all within")]
    assert check(False) == [(False, "first outside")]
    counted = "14 of 15 batches; the first other one: first outside"
    assert check(*[True] * 14, False) == [(True, counted)]  # a chance of 14 %
    assert not check(*[True] * 13, False, False)[0][0]  # of 1 %
    assert check(None) == []


def test_the_table_counts_all_batches(results: Results) -> None:
    ledger = results.plan["ledger"]
    rows = {row.label: row.value for _, group in groups(results) for row in group}
    assert rows["refreshed ciphertexts"] == f"{2 * ledger['refreshes']:,}"
    assert rows["ring"] == "N = 2^13, 3 levels"


def test_the_mean_over_seeds_is_told(results: Results) -> None:
    seeds = [{"seed": k, "exact": 0.5 + k / 4, "polynomial": 0.5} for k in range(3)]
    title, rows = groups(dataclasses.replace(results, seeds=seeds))[0]
    assert (title, rows[0].value) == ("Models in the clear", "75.0%")
    assert "50.0% with polynomials" in rows[0].note


def test_the_terminal_table_shows_every_row_and_check(results: Results) -> None:
    from rich.console import Console

    console = Console(width=118)
    with console.capture() as shown:
        console.print(render(results))
    text = shown.get()
    for _, group in groups(results):
        for row in group:
            assert row.label in text
    assert text.count("✓") == len(results.checks)


def test_the_summary_is_json(finished: Finished) -> None:
    summary = json.loads((finished[1].path / "results.json").read_text())
    assert summary["sentences"] == 12
    assert set(summary["scores"]) == {"exact", "polynomial", "simulated", "plain vectors"}
    assert summary["checks"][0]["passed"]


def test_bits() -> None:
    assert bits(2.0**-20) == 20
    assert bits(0.0) == math.inf
    assert power_of_two(2.0**-12) == "2^-12"
    assert power_of_two(3 * 2.0**-13) == "2^-11.4"


def test_a_ratio_is_measured_over_predicted(results: Results) -> None:
    ops = [dataclasses.replace(op, measured_std=3.0, predicted_std=2.0) for op in results.ops]
    batches = [{**b, "encrypted": True} for b in results.batches]
    encrypted = results.reference + 3.0
    found = dataclasses.replace(results, ops=tuple(ops), batches=batches, encrypted=encrypted)
    assert found.ops[0].ratio == found.ratio == pytest.approx(1.5)
    assert {row.label: row.value for _, g in groups(found) for row in g}[
        "measured over predicted"
    ] == "1.50"
    assert found.checks[-1].detail == "measured over predicted: 1.50"
