"""Minimax fits are the optimum, on functions that swing about as often as the degree too."""

import math

import numpy as np
import pytest
from scipy.optimize import linprog

import approx
from approx import interior, remez
from approx.errors import DomainError, ToleranceError


def swinging(x):
    return np.sin(x) ** 2 + np.sin(x * x)


def programmed(function, intervals, degree, count=600):
    """The optimum on a grid by linear programming: no polynomial has a smaller error."""
    x = remez.grid(intervals, count, (0.0, 0.3))  # where some of the functions have their peak
    a, b = intervals[0][0], intervals[-1][1]
    table = remez.basis(range(degree + 1), (2.0 * x - a - b) / (b - a))
    ones = np.ones((len(x), 1))
    solved = linprog(
        np.r_[np.zeros(degree + 1), 1.0],
        A_ub=np.block([[table, -ones], [-table, -ones]]),
        b_ub=np.r_[function(x), -function(x)],
        bounds=[(None, None)] * (degree + 1) + [(0.0, None)],
    )
    return solved.fun


SWINGS = {
    "sin": (lambda x: np.sin(21 * x), [(-1, 1)]),
    "cos": (lambda x: np.cos(20 * x), [(-1, 1)]),
    "growing": (lambda x: np.cos(15 * x + 1) * np.exp(x), [(-1, 1)]),
    "chirp": (lambda x: np.sin(15 * x * x), [(0, 1.5)]),
    "runge": (lambda x: 1 / (1 + 1000 * x * x), [(-1, 1)]),
    "kink": (lambda x: np.abs(x - 0.3), [(-1, 1)]),
    "bell": (lambda x: np.exp(-300 * x * x), [(-1, 1)]),
    "union": (lambda x: np.sin(21 * x), [(-1, -0.3), (0.1, 1)]),
    "far union": (lambda x: np.sin(40 * x), [(-1, -0.6), (-0.1, 0.1), (0.5, 1)]),
}


@pytest.mark.parametrize("name", SWINGS)
@pytest.mark.parametrize("degree", [7, 13, 18])
def test_the_error_is_that_of_the_linear_program(name, degree):
    function, intervals = SWINGS[name]
    bound = programmed(function, intervals, degree)
    reached = approx.fit(function, intervals, degree=degree).max_error
    assert bound * (1 - 1e-6) <= reached <= 1.004 * bound


# (degree, optimum on a grid), by linear programming.
@pytest.mark.parametrize(
    ("degree", "bound"), [(60, 0.999), (90, 0.998), (100, 0.9977), (115, 0.9964), (150, 0.0834)]
)
def test_as_many_swings_as_the_degree(degree, bound):
    assert bound <= approx.fit(swinging, (0, 15), degree=degree).max_error <= 1.006 * bound


def test_the_error_falls_with_the_degree_and_is_below_that_of_least_squares():
    chirp = lambda x: np.sin(80 * x * x)
    errors = [approx.fit(chirp, (0, 1.5), degree=d).max_error for d in (25, 48, 49, 64, 65, 73)]
    for lower, higher in zip(errors, errors[1:], strict=False):
        assert higher <= lower * (1 + 1e-4)
    mean = approx.fit(chirp, (0, 1.5), degree=64, method="least_squares")
    assert errors[3] < mean.max_error


def test_a_weighted_error_is_optimal_on_swings_too():
    function, weight = lambda x: np.sin(80 * x * x), lambda x: 1 + x
    p = approx.fit(function, (0, 1.5), degree=49, weight=weight)
    x = remez.grid([(0, 1.5)], 4001)
    assert np.max(np.abs(weight(x) * (p(x) - function(x)))) <= 2.5 * (1 + 1e-4)  # 0 reaches 2.5


def test_the_bound_holds_and_is_met():
    for degree in (25, 49, 64):
        found = remez.minimax(lambda u: np.sin(45 * (u + 1) ** 2), [(-1, 1)], range(degree + 1))
        assert found.level <= found.error <= found.level * (1 + 1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(9, 1), (40, 7), (60, 30)])
def test_the_interior_point_method_agrees_with_a_simplex(rows, columns):
    rng = np.random.default_rng(rows)
    table, wanted = rng.normal(size=(rows, columns)), rng.normal(size=rows)
    ones = np.ones((rows, 1))
    solved = linprog(
        np.r_[np.zeros(columns), 1.0],
        A_ub=np.block([[table, -ones], [-table, -ones]]),
        b_ub=np.r_[wanted, -wanted],
        bounds=[(None, None)] * columns + [(0.0, None)],
    )
    found = interior.least_maximum(table, wanted)
    assert found.bound <= solved.fun * (1 + 1e-9) <= found.error * (1 + 1e-9)
    assert found.error == pytest.approx(solved.fun, rel=1e-6)
    assert np.max(np.abs(wanted - table @ found.coefficients)) == pytest.approx(found.error)


def test_columns_that_depend_on_each_other_are_no_obstacle():
    column = np.linspace(0.0, 1.0, 9)[:, None]
    found = interior.least_maximum(np.hstack([column, 2 * column]), np.ones(9))
    assert found.error == pytest.approx(1.0)  # at 0 nothing can be done
    assert interior.least_maximum(column, np.zeros(9)).error == 0.0


@pytest.mark.parametrize(
    ("function", "degree"),
    [
        (lambda x: np.cos(40 * np.arccos(np.clip(x, -1, 1))), 20),
        (lambda x: np.cos(20 * x), 8),
        (lambda x: np.sin(50 * x), 20),
        (lambda x: np.sin(5000 * x), 12),
    ],
    ids=["T_40", "cos 20x", "sin 50x", "sin 5000x"],
)
def test_a_degree_too_low_gives_the_best_constant(function, degree):
    p = approx.fit(function, (-1, 1), degree=degree)
    assert p.max_error == pytest.approx(1.0, rel=1e-3)
    x = np.linspace(-1, 1, 4001)
    assert np.max(np.abs(function(x) - p(x))) <= p.max_error * (1 + 1e-9)


def test_a_spike_between_the_points_is_seen():
    spike = lambda x: np.exp(-(((x - 0.3123) / 1e-4) ** 2))
    assert approx.fit(spike, (-1, 1), degree=9).max_error == pytest.approx(0.5, rel=1e-3)


def test_what_no_degree_follows_is_said():
    with pytest.raises(DomainError, match=r"step jumps at x = 0\.25.*gap"):

        def step(x):
            return np.where(x > 0.25, 1.0, 0.0)

        approx.fit(step, (-1, 1), degree=9)
    with pytest.raises(DomainError, match="too wide"):
        approx.fit(np.tanh, (-1e9, 1e9), degree=9)


def test_what_is_not_within_its_bound_is_not_called_minimax(monkeypatch):
    found = remez.Minimax(np.array([0.5, 0.0]), 1.0, 0.5, np.array([-1.0, 0.0, 1.0]))
    monkeypatch.setattr(remez, "minimax", lambda *a, **k: found)
    with pytest.raises(ToleranceError, match="at least 0.5"):
        approx.fit(math.sin, (-1, 1), degree=1)
