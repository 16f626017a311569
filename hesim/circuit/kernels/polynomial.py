"""A Chebyshev series on encrypted values: its plan, step by step, on every ciphertext."""

from __future__ import annotations

from typing import Any

import numpy as np

from hesim.circuit.builder import Builder
from hesim.circuit.circuit import PlaintextFamily
from hesim.circuit.kernels.elementwise import cleaned
from hesim.circuit.layout import Tensor

__all__ = ["ONE", "apply", "series"]

ONE = 1e-14
"""Distance from 1 of a slope that is taken for 1: what rounding leaves of a gain."""


def apply(b: Builder, source: int, x: Tensor, polynomial: Any) -> Tensor:
    """polynomial(x), in x's layout.

    Slots without an element hold the middle of the domain while the plan runs, so that nothing
    there can grow. An affine map whose slope is 1 or -1 takes no level.
    """
    if np.any(x.node < 0):
        raise AssertionError("elements that are exactly zero are made explicit before a polynomial")
    x = cleaned(b, source, x)
    nodes = [int(n) for n in x.nodes]
    asked = x.referenced(b.columns)
    held = np.stack([asked[n] for n in nodes])
    made = series(b, source, nodes, held, x.gain, polynomial)
    renamed = np.full(len(b.nodes) + 1, -1, np.int32)
    renamed[nodes] = made
    return Tensor(renamed[x.node], x.column, 1.0, x.batch_axis, x.shape)


def series(
    b: Builder, source: int, nodes: list[int], held: np.ndarray, gain: float, polynomial: Any
) -> list[int]:
    """polynomial(gain * slot) of every node.

    Args:
      held: bool (nodes, columns): where elements lie; elsewhere the nodes are zero.
    """
    registers: dict[int, list[int]] = {0: _affine(b, source, nodes, held, gain, polynomial)}
    met = {0: _POINTS}
    for step in polynomial.plan.steps:
        registers[step.out] = _step(b, source, registers, step)
        stage = b.nodes[registers[step.out][0]].stage
        made, met[step.out] = _met(met, step)
        if step.adds and (step.products or step.scalars):
            b.sizes[stage - 1] = float(np.abs(made).max())
        b.sizes[stage] = float(np.abs(met[step.out]).max())
    return registers[polynomial.plan.output]


_POINTS = np.cos(np.linspace(0.0, np.pi, 65))
"""Of the domain, brought to [-1, 1], at which what a register may hold is looked at."""


def _met(met: dict[int, np.ndarray], step: Any) -> tuple[np.ndarray, np.ndarray]:
    """What a register holds at points of the domain, without what is only added, and with it."""
    made = np.zeros(_POINTS.shape)
    for factor, p, q in step.products:
        made += factor * met[p] * met[q]
    for factor, j in step.scalars:
        made += factor * met[j]
    total = made + float(step.constant)
    for factor, j in step.adds:
        total += factor * met[j]
    return made, total


def _affine(
    b: Builder, source: int, nodes: list[int], held: np.ndarray, gain: float, p: Any
) -> list[int]:
    slope, shift = p.scale * gain, p.shift
    if abs(abs(slope) - 1.0) < ONE:
        slope = float(np.sign(slope))
    if slope == 1.0 and shift == 0.0:
        return nodes
    b.begin(source)
    made = []
    numbers = _literals(b, [slope])
    table = np.where(held, 0, -1).astype(np.int32)
    full = table.min(axis=1) >= 0
    vectors = b.pack(
        PlaintextFamily(-1, table, 0, b.batch, b.width, b.columns, 1.0, np.array([shift]))
    )
    (scalar,) = _literals(b, [shift])
    for k, n in enumerate(nodes):
        node = n
        if slope == -1.0:
            node = b.add([(-1, node)])
        elif slope != 1.0:
            node = b.rescale(b.dot_plain([(node, numbers[0])]))
        if shift != 0.0:
            periodic = b.period[n] < b.columns
            node = b.add_plain(node, scalar if full[k] or periodic else (vectors, k))
        made.append(node)
    return b.end(made)


def _step(b: Builder, source: int, registers: dict[int, list[int]], step: Any) -> list[int]:
    width = len(registers[0])
    plains = _literals(b, [c for c, _ in step.scalars] + [step.constant])
    current: list[int] | None = None
    if step.products or step.scalars:
        b.begin(source)
        made = []
        for i in range(width):
            parts = []
            if step.products:
                parts.append(
                    b.dot([(f, registers[p][i], registers[q][i]) for f, p, q in step.products])
                )
            if step.scalars:
                terms = [(registers[j][i], plains[k]) for k, (_, j) in enumerate(step.scalars)]
                parts.append(b.dot_plain(terms))
            node = parts[0] if len(parts) == 1 else b.add([(1, n) for n in parts])
            node = b.rescale(node)
            if step.constant and not step.adds:
                node = b.add_plain(node, plains[-1])
            made.append(node)
        current = b.end(made)
    if step.adds or current is None:
        b.begin(source)
        made = []
        for i in range(width):
            terms = [(k, registers[j][i]) for k, j in step.adds]
            if current is not None:
                terms.insert(0, (1, current[i]))
            node = b.add(terms)
            if step.constant:
                node = b.add_plain(node, plains[-1])
            made.append(node)
        current = b.end(made)
    return current


def _literals(b: Builder, values: list[float]) -> list[tuple[int, int]]:
    index = np.arange(len(values), dtype=np.int32)[:, None]
    number = b.pack(
        PlaintextFamily(
            -1, index, 0, b.batch, b.width, b.columns, 1.0, np.asarray(values, dtype=np.float64)
        )
    )
    return [(number, k) for k in range(len(values))]
