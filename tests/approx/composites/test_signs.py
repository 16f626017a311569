"""Degrees of the sign's stages by dynamic programming, and the product with x inside the last."""

import math

import numpy as np
import pytest

import approx
from approx import plan, planning
from approx.composites import early, sign_table, signs


@pytest.mark.parametrize("degree", [3, 7, 15, 31, 63])
@pytest.mark.parametrize("gap", [1e-3, 0.02, 0.3, 0.6])
def test_the_table_is_that_of_fresh_fits(degree, gap):
    fresh = sign_table.measure(degree, gap)
    if fresh > 1e-10:
        assert sign_table.error(degree, gap) == pytest.approx(fresh, rel=3e-3)
        assert 1 - sign_table.error(degree, gap) == pytest.approx(1 - fresh, rel=3e-3)


@pytest.mark.parametrize("wanted", [1e-6, 1e-2, 0.7, 0.999])
def test_the_smallest_gap_inverts_the_table(wanted):
    for degree in (3, 13, 31):
        gap = sign_table.smallest_gap(degree, wanted)
        assert sign_table.error(degree, gap) == pytest.approx(wanted, rel=1e-4)


def test_no_pair_of_stages_beats_the_search():
    wanted = 1e-3
    for level in signs.chains(wanted, 8):
        for chain in level:
            for first, p1, d1 in signs._steps():
                for last, p2, d2 in signs._steps():
                    if d1 + d2 <= chain.levels and p1 + p2 <= chain.products and chain.degrees:
                        handed = sign_table.smallest_gap(last, wanted)
                        gap = sign_table.smallest_gap(first, (1 - handed) / (1 + handed))
                        assert chain.gap <= 1.002 * gap


def run(nodes, x, y):
    """The result and its depth below y, where x is at hand long before."""
    registers, depths = [x, y], [-10, 0]
    for node in nodes:
        registers.append(node(registers))
        below = [depths[j] for j in node.inputs]
        if node.kind == "product":
            depths.append(1 + max(below))
        else:
            costs = [0 if f == round(f) else 1 for f in node.factors]
            depths.append(max(d + c for d, c in zip(below, costs)))
    return registers[-1], depths[-1]


@pytest.mark.parametrize("degree", [1, 3, 5, 7, 13, 15, 27, 31, 47])
def test_the_early_product_costs_no_level(degree):
    rng = np.random.default_rng(degree)
    c = np.zeros(degree + 1)
    c[1::2] = rng.standard_normal(len(c[1::2]))
    x, y = rng.uniform(-1, 1, (2, 200))
    nodes = early.nodes(c.tolist(), 0, 1, 2)
    value, depth = run(nodes, x, y)
    assert np.allclose(value, x * np.polynomial.chebyshev.chebval(y, c), rtol=0, atol=1e-12)
    assert depth == plan.minimal_depth(degree)
    assert sum(n.kind == "product" for n in nodes) == early.products(degree)


def test_thirteen_levels_of_relu():
    c = approx.composite("relu", (-1, 1), depth=13, products=30)
    x = np.concatenate([np.linspace(-1, 1, 20001), np.linspace(-0.01, 0.01, 20001)])
    assert c.depth <= 13
    assert c.products <= 30
    assert -math.log2(c.max_error) >= 12.8
    assert np.max(np.abs(c(x) - np.maximum(x, 0))) <= c.max_error * 1.0001


def test_both_forms_of_the_product_agree():
    forms = [
        approx.composite("relu", (-1, 1), degrees=(7, 13), gap=0.05, multiplied=m)
        for m in ("after", "early")
    ]
    x = np.linspace(-1, 1, 2001)
    assert np.allclose(forms[0](x), forms[1](x), rtol=0, atol=1e-13)
    assert forms[1].depth == forms[0].depth - 1
    assert forms[1].products > forms[0].products
    q = forms[1].rescaled(0.25)
    assert np.allclose(q(4 * x), forms[1](x), rtol=0, atol=1e-12)
    assert q.depth == forms[1].depth + 1


@pytest.mark.parametrize(
    ("alpha", "degrees"), [(10, (7, 7, 13)), (12, (7, 15, 27)), (14, (15, 27, 29))]
)
def test_no_more_products_than_the_published_degrees(alpha, degrees):
    products = sum(planning.products(d, 1) for d in degrees)
    levels = sum(plan.minimal_depth(d) for d in degrees)
    c = approx.composite("relu", (-1, 1), tol=2.0**-alpha, depth=levels + 1, products=products + 1)
    assert c.max_error <= 2.0**-alpha


def test_sign_within_levels():
    domain = [(-1, -0.01), (0.01, 1)]
    errors = [approx.composite("sign", domain, depth=n).max_error for n in (6, 8, 10)]
    assert errors[0] > errors[1] > errors[2]
    few = approx.composite("sign", domain, depth=10, products=18)
    assert few.products <= 18
    assert few.max_error >= errors[2]
    with pytest.raises(approx.ToleranceError, match="levels"):
        approx.composite("sign", domain, tol=1e-9, depth=5)


@pytest.mark.parametrize("degrees", [(3, 5), (31,), (7, 15), (7, 7, 13)])
@pytest.mark.parametrize("multiplied", ["after", "early"])
def test_relu_is_certified_and_tight(degrees, multiplied):
    c = approx.composite("relu", (-3, 2), degrees=degrees, multiplied=multiplied)
    x = np.concatenate([np.linspace(-3, 2, 200001), -3 * np.geomspace(1e-5, 1, 100001)])
    largest = np.max(np.abs(c(x) - np.maximum(x, 0)))
    assert c.certified
    assert largest <= c.max_error <= 1.001 * largest


@pytest.mark.parametrize("multiplied", ["after", "early"])
def test_a_traced_relu_has_the_depth_and_the_values_of_the_graph(multiplied):
    import jax
    import jax.numpy as jnp

    import hesim

    c = approx.composite("relu", (-1, 1), degrees=(7, 13), multiplied=multiplied)
    program = hesim.trace(lambda x: c(x), jnp.linspace(-1, 1, 8), encrypted=(0,))
    assert program.depth == c.depth
    with jax.enable_x64(True):
        x = jnp.linspace(-1, 1, 101)
        assert np.allclose(jax.jit(c)(x), c(np.asarray(x)), rtol=0, atol=1e-13)


def test_a_relu_holds_its_domain_without_a_gap_and_a_sign_keeps_its_own():
    """What is small is no fault of relu's, whose domain has 0 in it; sign is asked around a gap."""

    def stages(name: str, domain):
        nodes = approx.composite(name, domain, tol=1e-2).nodes
        return [node.polynomial for node in nodes if node.polynomial is not None]

    assert all(p.contains(0.0) for p in stages("relu", (-2.0, 2.0)))
    assert not stages("sign", [(-1.0, -0.1), (0.1, 1.0)])[0].contains(0.05)
