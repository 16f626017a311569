"""Plans: optimal depth, few products, and the values of Clenshaw's recurrence at every degree."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from approx import plan, planning
from approx.errors import ApproxError
from approx.polynomial import clenshaw

U = np.cos(np.linspace(0.0, np.pi, 1001))


def series(degree, parity, seed=0):
    c = np.random.default_rng([seed, degree]).standard_normal(degree + 1)
    if parity is not None:
        c[1 - parity :: 2] = 0.0
    return c


def relative_error(p, c):
    gap = np.max(np.abs(plan.evaluate(p, U) - clenshaw(tuple(c), U)))
    return gap / np.sum(np.abs(c))


@pytest.mark.parametrize("parity", [None, 0, 1])
def test_every_degree_to_255_is_of_optimal_depth_and_accurate(parity):
    for degree in range(1, 256):
        if parity is not None and degree % 2 != parity:
            continue
        c = series(degree, parity)
        p = planning.build(c)
        assert p.depth == math.ceil(math.log2(degree + 1)), degree
        assert relative_error(p, c) < 1e-12, degree


def test_products_grow_as_the_square_root_and_parity_saves():
    for degree in (15, 31, 63, 127, 255):
        dense = planning.build(series(degree, None)).nonscalar_mults
        odd = planning.build(series(degree, 1)).nonscalar_mults
        even = planning.build(series(degree - 1, 0)).nonscalar_mults
        assert dense <= 2 * math.sqrt(2 * (degree + 1)) + math.log2(degree + 1)
        assert odd <= dense
        assert even < dense


def test_one_level_more_never_costs_products():
    for degree in (7, 15, 31, 63):
        c = series(degree, None)
        wider = planning.build(c, depth=plan.minimal_depth(degree) + 1)
        assert wider.nonscalar_mults < planning.build(c).nonscalar_mults
        assert wider.depth <= plan.minimal_depth(degree) + 1
        assert relative_error(wider, c) < 1e-13


def test_a_linear_term_and_a_constant_keep_the_parity():
    c = series(30, 0)
    with_line = c.copy()
    with_line[1] = 0.5
    p, q = planning.build(c), planning.build(with_line)
    assert p.nonscalar_mults == q.nonscalar_mults
    assert relative_error(q, with_line) < 1e-13


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.0, 0.0, 1.0, -0.7, 1e-9]), min_size=1, max_size=70),
    st.integers(0, 1),
)
def test_sparse_series(coefficients, extra):
    degree = max((k for k, c in enumerate(coefficients) if c), default=0)
    p = planning.build(coefficients, depth=plan.minimal_depth(degree) + extra)
    expected = clenshaw(tuple(coefficients), U)
    assert np.allclose(plan.evaluate(p, U), expected, rtol=0, atol=1e-12 * (1 + len(coefficients)))
    assert p.depth <= plan.minimal_depth(degree) + extra


def test_the_counts_are_those_of_the_steps():
    p = planning.build(series(63, None))
    assert p.nonscalar_mults == sum(len(s.products) for s in p.steps)
    assert p.scalar_mults == sum(len(s.scalars) for s in p.steps)
    depths = [0]
    for position, step in enumerate(p.steps):
        assert step.out == position + 1
        below = [max(depths[a], depths[b]) for _, a, b in step.products]
        below += [depths[j] for _, j in step.scalars]
        assert (
            max([*(a for _, a, _ in step.products), *(b for _, _, b in step.products), 0])
            <= position
        )
        level = 1 + max(below) if below else 0
        depths.append(max([level, *(depths[j] for _, j in step.adds)]))
    assert tuple(depths) == p.register_depths
    assert depths[p.output] == p.depth


def test_constants_and_lines():
    assert planning.build([3.0]).depth == 0
    assert np.array_equal(plan.evaluate(planning.build([3.0]), U), np.full_like(U, 3.0))
    line = planning.build([1.0, 2.0])
    assert (line.depth, line.nonscalar_mults, line.scalar_mults) == (1, 0, 1)


def test_bad_requests():
    with pytest.raises(ApproxError, match="levels"):
        planning.build(series(8, None), depth=3)
    with pytest.raises(ApproxError, match="NaN"):
        planning.build([1.0, math.nan])


@pytest.mark.parametrize("degree", [5, 8, 13])
def test_division_by_a_chebyshev_polynomial(degree):
    c = series(degree, None)
    for g in range((degree + 1) // 2, degree + 1):
        q, r = plan.divide(list(c), g)
        t = np.cos(g * np.arccos(U))
        assert np.allclose(clenshaw(tuple(q), U) * t + clenshaw(tuple(r), U), clenshaw(tuple(c), U))
        assert len(r) <= g


def unit_series(degree, seed=0):
    c = series(degree, None, seed)
    return c / np.sum(np.abs(c))


@pytest.mark.parametrize("degree", [27, 48, 58, 105, 119, 200, 240])
def test_halved_products_at_the_same_depth_and_accuracy(degree):
    c = unit_series(degree)
    p = planning.build(c)
    divided = plan.structure(degree, None, p.depth).total(degree, None, p.depth)
    assert p.depth == plan.minimal_depth(degree)
    assert p.nonscalar_mults == planning.products(degree) <= divided
    assert planning.build(c, quiet=True).nonscalar_mults == divided
    assert relative_error(p, c) < 1e-12


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1.0, 16.0, 100.0, 1e6])
def test_halved_products_whatever_the_size_of_the_series(scale):
    c = scale * unit_series(119, seed=3)
    p = planning.build(c)
    assert np.max(np.abs(plan.evaluate(p, U) - clenshaw(tuple(c), U))) < 1e-13 * max(scale, 1.0)
    assert all(abs(f) <= 64 for s in p.steps for f, _, _ in s.products)
    assert (p.nonscalar_mults == planning.products(119)) == (scale < 20)


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_halved_products_of_series_that_decay(decay):
    c = decay ** np.arange(60)
    p = planning.build(c)
    assert p.nonscalar_mults == planning.products(59)
    assert relative_error(p, c) < 1e-13


def test_published_product_counts_are_not_exceeded():
    from benchmarks.approximation.plans import lattigo, openfhe

    for degree in range(1, 256):
        depth, theirs = lattigo(degree)
        assert planning.products(degree, None, depth) <= theirs
        assert planning.products(degree, degree % 2, depth) <= lattigo(degree, degree % 2)[1]
        depth, theirs = openfhe(degree)
        assert planning.products(degree, None, depth) <= theirs
