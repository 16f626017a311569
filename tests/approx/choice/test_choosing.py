"""approx.choose and approx.report: the front is one, requests are met, damage is found."""

import math
from typing import Any

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
    assert str(front).count("\n") == len(front.choices) + 1


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


def test_a_notebook_shows_their_figures_without_pyplot(front):
    assert front.plot()._repr_png_().startswith(b"\x89PNG")


def test_their_figures(front, tmp_path):
    figure = front.plot()
    axes = figure.axes[0]
    drawn = sum(np.size(line.get_xdata()) for line in axes.lines)
    steps = len({c.levels for c in front.choices})
    assert drawn == len(front.choices) + 1 + steps
    p = approx.fit("gelu", (-4, 4), degree=15)
    report = approx.report(p, X)
    axes = report.plot().axes[0]
    assert np.size(axes.lines[0].get_xdata()) == len(X)
    assert "outside" in axes.get_title()
    report.plot().savefig(tmp_path / "damage.png")
    approx.report(p).plot()


def test_a_plan_is_chosen_kept_and_reported():
    p = approx.fit("inv_sqrt", (0.04, 1.0), degree=55)
    quiet, deeper = p.with_plan("quiet"), p.with_plan("deeper")
    assert quiet.depth == p.depth and quiet.plan.nonscalar_mults > p.plan.nonscalar_mults
    assert deeper == p.with_plan("deeper") and deeper.depth in (p.depth, p.depth + 1)
    short = approx.fit("exp", (-3, 2), degree=7)
    longer = short.with_plan("deeper")
    assert longer.depth == short.depth + 1
    assert longer.plan.nonscalar_mults < short.plan.nonscalar_mults
    assert approx.amplification(quiet) < approx.amplification(p)
    assert np.array_equal(quiet(X), p(X)) and quiet != p
    assert approx.Polynomial.from_json(quiet.to_json()) == quiet
    assert quiet.derivative().planning == "quiet"
    assert approx.fit("inv_sqrt", (0.04, 1.0), degree=55, plan="quiet") == quiet
    assert 'With plan "quiet"' in str(approx.report(p))
    with pytest.raises(ApproxError, match="quiet"):
        p.with_plan("silent")


def test_a_deeper_plan_stays_within_the_levels_asked_for():
    for depth in (4, 6):
        assert approx.fit("exp", (-3, 2), depth=depth, plan="deeper").depth <= depth


def test_a_guard_bounds_least_squares_by_minimax():
    x = np.concatenate([np.full(500, 0.1), np.linspace(0.0, 0.3, 500)])
    best = approx.fit("exp", (-4, 4), degree=6)
    free = approx.fit("exp", (-4, 4), degree=6, method="least_squares", samples=x)
    kept = approx.fit("exp", (-4, 4), degree=6, method="least_squares", samples=x, guard=1.5)
    assert free.max_error > 1.5 * best.max_error
    assert kept.max_error <= 1.501 * best.max_error
    rms = [np.sqrt(np.mean((p(x) - np.exp(x)) ** 2)) for p in (free, kept, best)]
    assert rms[0] < rms[1] < rms[2]
    with pytest.raises(ApproxError, match="least_squares"):
        approx.fit("exp", (-4, 4), degree=6, guard=2.0)


def test_least_squares_by_samples_keeps_the_symmetry_of_the_target():
    p = approx.fit("gelu", (-4, 4), degree=12, method="least_squares", samples=X)
    assert all(c == 0.0 for c in p.coefficients[3::2])


def test_sign_leaves_a_gap_and_offers_composites():
    x = np.concatenate([X[X > 0.2], -X[X > 0.2]])
    front = approx.choose("sign", x, max_levels=9)
    assert "sign" in {c.method for c in front.choices}
    assert all(len(c.approximation.intervals) == 2 for c in front.choices)


def test_the_bound_of_a_choice_is_proven_when_read(front):
    assert not front.best.draft.certified
    p = front.best.approximation
    assert p.certified and p.max_error >= front.best.draft.max_error * 0.999


@pytest.mark.parametrize(
    ("samples", "word"), [([], "sample"), ([1.0, math.nan], "finite"), ([2.0, 2.0], "vary")]
)
def test_samples_that_tell_nothing_are_refused(samples, word):
    with pytest.raises(ApproxError, match=word):
        approx.choose("gelu", samples, max_levels=4)


def test_requests_that_are_malformed_say_so():
    requests: tuple[dict[str, Any], ...] = (
        {"max_error": -1.0},
        {"max_levels": 2.5},
        {"max_levels": 3, "noise_bits": math.nan},
    )
    for request in requests:
        with pytest.raises(ApproxError, match="must be"):
            approx.choose("gelu", X, **request)
