"""Noise through plans: adjoints against errors injected register by register."""

import numpy as np
import pytest

import approx
from approx.plan import Plan, evaluate
from approx.planning import build
from hesim.noise.plans import Node, expand, output_variance, power_plan


def run(nodes: tuple[Node, ...], x: np.ndarray, errors: list[np.ndarray]) -> np.ndarray:
    """The nodes on x with an error added wherever a rescale rounds."""
    values = [x]
    for node, error in zip(nodes, errors, strict=True):
        total = np.full_like(x, node.constant)
        for f, a, b in node.products:
            total = total + f * values[a] * values[b]
        for c, j in node.terms:
            total = total + c * values[j]
        values.append(total + error * node.rounded)
    return values[-1]


@pytest.mark.parametrize("degree", [1, 2, 3, 7, 12, 15, 31])
@pytest.mark.parametrize("own", [True, False])
def test_output_variance_is_that_of_injected_errors(degree, own):
    rng = np.random.default_rng(degree)
    plan = build(rng.normal(size=degree + 1) / (1 + np.arange(degree + 1)))
    scale, shift = (0.25, 0.1) if own else (1.0, 0.0)
    nodes = expand(plan, scale, shift, own)
    trials, delta = 20_000, 1e-7
    for point in (-0.9, 0.1, 0.8):
        x = np.full(trials, (point - shift) / scale)
        silent = [np.zeros(trials)] * len(nodes)
        exact = run(nodes, x, silent)
        assert np.allclose(exact, evaluate(plan, scale * x + shift), rtol=1e-12)
        noisy = run(nodes, x, [delta * rng.normal(size=trials) for _ in nodes])
        measured = np.var(noisy - exact) / delta**2
        weights = [float(node.rounded) for node in nodes]
        assert np.mean(output_variance(nodes, x, weights)) == pytest.approx(measured, rel=0.06)


def test_levels_of_nodes_end_at_the_depth():
    for degree in (1, 3, 7, 15, 27, 31):
        plan = build(np.linspace(1, 2, degree + 1).tolist())
        assert expand(plan, 1.0, 0.0, False)[-1].level == -plan.depth
        assert expand(plan, 0.5, 0.0, True)[-1].level == -plan.depth - 1


def test_operands_of_products_share_a_level():
    poly = approx.fit("exp", (-4, 0), degree=13)
    nodes = (Node((), (), 0.0, False, False, 0), *expand(poly.plan, poly.scale, poly.shift, True))
    for node in nodes:
        for _, a, b in node.products:
            assert nodes[a].level == nodes[b].level == node.level + 1


@pytest.mark.parametrize("exponent", range(1, 20))
def test_powers_have_minimal_depth(exponent):
    plan = power_plan(exponent)
    x = np.linspace(-1.1, 1.1, 7)
    assert np.allclose(evaluate(plan, x), x**exponent)
    assert plan.depth == int(np.ceil(np.log2(exponent)))
    assert -expand(plan, 1.0, 0.0, False)[-1].level == plan.depth


def test_a_plan_without_rescales_adds_nothing():
    identity = Plan((), 0, 0, 0, 0)
    assert output_variance(expand(identity, 1.0, 0.5, False), np.ones(3), [0.0]) == 0.0
