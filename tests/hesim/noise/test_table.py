"""A few rows of `python -m benchmarks noise`, in a small ring: predicted against encrypted."""

import csv
import math

import numpy as np
import pytest

pytest.importorskip("Pyfhel")

from benchmarks.noise import cases as noise_cases
from benchmarks.noise import table as noise
from benchmarks.noise.measure import Ring, histogram, parameters, quantile

pytestmark = pytest.mark.filterwarnings("ignore::hesim.params.InsecureParametersWarning")
CASES = ("instructions", "squarings", "polynomial 7", "public matmul", "encrypted matmul", "sum")


@pytest.mark.parametrize("first_bits", [60, 50])
def test_every_row_is_predicted_from_the_key(first_bits):
    params = parameters(12, first_bits, 5)
    cases = {"uniform": noise_cases.build(params, "uniform", CASES)}
    ring = Ring(params, cases)
    runs = [ring.measure() for _ in range(4)]
    assert len(runs[0]) > 20
    for row in runs[0]:
        measured, predicted = (
            0.5 * math.log2(np.mean([getattr(run[row], name) for run in runs]))
            for name in ("mean_square", "predicted")
        )
        # Five standard errors of a std of so many heavy-tailed numbers.
        elements = sum(int(run[row].counts.sum()) for run in runs)
        assert predicted == pytest.approx(measured, abs=max(0.15, 5 / math.sqrt(elements))), row


def test_a_run_resumes_and_saves_its_table(tmp_path, monkeypatch):
    monkeypatch.setattr(noise, "_NUMBERS", 1 << 14)
    options = {
        "rings": [11],
        "first_bits": [50],
        "distributions": ["constant"],
        "keys": 2,
        "most": 2,
    }
    options |= {"cases": ["instructions"], "levels": 3}
    noise.main(str(tmp_path), **options)
    table = (tmp_path / "noise.csv").read_text()
    monkeypatch.setattr(Ring, "measure", lambda self: pytest.fail("measured again"))
    noise.main(str(tmp_path), **options)
    assert (tmp_path / "noise.csv").read_text() == table
    rows = list(csv.DictReader(table.splitlines()))
    assert {"encode", "encrypt", "rotate -1", "level drop"} <= {row["row"] for row in rows}


def test_quantiles_come_from_histograms():
    errors = np.random.default_rng(0).normal(size=200_000) * 1e-9
    expected = math.log2(np.quantile(np.abs(errors), 0.999))
    counts = histogram(errors[:90_000]) + histogram(errors[90_000:])
    assert quantile(counts, 0.999) == pytest.approx(expected, abs=0.03)
    assert histogram(np.zeros(3))[0] == 3


def test_cases_with_uncertain_quantiles_are_measured_under_more_keys(tmp_path, monkeypatch):
    monkeypatch.setattr(noise, "_NUMBERS", 1 << 14)
    monkeypatch.setattr(noise, "_UNSETTLED", 0.01)  # two random keys are hardly that sure
    options = {"rings": [11], "first_bits": [60], "distributions": ["constant"], "levels": 2}
    noise.main(str(tmp_path), keys=2, most=4, cases=["public matmul", "sum"], **options)
    rows = list(csv.DictReader((tmp_path / "noise.csv").open()))
    keys = {row["row"]: int(row["keys"]) for row in rows}
    assert keys["sum"] == 4
    for row in rows:
        unsettled = float(row["q999_error"]) > 0.01
        assert not unsettled or int(row["keys"]) == 4
        # Standard errors excuse a std, never a quantile.
        assert row["passes"] == "False" or abs(float(row["q999_off"])) <= 0.3
