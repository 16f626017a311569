"""Composites: small graphs of polynomials, products and sums under one name.

A composite is not a JAX primitive: a traced function sees its polynomials, products and sums, so
that a refresh can fall inside it. ``sign``, ``relu`` and ``abs`` by minimax composition (Lee,
Lee, No and Kim 2021), ``exp_squaring``, and ``inv_sqrt`` by a seed and Newton steps.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from approx.errors import ApproxError, DomainError
from approx.polynomial import Interval, Polynomial, is_jax
from approx.remez import grid


@dataclass(frozen=True)
class Node:
    """One register of the graph; register 0 is the input, node i writes register i + 1.

    Attributes:
      kind: "polynomial" of inputs[0], "product" inputs[0] * inputs[1], or "sum" of
        factors[i] * inputs[i], plus constant.
      polynomial: for kind "polynomial".
      factors: for kind "sum"; whole ones cost no level.
    """

    kind: str
    inputs: tuple[int, ...]
    polynomial: Polynomial | None = None
    factors: tuple[float, ...] = ()
    constant: float = 0.0

    def __call__(self, registers: Sequence[Any]) -> Any:
        if self.polynomial is not None:
            return self.polynomial(registers[self.inputs[0]])
        if self.kind == "product":
            return registers[self.inputs[0]] * registers[self.inputs[1]]
        terms = [_multiple(f, registers[j]) for f, j in zip(self.factors, self.inputs)]
        total = sum(terms[1:], terms[0])
        return total + self.constant if self.constant else total

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "kind": self.kind,
            "inputs": list(self.inputs),
            "polynomial": None if self.polynomial is None else self.polynomial.to_dict(),
            "factors": list(self.factors),
            "constant": self.constant,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Node:
        """The inverse of ``to_dict``."""
        stored = data["polynomial"]
        return cls(
            data["kind"],
            tuple(data["inputs"]),
            None if stored is None else Polynomial.from_dict(stored),
            tuple(data["factors"]),
            data["constant"],
        )


def _multiple(factor: float, x: Any) -> Any:
    """factor * x; for 1, -1 and 2 by operations that take no level in a traced program."""
    if factor == 1.0:
        return x
    if factor == -1.0:
        return -x
    return x + x if factor == 2.0 else factor * x


@dataclass(frozen=True, repr=False)
class Composite:
    """A graph of polynomials, products and sums that approximates one function.

    Attributes:
      name: the kind, as given to ``composite``.
      intervals: the domain.
      nodes: in order; the last is the result.
      max_error: bound on |composite - target| over the domain, for the stored numbers and exact
        arithmetic between them; where float64 rounding is larger, what a dense grid showed of it.
      certified: whether max_error is rigorous (``enclosure.recheck`` computes it again); otherwise
        an estimate on a dense grid.
      knobs: what the graph was built from: degrees, squarings, Newton steps.
      factor: the input is multiplied by this first (see ``rescaled``); it costs nothing.

    Examples:
      >>> import approx
      >>> root = approx.composite("inv_sqrt", (0.01, 1.0), degree=15, steps=2)
      >>> root.depth, root.products, len(root.polynomials)
      (9, 14, 1)
    """

    name: str
    intervals: tuple[Interval, ...]
    nodes: tuple[Node, ...]
    max_error: float
    certified: bool
    knobs: tuple[tuple[str, Any], ...] = ()
    factor: float = 1.0

    def __call__(self, x: Any) -> Any:
        """The value, float64 for NumPy and numbers, in JAX operations for JAX values."""
        registers = [x if is_jax(x) else np.asarray(x, dtype=np.float64)]
        for node in self.nodes:
            registers.append(node(registers))
        return registers[-1]

    def __repr__(self) -> str:
        spans = " | ".join(f"[{a:g}, {b:g}]" for a, b in self.intervals)
        knobs = ", ".join(f"{k}={v}" for k, v in self.knobs)
        return f"Composite({self.name}, {spans}, {knobs}, max_error={self.max_error:.2e})"

    @property
    def domain(self) -> Any:
        """(a, b), or a tuple of intervals if the domain is a union."""
        return self.intervals[0] if len(self.intervals) == 1 else self.intervals

    @property
    def hull(self) -> Interval:
        """The smallest interval that contains the domain."""
        return self.intervals[0][0], self.intervals[-1][1]

    @cached_property
    def depth(self) -> int:
        """Levels that evaluation consumes, each polynomial's affine map included where it costs."""
        depths = [0]
        for node in self.nodes:
            below = [depths[j] for j in node.inputs]
            if node.polynomial is not None:
                depths.append(below[0] + node.polynomial.depth)
            elif node.kind == "product":
                depths.append(1 + max(below))
            else:
                costs = (0 if f == round(f) else 1 for f in node.factors)
                depths.append(max(d + cost for d, cost in zip(below, costs)))
        return depths[-1]

    @cached_property
    def products(self) -> int:
        """Products of two ciphertexts."""
        inside = sum(
            n.polynomial.plan.nonscalar_mults for n in self.nodes if n.polynomial is not None
        )
        return inside + sum(n.kind == "product" for n in self.nodes)

    @cached_property
    def degree(self) -> int:
        """Degree of the composite as one polynomial of x."""
        degrees = [1]
        for node in self.nodes:
            below = [degrees[j] for j in node.inputs]
            if node.polynomial is not None:
                degrees.append(below[0] * node.polynomial.degree)
            else:
                degrees.append(sum(below) if node.kind == "product" else max(below))
        return degrees[-1]

    @property
    def polynomials(self) -> tuple[Polynomial, ...]:
        """The polynomials of the graph, in order."""
        return tuple(n.polynomial for n in self.nodes if n.polynomial is not None)

    def rescaled(self, m: float) -> Composite:
        """q with q(x) = self(m * x), domain divided by m, at no more levels."""
        if not math.isfinite(m) or m == 0.0:
            raise DomainError(f"rescaled needs a finite factor other than 0, not {m}.")
        spans = tuple(sorted((min(a / m, b / m), max(a / m, b / m)) for a, b in self.intervals))
        nodes = [_rescaled_node(node, m) for node in self.nodes]
        if any(n.kind == "product" and 0 in n.inputs for n in self.nodes):
            nodes = _rescale_products(nodes, m)
        return dataclasses.replace(
            self, intervals=spans, nodes=tuple(nodes), factor=self.factor * m
        )

    def growth(self, fraction: float) -> float:
        """sup |composite| within ``fraction`` of the hull's width outside it, hull included."""
        a, b = self.hull
        margin = fraction * (b - a)
        outside = np.linspace(0.0, margin, 513)
        points = np.concatenate([grid([(a, b)], 4097), a - outside, b + outside])
        with np.errstate(all="ignore"):
            sizes = np.abs(self(points))
        return float(np.max(np.where(np.isnan(sizes), np.inf, sizes)))

    # --- storage --------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON keeps bit for bit."""
        return {
            "kind": "composite",
            "name": self.name,
            "intervals": [list(i) for i in self.intervals],
            "nodes": [node.to_dict() for node in self.nodes],
            "max_error": None if math.isinf(self.max_error) else self.max_error,
            "certified": self.certified,
            "knobs": [[k, list(v) if isinstance(v, tuple) else v] for k, v in self.knobs],
            "factor": self.factor,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Composite:
        """The inverse of ``to_dict``; raises ApproxError on anything else."""
        try:
            return cls(
                data["name"],
                tuple((a, b) for a, b in data["intervals"]),
                tuple(Node.from_dict(n) for n in data["nodes"]),
                math.inf if data["max_error"] is None else data["max_error"],
                data["certified"],
                tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in data["knobs"]),
                data["factor"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ApproxError(
                f"Not a stored composite ({error!r}); write it with Composite.to_json."
            ) from error

    def to_json(self) -> str:
        """JSON text with full precision."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Composite:
        """The composite that ``to_json`` wrote, bit for bit; ApproxError if it is none."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ApproxError(f"Not a stored composite: no JSON ({error}).") from error
        return cls.from_dict(data)


def _rescaled_node(node: Node, m: float) -> Node:
    """The node with every use of the input by a polynomial or a sum multiplied by m."""
    if 0 not in node.inputs or node.kind == "product":
        return node
    if node.polynomial is not None:
        return dataclasses.replace(node, polynomial=node.polynomial.rescaled(m))
    factors = tuple(f * m if j == 0 else f for f, j in zip(node.factors, node.inputs))
    return dataclasses.replace(node, factors=factors)


def _rescale_products(nodes: list[Node], m: float) -> list[Node]:
    """Moves m into the polynomial that multiplies the input, whose coefficients take it freely.

    Where that register has other uses, the products take m x from a node of its own instead: a
    level, but beside the polynomial's.
    """
    products = [n for n in nodes if n.kind == "product" and 0 in n.inputs]
    others = [max(n.inputs) for n in products]
    uses = [j for n in nodes for j in n.inputs]
    if any(j == 0 or nodes[j - 1].polynomial is None or uses.count(j) > 1 for j in others):
        return _with_multiplied_input(nodes, m)
    out = list(nodes)
    for j in others:
        poly = out[j - 1].polynomial
        assert poly is not None
        out[j - 1] = dataclasses.replace(out[j - 1], polynomial=poly.multiplied(m))
    return out


def _with_multiplied_input(nodes: list[Node], m: float) -> list[Node]:
    """The graph with m x as register 1, which products take in place of the input x."""
    out = [Node("sum", (0,), factors=(m,))]
    for node in nodes:
        inputs = tuple(j + 1 if j or node.kind == "product" else 0 for j in node.inputs)
        out.append(dataclasses.replace(node, inputs=inputs))
    return out
