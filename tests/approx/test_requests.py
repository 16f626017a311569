"""Bad requests: every one ends in an error of the package that says what to do."""

import math

import numpy as np
import pytest

import approx
from approx.errors import ApproxError, DomainError, ToleranceError
from benchmarks.approximation import requests as table


def hole(x):
    return np.where(np.abs(x - 0.25) < 1e-4, np.nan, x)


def spike(x):
    return np.exp(-(((x - 0.3123) / 1e-4) ** 2))


BAD = [
    (lambda x: 1 / x, (-1, 1), {"degree": 9}, DomainError, "pole"),
    (lambda x: (x - 0.3) ** -2, (-1, 1), {"degree": 9}, DomainError, "pole"),
    (np.tan, (0, 3), {"degree": 9}, DomainError, "pole"),
    (hole, (-1, 1), {"degree": 3}, DomainError, "NaN"),
    (lambda x: "abc", (-1, 1), {"degree": 3}, ApproxError, "str"),
    (lambda x: x[None], (-1, 1), {"degree": 3}, ApproxError, "element by element"),
    (lambda x: {}[1], (-1, 1), {"degree": 3}, ApproxError, "KeyError"),
    (spike, (-1, 1), {"degree": 31, "tol": 0.1}, ToleranceError, "out of reach"),
    ("exp", (-1, 1), {"degree": math.nan}, ApproxError, "whole"),
    ("exp", (-1, 1), {"degree": "5"}, ApproxError, "whole"),
    ("exp", (-1, 1), {"depth": 0}, ApproxError, "constant"),
    ("exp", (-1, 1), {"tol": "x"}, ApproxError, "positive"),
    ("exp", 5, {"degree": 3}, DomainError, "a < b"),
    ("exp", (-1e9, 0), {"degree": 15}, DomainError, "too wide"),
    ("sigmoid", (-1e9, 1e9), {"degree": 15}, DomainError, "too wide"),
    ("exp", (1e-320, 1.1e-320), {"degree": 3}, DomainError, "float64"),
    (["exp"], (0, 1), {"degree": 3}, ApproxError, "Unknown target"),
    ("exp", (0, 1), {"degree": 3, "weight": 3}, ApproxError, "function"),
    ("exp", (0, 1), {"degree": 3, "through": [(0,)]}, ApproxError, "points"),
    ("exp", (0, 1), {"degree": 3, "bounds": 3}, ApproxError, "bounds"),
    ("exp", (0, 1), {**table._MEAN, "samples": [math.nan]}, ApproxError, "NaN"),
    ("exp", (0, 1), {**table._MEAN, "samples": ["a"]}, ApproxError, "numbers"),
]


@pytest.mark.parametrize(("target", "domain", "knobs", "error", "words"), BAD)
def test_bad_fits_say_what_to_do(target, domain, knobs, error, words):
    with pytest.raises(error, match=words):
        approx.fit(target, domain, **knobs)


@pytest.mark.parametrize("row", table.COMPOSITES, ids=lambda row: row[0])
def test_bad_composites_say_what_to_do(row):
    _, kind, domain, knobs = row
    with pytest.raises(ApproxError):
        approx.composite(kind, domain, **knobs)


def test_a_narrow_feature_is_in_the_estimate():
    p = approx.fit(spike, (-1, 1), degree=15, method="chebyshev")
    assert not p.certified
    assert p.max_error == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("function", [np.sqrt, np.abs, lambda x: np.exp(10 * x)])
def test_steep_functions_are_not_taken_for_poles(function):
    assert approx.fit(function, (0, 4), degree=9).max_error > 0


def test_the_plan_of_extended_coefficients_has_its_own_bound():
    p = approx.fit("exp", (-8, 0), degree=19)
    assert p.tails
    assert p.plan_error == pytest.approx(p.max_error + sum(map(abs, p.tails)))
    rounded = approx.Polynomial(p.coefficients, p.intervals, p.scale, p.shift, name="exp")
    from approx import certify

    target = certify.Target("exp", np.exp, lambda m: lambda z: z.exp())
    bound = certify.certify(rounded, target)
    assert bound is not None and bound <= p.plan_error
    q = approx.fit("exp", (-8, 0), degree=5)
    assert q.plan_error == q.max_error
