"""Straight-line plans as a Circuit carries them out: what each instruction adds, and where.

A polynomial's plan says which registers there are, not to which levels the compiler brings each
before it is used, nor what is refreshed on the way. Both are in the instructions between one
ciphertext of the operand and one of the result, read here as nodes for
``hesim.noise.plans.output_variance``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hesim.circuit.circuit import Circuit, Kind
from hesim.noise.plans import Node

__all__ = ["CircuitPlan", "circuit_plan"]

_KEPT = (Kind.RELINEARIZE, Kind.RESCALE, Kind.REFRESH, Kind.DROP)


@dataclass(frozen=True)
class CircuitPlan:
    """One elementwise operation on slot values.

    Attributes:
      nodes: for ``hesim.noise.plans.output_variance``; node 0 is the operand's slot value.
      weights: variance that each node's instructions add, in slot values squared.
      operand_gain: value of the operand over its slot value, with its sign.
      refreshes: how many each node's value goes through, which `weights` count too.
    """

    nodes: tuple[Node, ...]
    weights: tuple[float, ...]
    operand_gain: float
    refreshes: tuple[int, ...] = ()


def circuit_plan(
    circuit: Circuit,
    result: int,
    whole: np.ndarray,
    added: Callable[[int], float],
    operand_gain: float,
) -> CircuitPlan | None:
    """The plan that leads to ciphertext ``result``.

    Args:
      circuit: the instructions.
      result: a ciphertext of the operation's result.
      whole: bool[instructions], ciphertexts that hold whole tensors; the operand's are among them.
      added: variance that an instruction adds, in slot values squared.
      operand_gain: see ``CircuitPlan``.

    Returns:
      None if it is more than one ciphertext's arithmetic: where slots move, several ciphertexts
      meet, or a plaintext holds more than one number beside zeros.
    """
    order, entry = _between(circuit, result, whole)
    if entry is None:
        return None
    uses = np.zeros(len(circuit), np.int64)
    for i in order:
        np.add.at(uses, circuit.operands(i), 1)
    place = {entry: 0}
    nodes: list[Node] = []
    weights: list[float] = []
    refreshes: list[int] = []
    for i in order:
        kind, arguments = int(circuit.kind[i]), circuit.operands(i)
        if kind in _KEPT:
            before = place[arguments[0]]
            if before and uses[arguments[0]] == 1:
                place[i] = before
                weights[before - 1] += added(i)
                refreshes[before - 1] += kind == Kind.REFRESH
                continue
        node = _node(circuit, i, place)
        if node is None:
            return None
        nodes.append(node)
        weights.append(added(i))
        refreshes.append(int(kind == Kind.REFRESH))
        place[i] = len(nodes)
    if place[result] != len(nodes):
        nodes.append(Node((), ((1.0, place[result]),), 0.0, False, False, 0))
        weights.append(0.0)
        refreshes.append(0)
    return CircuitPlan(tuple(nodes), tuple(weights), operand_gain, tuple(refreshes))


def _between(circuit: Circuit, result: int, whole: np.ndarray) -> tuple[list[int], int | None]:
    """Instructions that lead to the result, in order, and the ciphertext that they start from."""
    found: set[int] = set()
    entries: set[int] = set()
    waiting = [result]
    while waiting:
        i = waiting.pop()
        if i in found:
            continue
        if whole[i] and i != result:
            entries.add(i)
            continue
        if circuit.kind[i] == Kind.ROTATE:
            return [], None
        found.add(i)
        waiting.extend(circuit.operands(i))
    return sorted(found), entries.pop() if len(entries) == 1 else None


def _node(circuit: Circuit, i: int, place: dict[int, int]) -> Node | None:
    part, kind = circuit.args(i), int(circuit.kind[i])
    first = [place[a] for a in circuit.arg[part].tolist()]
    factors = circuit.factor[part].tolist()
    if kind == Kind.DOT:
        second = [place[a] for a in circuit.arg2[part].tolist()]
        return Node(tuple(zip(factors, first, second, strict=True)), (), 0.0, True, True, 0)
    constant = 0.0
    if kind in (Kind.DOT_PLAIN, Kind.ADD_PLAIN):
        numbers = [_number(circuit, int(p)) for p in circuit.arg2[part]]
        known = [n for n in numbers if n is not None]
        if len(known) < len(numbers):
            return None
        if kind == Kind.DOT_PLAIN:
            factors = known
        else:
            factors, constant = [1.0], known[0]
    terms = tuple((float(f), a) for f, a in zip(factors, first, strict=True))
    return Node((), terms, constant, True, False, 0)


def _number(circuit: Circuit, p: int) -> float | None:
    """The number in the slots of a plaintext that are used; None if there are several."""
    pack = circuit.packs[int(circuit.plain_pack[p])]
    if pack.operand >= 0 or pack.literal is None or pack.stride:
        return None
    asked = pack.row(int(circuit.plain_row[p]))
    found = np.unique(pack.literal[asked[asked >= 0]])
    return float(found[0]) * pack.weight if len(found) == 1 else None
