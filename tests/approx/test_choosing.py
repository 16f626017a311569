"""approx.choose and approx.report: the front is one, requests are met, damage is found."""

import math

import numpy as np
import pytest

import approx
from approx.errors import ApproxError, ToleranceError

X = np.random.default_rng(0).normal(0.0, 1.5, 1500)


@pytest.fixture(scope="module")
def front():
    return approx.choose("gelu", X, max_levels=5)


def test_no_choice_of_the_front_beats_another(front):
    for a in front.choices:
        for b in front.choices:
            if a is not b:
                assert (a.levels, a.products, a.error) != (b.levels, b.products, b.error)
                no_worse = a.levels <= b.levels and a.products <= b.products
                assert not (no_worse and a.error <= b.error)


def test_the_best_is_the_most_accurate_within_the_levels(front):
    assert front.best.error == min(c.error for c in front.choices)
    assert all(c.levels <= 5 for c in front.choices)
    assert "gelu" in str(front)
    assert str(front).count("\n") == len(front.choices)


def test_the_error_is_that_of_the_samples_and_of_the_rounding(front):
    from approx.targets import find

    c = front.best
    gap = np.sqrt(np.mean((c.approximation(X) - find("gelu")(X)) ** 2))
    assert c.error == pytest.approx(math.hypot(gap, c.magnification * 2.0**-30), rel=1e-6)


def test_a_wanted_error_is_reached_at_the_fewest_levels(front):
    goal = 3.0 * front.best.error
    best = approx.choose("gelu", X, max_levels=5, max_error=goal).best
    assert best.error <= goal
    assert all(c.error > goal for c in front.choices if c.levels < best.levels)


def test_coarse_rounding_changes_what_is_best():
    fine, coarse = (
        approx.choose("tanh", X[:500], max_levels=5, noise_bits=bits).best for bits in (35.0, 8.0)
    )
    assert coarse.magnification <= fine.magnification
    assert coarse.products <= fine.products


def test_exp_over_a_wide_range_offers_squaring():
    x = -np.abs(np.random.default_rng(1).normal(0.0, 30.0, 600))
    front = approx.choose("exp", x, max_levels=7)
    assert all(c.approximation.hull[1] >= 0.0 or c.outside > 0.0 for c in front.choices)
    assert {c.method for c in front.choices} & {"exp_squaring"}


def test_requests_that_cannot_be_met_say_so():
    with pytest.raises(ToleranceError, match="out of reach"):
        approx.choose("gelu", X, max_levels=4, max_error=1e-12)
    with pytest.raises(ApproxError, match="max_levels"):
        approx.choose("gelu", X)
    with pytest.raises(ApproxError, match="sample"):
        approx.choose("gelu", [], max_levels=4)
    with pytest.raises(ApproxError, match="finite"):
        approx.choose("log", X, max_levels=4)


def test_report_counts_what_lies_outside_and_its_damage():
    p = approx.fit("gelu", (-4, 4), degree=15)
    report = approx.report(p, X)
    out = np.abs(X) > 4
    assert report.outside == np.mean(out) > 0
    assert report.furthest == pytest.approx((np.max(np.abs(X)) - 4) / 8)
    assert report.worst_inside <= p.max_error
    assert report.worst_outside > 10 * p.max_error
    text = str(report)
    for word in ("levels", "outside", "width", f"{report.outside:.3%}"):
        assert word in text


def test_report_finds_where_a_polynomial_blows_up():
    p = approx.fit("gelu", (-8, 8), degree=31)
    report = approx.report(p)
    inside = p.growth(0.0)
    assert report.blow_up is not None
    assert p.growth(0.99 * report.blow_up) <= 2 * inside < p.growth(report.blow_up)
    sizes = [size for _, size in report.growth]
    assert sizes == sorted(sizes)
    assert approx.report(approx.fit("exp", (-1, 0), degree=1)).blow_up is None


def test_report_of_a_composite_and_of_unknown_targets():
    c = approx.composite("exp_squaring", (-8, 0), squarings=6)
    assert approx.report(c, [-1.0, -9.0]).outside == 0.5
    p = approx.fit(np.sin, (-1, 1), degree=3)
    assert approx.report(p, [0.5], target=np.sin).worst_inside <= p.max_error * 1.001
    with pytest.raises(ApproxError, match="target="):
        approx.report(p, [0.5])
    with pytest.raises(ApproxError, match="NaN"):
        approx.report(c, [math.nan])


def test_their_figures(front, tmp_path):
    figure = front.plot()
    axes = figure.axes[0]
    drawn = sum(np.size(line.get_xdata()) for line in axes.lines)
    assert drawn == len(front.choices) + 1
    p = approx.fit("gelu", (-4, 4), degree=15)
    report = approx.report(p, X)
    axes = report.plot().axes[0]
    assert np.size(axes.lines[0].get_xdata()) == len(X)
    assert "outside" in axes.get_title()
    report.plot().savefig(tmp_path / "damage.png")
    approx.report(p).plot()
