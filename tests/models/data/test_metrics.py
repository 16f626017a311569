"""Metrics against SciPy and against their definitions."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data import metrics

BITS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=40))
def test_correlations_are_scipys(pairs: list):
    x, y = np.array(pairs, float).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert metrics.pearson(x, y) == 0.0
        return
    assert metrics.pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y)[0], abs=1e-12)
    assert metrics.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y)[0], abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(BITS)
def test_matthews_is_the_correlation_of_two_binary_variables(pairs: list):
    p, y = np.array(pairs).T
    assert metrics.matthews(p, y) == pytest.approx(metrics.pearson(p, y), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(BITS)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(pairs: list):
    p, y = np.array(pairs).T
    both = np.sum(p & y)
    if not both:
        assert metrics.f1(p, y) == 0.0
        return
    precision, recall = both / p.sum(), both / y.sum()
    assert metrics.f1(p, y) == pytest.approx(2 * precision * recall / (precision + recall))


def test_accuracy():
    assert metrics.accuracy([0, 1, 2, 1], [0, 1, 1, 1]) == 0.75
