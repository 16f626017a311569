"""`worst_input`: gradient ascent finds what random search does not, and names what is hit."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import approx
import hesim
from hesim.errors import ParameterError

DIRECTION = np.random.default_rng(0).choice([-0.25, 0.25], 24)
EXP = approx.fit("exp", (-2.5, 2.5), degree=5)
X = np.random.default_rng(1).uniform(-1, 1, (8, 24))


def planted(x):
    """Errors grow with |direction · x|³, which is large in two corners of 2^24 only."""
    y = x @ DIRECTION
    return (y * y) * (y * y)


@pytest.fixture(scope="module")
def params():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hesim.CKKSParams(11, 4, 40, 55, 60, security=None)


@pytest.fixture(scope="module")
def found(params):
    return hesim.worst_input(planted, params, (-1, 1), (X,), steps=25, starts=2, keys=2)


def test_ascent_beats_random_search_at_equal_budget(found):
    assert found.value > 10 * found.random_value
    corner = np.abs(found.args[0] @ DIRECTION).max()
    assert corner > 0.95 * np.abs(DIRECTION).sum()
    assert found.evaluations == 3 * 25 * 2
    assert len(found.history) == len(found.random_history) == 25
    assert list(found.history) == sorted(found.history)
    assert np.all(np.abs(found.args[0]) <= 1.0)


def test_the_operation_that_is_hit_is_named_with_its_line(found):
    assert found.name in ("mul", "square", "integer_pow")
    assert "test_worst_input.py" in found.source
    assert found.name in str(found)
    (axes,) = found.plot().axes
    assert len(axes.get_lines()) == 3


def test_an_encrypted_run_has_that_error(found, params):
    import he_backend

    program = hesim.trace(planted, X)
    report = he_backend.run(program, *found.args, params=params)
    typical = he_backend.run(program, X, params=params)

    def rms(run):
        return float(np.sqrt(np.mean((run.outputs - run.exact) ** 2)))

    assert 0.4 < rms(report) / found.value < 2.5  # eight numbers under one key
    assert rms(report) > 10 * rms(typical)


def test_leaving_a_domain_is_found_and_named(params):
    def fn(x):
        return EXP(x @ DIRECTION)

    found = hesim.worst_input(fn, params, (-1, 1), (X,), objective="domain", steps=20, keys=1)
    assert found.value == pytest.approx(2.4, rel=0.02)
    assert found.value > 1.2 * found.random_value
    assert "polynomial" in found.name and "test_worst_input.py" in found.source
    assert found.outside and found.outside[0][2] == pytest.approx(found.value)


def test_bounds_per_leaf_and_public_arguments(params):
    def fn(x, w, y):
        return x * w + y

    args = (np.ones(3), np.array([1.0, 0.0, 2.0]), np.ones(3))
    bounds = [(-1, 1), (np.zeros(3), np.array([0.0, 1.0, 2.0]))]
    found = hesim.worst_input(fn, params, bounds, args, encrypted=(0, 2), steps=2, starts=1, keys=1)
    np.testing.assert_array_equal(found.args[1], args[1])
    assert np.all(found.args[2] >= 0) and found.args[2][0] == 0.0


def test_bad_wishes_are_refused(params):
    with pytest.raises(ParameterError, match="objective"):
        hesim.worst_input(planted, params, (-1, 1), (X,), objective="worst")
    with pytest.raises(ParameterError, match="needs a polynomial"):
        hesim.worst_input(planted, params, (-1, 1), (X,), objective="domain")
    with pytest.raises(ParameterError, match="low <= high"):
        hesim.worst_input(planted, params, (1, -1), (X,))
    with pytest.raises(ParameterError, match="broadcast"):
        hesim.worst_input(planted, params, [(np.zeros(5), 1.0)], (X,))
    with pytest.raises(ParameterError, match="steps"):
        hesim.worst_input(planted, params, (-1, 1), (X,), steps=0)
