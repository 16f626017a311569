"""What columns of a Builder's nodes hold: which are zero, which are copies, and which are read.

Every element of an input and of a public operand is taken for a number drawn at random modulo a
prime, and the nodes are computed with these: sums, products, rotations and masks are polynomials,
so columns that come out equal hold the same whatever the elements are, and those that come out zero
are zero. It is done with two draws at once; polynomials of a high degree never arise, since what a
product of ciphertexts leaves is drawn anew. Imports no JAX.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hesim.circuit.builder import Builder, Node, Plain, Stage
from hesim.circuit.circuit import Kind, PlaintextFamily
from hesim.circuit.nodes import Terms

if TYPE_CHECKING:
    from jaxtyping import Bool, Int64

__all__ = ["PRIME", "fingerprints", "needed", "number", "work"]

PRIME = (1 << 31) - 1
"""What fingerprints are taken modulo."""

_DRAWS = np.array([[0x9E3779B97F4A7C15], [0xC2B2AE3D27D4EB4F]], np.uint64)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def work(b: Builder, live: Collection[int]) -> int:
    """Columns times terms of the nodes that live: what `fingerprints` takes time by."""
    return b.columns * sum(len(b.nodes[n].terms) or 1 for n in live)


def fingerprints(
    b: Builder, live: Collection[int], inputs: Sequence[PlaintextFamily], wanted: Collection[int]
) -> dict[int, Int64[np.ndarray, "draws columns"]]:
    """By node of `wanted`, a number a column: equal ones hold the same, 0 is zero.

    Args:
      live: nodes that results depend on, in any order.
      inputs: families of encrypted inputs, of which input nodes are rows.

    Examples:
      >>> import numpy as np
      >>> from hesim.circuit.builder import Builder
      >>> from hesim.circuit.circuit import PlaintextFamily
      >>> from hesim.circuit.refreshes.contents import fingerprints
      >>> b = Builder(columns=4, width=1, batch=1)
      >>> family = PlaintextFamily(0, np.array([[0, 1, -1, -1]]), columns=4)
      >>> _ = b.begin(-1)
      >>> (x,) = b.end([b.input(0, np.array([True, True, False, False]))])
      >>> _ = b.begin(0)
      >>> (y,) = b.end([b.add([(1, x), (1, b.rotate(x, 2))])])
      >>> held = fingerprints(b, {x, y}, [family], {x, y})
      >>> (held[x] == 0)[0].tolist(), bool((held[y] == np.roll(held[y], 2, axis=1)).all())
      ([False, False, True, True], True)
    """
    rows = [(k, r) for k, family in enumerate(inputs) for r in range(len(family))]
    order = sorted(live)
    last = _last_uses(b, order)
    outputs = {n for s in b.stages if _multiplies(b, s) for n in s.outputs}
    held: dict[int, np.ndarray] = {}
    found: dict[int, np.ndarray] = {}
    for n in order:
        node = b.nodes[n]
        if node.kind == Kind.INPUT:
            number, row = rows[node.param]
            value = _drawn(inputs[number], row, b.columns, -2 - number)
        else:
            value = _value(b, node, held)
        if n in outputs:
            value = _anew(value)
        held[n] = value
        if n in wanted:
            found[n] = value
        for used in last.get(n, ()):
            del held[used]
    return found


def needed(
    b: Builder,
    live: Collection[int],
    wanted: Collection[int],
    results: Mapping[int, Bool[np.ndarray, " columns"]],
) -> dict[int, Bool[np.ndarray, " columns"]]:
    """By node of `wanted`, the columns that some result depends on, as far as plaintexts show it.

    Args:
      live: as for `fingerprints`.
      results: by node, the columns that are read of it at the end.
    """
    held = {n: columns.copy() for n, columns in results.items()}
    found: dict[int, np.ndarray] = {}
    masks: dict[Plain, np.ndarray] = {}
    nothing = np.zeros(b.columns, bool)
    for n in sorted(live, reverse=True):
        node, own = b.nodes[n], held.pop(n, nothing)
        if n in wanted:
            found[n] = own
        if node.kind == Kind.DOT_PLAIN:
            for _, a, plain in node.terms:
                if plain not in masks:
                    masks[plain] = b.packs[plain[0]].row(plain[1]) >= 0
                _note(held, a, own & masks[plain])
        elif node.kind == Kind.ROTATE:
            _note(held, node.first[0], np.roll(own, node.param))
        else:
            for a in {*node.first, *node.second}:
                _note(held, a, own)
    return found


def _multiplies(b: Builder, stage: Stage) -> bool:
    return any(b.nodes[n].kind == Kind.DOT for n in stage.nodes)


def _note(held: dict[int, np.ndarray], node: int, columns: np.ndarray) -> None:
    held[node] = held[node] | columns if node in held else columns


def _last_uses(b: Builder, order: Sequence[int]) -> dict[int, list[int]]:
    """By node, those that it is the last to use; itself where nothing uses it."""
    last = {}
    for n in order:
        last[n] = n
        for used in {*b.nodes[n].first, *b.nodes[n].second}:
            last[used] = n
    found: dict[int, list[int]] = {}
    for used, n in last.items():
        found.setdefault(n, []).append(used)
    return found


def _value(b: Builder, node: Node, held: Mapping[int, np.ndarray]) -> np.ndarray:
    """int64 (draws, columns) of a node, below the prime."""
    kind, terms = node.kind, node.terms
    if kind == Kind.ROTATE:
        return np.roll(held[node.first[0]], -node.param, axis=1)
    if kind == Kind.ADD_PLAIN:
        ((_, a, plain),) = terms
        return (held[a] + _plain(b, plain)) % PRIME
    if kind in (Kind.ADD, Kind.DOT, Kind.DOT_PLAIN):
        total = np.zeros((len(_DRAWS), b.columns), np.int64)
        for factor, a, second in terms:
            if kind == Kind.ADD:
                total += factor * held[a]
            else:
                other = held[second] if kind == Kind.DOT else _plain(b, second)
                total += factor * (held[a] * other % PRIME)
        return total % PRIME
    first = terms.first if isinstance(terms, Terms) else [a for _, a, _ in terms]
    return held[first[0]]


def _plain(b: Builder, plain: Plain) -> np.ndarray:
    family = b.packs[plain[0]]
    return _drawn(family, plain[1], family.rows.columns, family.operand)


def _drawn(family: PlaintextFamily, row: int, columns: int, operand: int) -> np.ndarray:
    """int64 (draws, columns): numbers for what a row of a family holds of the first member."""
    line = np.broadcast_to(family.row(row), columns).astype(np.int64)
    if operand == -1:
        assert family.literal is not None
        numbers = np.hstack([number(float(x) * family.weight) for x in family.literal])
        return np.where(line >= 0, numbers[:, np.maximum(line, 0)], 0)
    # Elements that other members of the batch have elsewhere are others for all members.
    drawn = _hashed(line + ((operand * 1_000_003 + family.stride) << 32))
    if operand >= 0 and family.weight != 1.0:
        drawn = drawn * number(family.weight) % PRIME
    return np.where(line >= 0, drawn, 0)


def number(value: float) -> Int64[np.ndarray, "draws 1"]:
    """The fingerprint of a number that is known; of whole ones that number itself."""
    if value.is_integer() and abs(value) < PRIME:
        return np.full((len(_DRAWS), 1), int(value) % PRIME)
    return _hashed(np.array([value]).view(np.int64))


def _anew(value: np.ndarray) -> np.ndarray:
    """Other numbers for what is equal and not zero."""
    both = value[0].astype(np.uint64) << np.uint64(31) | value[1].astype(np.uint64)
    return np.where(np.any(value != 0, axis=0), _hashed(both), 0)


def _hashed(numbers: np.ndarray) -> np.ndarray:
    """int64 (draws, len(numbers)): drawn for each of these, from 1 to below the prime."""
    x = numbers.astype(np.uint64)[None, :] * np.uint64(0xD6E8FEB86659FD93) + _DRAWS
    x = (x ^ (x >> np.uint64(30))) * _MIX[0]
    x = (x ^ (x >> np.uint64(27))) * _MIX[1]
    x ^= x >> np.uint64(31)
    return (x % np.uint64(PRIME - 1)).astype(np.int64) + 1
