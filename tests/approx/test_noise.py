"""Noise magnification: known cases, and what the form of evaluation does to it."""

import math

import numpy as np
import pytest

import approx
from approx import noise
from approx.polynomial import Polynomial


def test_a_line_adds_its_rounding_to_the_slope_times_the_input():
    p = Polynomial((0.0, 3.0))
    assert noise.amplification(p) == pytest.approx(math.sqrt(10.0), rel=0.03)


def test_a_square_weighs_the_input_by_its_slope():
    p = Polynomial((0.5, 0.0, 0.5))  # u^2 by T_2 = 2u^2 - 1: errors 2u e0, then halved, rounded
    x = np.full(2000, 0.8)
    expected = math.sqrt(1.6**2 + 0.25 + 1.0)
    assert noise.amplification(p, x) == pytest.approx(expected, rel=0.03)


def test_wide_domains_carry_a_larger_error_in():
    narrow = approx.fit("tanh", (-2, 2), degree=7)
    assert noise.amplification(narrow.rescaled(2.0)) < noise.amplification(narrow) * 2.0


def test_squaring_magnifies_by_the_number_of_squarings():
    values = [
        noise.amplification(approx.composite("exp_squaring", (-1, 0), squarings=k)) for k in (2, 6)
    ]
    assert values[1] > 4.0 * values[0]


def test_a_late_stage_of_sign_damps_what_came_before():
    domain = [(-1, -0.1), (0.1, 1)]
    one = approx.composite("sign", domain, degrees=(7,))
    three = approx.composite("sign", domain, degrees=(7, 7, 7))
    assert noise.amplification(three) < 3.0 * noise.amplification(one)


def test_overflow_is_infinite():
    c = approx.composite("exp_squaring", (-1, 0), squarings=8)
    assert noise.amplification(c, x=np.array([1e30])) == math.inf
