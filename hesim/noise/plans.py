"""Noise through a straight-line plan: every rescale's error weighed by what it does to the output.

The error of a plan's output is Σ_s λ_s·e_s over its rescales s, where the adjoint λ_s is the
derivative of the output by the register that the rescale rounds. All e_s have nearly one size, so
the output's variance is that of one rounding times ``Σ_s w_s·λ_s²``, computed element by element in
one reverse pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from approx.plan import Plan, Step

__all__ = ["Node", "expand", "output_variance", "power_plan", "values"]


@dataclass(frozen=True)
class Node:
    """One register: Σ f·r[a]·r[b] + Σ c·r[j] + constant.

    ``rounded`` says whether a rescale rounds it, ``switched`` whether a relinearization does too,
    ``level`` is the register's level relative to the input's (0 or negative).
    """

    products: tuple[tuple[int, int, int], ...]
    terms: tuple[tuple[float, int], ...]
    constant: float
    rounded: bool
    switched: bool
    level: int


@lru_cache(maxsize=1024)
def expand(plan: Plan, scale: float, shift: float, own: bool) -> tuple[Node, ...]:
    """The plan as nodes after the input x (node number 0), the last one being the output.

    Args:
      plan: of a polynomial in u = scale·x + shift.
      scale, shift: the affine map.
      own: whether the map costs a rescale; otherwise it is merged into what came before.

    Returns:
      Nodes numbered from 1. A register used at a lower level than its own is brought down by a
      product with 1 and a rescale, which is a node of its own; constants multiply at any level.
    """
    nodes: list[Node] = [Node((), (), 0.0, False, False, 0)]

    def add(node: Node) -> int:
        nodes.append(node)
        return len(nodes) - 1

    lowered: dict[tuple[int, int], int] = {}

    def at(number: int, level: int) -> int:
        """A node equal to `number` at `level`."""
        if nodes[number].level <= level:
            return number
        if (number, level) not in lowered:
            lowered[number, level] = add(Node((), ((1.0, number),), 0.0, True, False, level))
        return lowered[number, level]

    place = {0: add(Node((), ((scale, 0),), shift, own, False, -1 if own else 0))}
    for step in plan.steps:
        place[step.out] = _expand_step(step, place, nodes, add, at)
    if place[plan.output] != len(nodes) - 1:
        last = nodes[place[plan.output]]
        add(Node((), ((1.0, place[plan.output]),), 0.0, False, False, last.level))
    return tuple(nodes[1:])


def _expand_step(step: Step, place: dict[int, int], nodes: list[Node], add: Any, at: Any) -> int:
    used = [place[j] for _, a, b in step.products for j in (a, b)]
    used += [place[j] for _, j in step.scalars]
    rounded = bool(used)
    below = min((nodes[k].level for k in used), default=0)
    level = min([below - rounded if rounded else 0] + [nodes[place[j]].level for _, j in step.adds])
    operand = level + 1 if rounded else level
    products = tuple((f, at(place[a], operand), at(place[b], operand)) for f, a, b in step.products)
    terms = tuple((c, place[j]) for c, j in step.scalars)
    terms += tuple((float(k), at(place[j], level)) for k, j in step.adds)
    return add(Node(products, terms, step.constant, rounded, bool(products), level))


def values(
    nodes: Sequence[Node], x: Any, changed: Callable[[int, Any], Any] | None = None
) -> list[Any]:
    """Values of the registers, that of the input first.

    changed: called with the number of a node, from 1, and its value; returns what others read.
    """
    found: list[Any] = [x]
    for number, node in enumerate(nodes, 1):
        total: Any = node.constant
        for f, a, b in node.products:
            total = total + f * (found[a] * found[b])
        for c, j in node.terms:
            total = total + c * found[j]
        found.append(total if changed is None else changed(number, total))
    return found


def output_variance(
    nodes: Sequence[Node], x: Any, weights: Sequence[float], entry: float = 0.0
) -> Any:
    """Σ_s w_s·λ_s² for each element of x.

    Args:
      nodes: from ``expand``.
      x: input of the plan's affine map, a NumPy or JAX array.
      weights: variance of what each node adds by itself, in units of one rounding.
      entry: variance of what x brings along, in the same units.

    Returns:
      An array like x, or a float where it is the same for all (0.0 if nothing is rounded).
    """
    registers = values(nodes, x)
    adjoints: dict[int, Any] = {len(nodes): 1.0}
    variance: Any = 0.0
    for number in range(len(nodes), 0, -1):
        adjoint = adjoints.pop(number, None)
        if adjoint is None:
            continue
        node = nodes[number - 1]
        if weights[number - 1]:
            variance = variance + weights[number - 1] * (adjoint * adjoint)
        for f, a, b in node.products:
            adjoints[a] = adjoints.get(a, 0.0) + f * (adjoint * registers[b])
            adjoints[b] = adjoints.get(b, 0.0) + f * (adjoint * registers[a])
        for c, j in node.terms:
            adjoints[j] = adjoints.get(j, 0.0) + c * adjoint
    slope = adjoints.get(0, 0.0)
    return variance + entry * (slope * slope) if entry else variance


@lru_cache(maxsize=64)
def power_plan(exponent: int) -> Plan:
    """x**exponent by halving the exponent, in ceil(log2(exponent)) levels; exponent at least 1."""
    steps: list[Step] = []
    register = {1: 0}

    def power(k: int) -> int:
        if k not in register:
            a, b = power(k - k // 2), power(k // 2)
            steps.append(Step(len(steps) + 1, products=((1, a, b),)))
            register[k] = len(steps)
        return register[k]

    output = power(exponent)
    depth = (exponent - 1).bit_length()
    return Plan(tuple(steps), depth, len(steps), 0, output)
