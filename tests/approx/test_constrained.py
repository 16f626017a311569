"""Relative error, prescribed values and bounds."""

import numpy as np
import pytest

import approx
from approx.errors import ApproxError, ToleranceError
from approx.remez import grid
from approx.targets import find


def relative(p, name):
    x = grid(p.intervals, 20001)
    return np.max(np.abs(p(x) / find(name)(x) - 1))


def test_relative_error_is_made_smallest():
    absolute = approx.fit("exp", (-5, 0), degree=7)
    p = approx.fit("exp", (-5, 0), degree=7, error="relative")
    assert relative(p, "exp") < 0.1 * relative(absolute, "exp")
    assert p.certified
    assert p.max_error >= absolute.max_error


def test_relative_tolerance_at_the_smallest_degree():
    p = approx.fit("inv_sqrt", (0.01, 1), tol=1e-3, error="relative")
    assert relative(p, "inv_sqrt") <= 1e-3
    smaller = approx.fit("inv_sqrt", (0.01, 1), degree=p.degree - 1, error="relative")
    assert relative(smaller, "inv_sqrt") > 1e-3


def test_a_prescribed_value_is_taken_and_costs_little():
    free = approx.fit("gelu", (-5, 4), degree=12)
    p = approx.fit("gelu", (-5, 4), degree=12, through=[(0.0, 0.0)])
    assert abs(free(0.0)) > 0.1 * free.max_error
    assert abs(p(0.0)) < 1e-14
    assert free.max_error <= p.max_error <= 2.0 * free.max_error
    assert p.certified
    two = approx.fit("sigmoid", (-6, 6), degree=9, through=[(0, 0.5), (6, 1.0)])
    assert np.allclose(two(np.array([0.0, 6.0])), [0.5, 1.0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("low", "high"), [(None, 1.0), (0.0, None), (0.0, 1.0)])
def test_bounds_hold_on_the_domain(low, high):
    free = approx.fit("sigmoid", (-12, 12), degree=9)
    p = approx.fit("sigmoid", (-12, 12), degree=9, bounds=(low, high))
    x = np.linspace(-12, 12, 100001)
    if low is not None:
        assert np.min(free(x)) < 0 <= np.min(p(x)) + 1e-5 * p.max_error
    if high is not None:
        assert np.max(free(x)) > 1 >= np.max(p(x)) - 1e-5 * p.max_error
    assert free.max_error < p.max_error < 3.0 * free.max_error


def test_constraints_with_a_tolerance():
    p = approx.fit("exp", (-6, 0), tol=1e-3, bounds=(None, 1.0))
    assert p.max_error <= 1e-3


def test_bad_requests_say_what_to_do():
    with pytest.raises(ApproxError, match="vanishes"):
        approx.fit("tanh", (-1, 1), degree=3, error="relative")
    with pytest.raises(ApproxError, match="absolute"):
        approx.fit("exp", (-1, 1), degree=3, error="mean")
    with pytest.raises(ApproxError, match="exclude"):
        approx.fit("exp", (-1, 1), degree=3, error="relative", weight=np.exp)
    with pytest.raises(ApproxError, match="minimax"):
        approx.fit("exp", (-1, 1), degree=3, method="chebyshev", bounds=(0, None))
    with pytest.raises(ApproxError, match="inside"):
        approx.fit("exp", (-1, 1), degree=3, through=[(2, 1)])
    with pytest.raises(ApproxError, match="room"):
        approx.fit("exp", (-1, 1), degree=3, bounds=(1, 0))
    with pytest.raises(ToleranceError, match="constraints"):
        approx.fit("exp", (-1, 1), degree=1, through=[(-1, 0), (0, 1), (1, 0)])
