"""Linear maps with public coefficients: matrix products, masks, and changes of layout.

Every such map is a sum of terms `out[slot] += coefficient * in[slot + shift]`. Terms that share the
result's ciphertext, the operand's ciphertext and the shift form one diagonal: a rotation and a
product by one plaintext. Rotations are shared between results, and split into baby and giant steps
where that needs fewer of them (Halevi and Shoup, "Algorithms in HElib", 2014).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hesim.circuit.builder import Builder
from hesim.circuit.circuit import PlaintextFamily
from hesim.circuit.cost import relative_cost
from hesim.circuit.layout import ranks, unique_rows

__all__ = ["Coefficients", "Terms", "apply", "estimate"]


@dataclass(frozen=True, eq=False)
class Terms:
    """Terms of a linear map, flat arrays of equal length.

    Attributes:
      out: number of the result's ciphertext, from 0.
      out_column: column of the result.
      node: operand's node. column: operand's column.
      coefficient: flat index into the coefficients, or None where all are 1.
    """

    out: np.ndarray
    out_column: np.ndarray
    node: np.ndarray
    column: np.ndarray
    coefficient: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Coefficients:
    """Where coefficients come from: a public operand, or literal numbers.

    Attributes:
      operand: index into the public operands, or -1 for `literal`.
      stride: elements between batch members, 0 if shared.
      weight: factor on every coefficient.
      literal: flat numbers where operand is -1.
    """

    operand: int
    stride: int = 0
    weight: float = 1.0
    literal: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class _Diagonals:
    out: np.ndarray  # per diagonal
    node: np.ndarray
    shift: np.ndarray
    table: np.ndarray  # int32 (diagonals, columns): coefficient or -1
    whole: np.ndarray  # bool: the same coefficient may stand in every column
    results: int


def apply(b: Builder, source: int, terms: Terms, coefficients: Coefficients | None) -> list[int]:
    """Emits the map; returns the node of each result ciphertext.

    A map whose coefficients are all 1 and that needs no mask costs additions and rotations only;
    any other costs one level.
    """
    d = _diagonals(b, terms)
    free = coefficients is None and bool(np.all(d.whole))
    step = _fewest_rotations(d.out, d.node, d.shift, b.columns)[1]
    b.begin(source)
    giant = d.shift - d.shift % step if step else np.zeros_like(d.shift)
    plains = None if free else _encode(b, d, giant, coefficients)
    per_result: list[dict[int, list[tuple[int, int]]]] = [{} for _ in range(d.results)]
    for k in range(len(d.out)):
        baby = b.rotate(int(d.node[k]), int(d.shift[k] - giant[k]))
        per_result[int(d.out[k])].setdefault(int(giant[k]), []).append((k, baby))
    out = []
    for groups in per_result:
        partial = []
        for shift, members in sorted(groups.items()):
            if plains is None:
                inner = _sum(b, [n for _, n in members])
            else:
                inner = b.dot_plain([(n, plains[k]) for k, n in members])
            partial.append(b.rotate(inner, shift))
        total = _sum(b, partial)
        if plains is not None:
            total = b.rescale(total)
        elif b.nodes[total].stage != len(b.stages):
            total = b.add([(1, total)])  # an operand as it is: outputs belong to their own stage
        out.append(total)
    return b.end(out)


def estimate(b: Builder, terms: Terms, public: bool) -> float:
    """Predicted seconds of the map relative to one rotation, without emitting it."""
    shift = _shifts(b, terms)
    keys, _ = unique_rows(np.stack([terms.out, terms.node, shift], 1))
    rotations, _ = _fewest_rotations(keys[:, 0], keys[:, 1], keys[:, 2], b.columns)
    results = len(np.unique(terms.out))
    return relative_cost(
        rotations=rotations,
        plain_products=len(keys) if public else 0,
        rescales=results if public else 0,
        additions=len(keys),
    )


def _sum(b: Builder, nodes: list[int]) -> int:
    return nodes[0] if len(nodes) == 1 else b.add([(1, n) for n in nodes])


def _shifts(b: Builder, t: Terms) -> np.ndarray:
    shift = (t.column.astype(np.int64) - t.out_column) % b.columns
    period = np.asarray(b.period)[t.node]
    return shift % period


def _diagonals(b: Builder, t: Terms) -> _Diagonals:
    shift = _shifts(b, t)
    keys, inverse = unique_rows(np.stack([t.out, t.node, shift], 1))
    coefficient = np.zeros(len(inverse), np.int64) if t.coefficient is None else t.coefficient
    # Where the operand is a broadcast, a place may carry several coefficients, or one several
    # times: one diagonal each.
    cells = np.stack([inverse, t.out_column, coefficient], 1)
    layer_of_cell = ranks(cells[:, 0] * b.columns + cells[:, 1])
    extended = np.stack([cells[:, 0], layer_of_cell], 1)
    layers, diagonal = unique_rows(extended)
    b.reserve_nodes(len(layers), len(layers))
    table = np.full((len(layers), b.columns), -1, np.int32)
    table[diagonal, cells[:, 1]] = cells[:, 2]
    base = keys[layers[:, 0]]
    out, node, shift = base[:, 0], base[:, 1], base[:, 2]
    results = int(t.out.max()) + 1 if len(t.out) else 0
    wanted = np.zeros((results, b.columns), bool)
    wanted[t.out, t.out_column] = True
    return _Diagonals(out, node, shift, table, _whole(b, out, node, shift, table, wanted), results)


def _whole(
    b: Builder,
    out: np.ndarray,
    node: np.ndarray,
    shift: np.ndarray,
    table: np.ndarray,
    wanted: np.ndarray,
) -> np.ndarray:
    """Diagonals that may carry one coefficient everywhere: where it is not asked for, the result
    has no element, or the operand is zero."""
    asked = table >= 0
    same = np.where(asked, table, np.iinfo(table.dtype).max).min(axis=1) == table.max(axis=1)
    nodes, place = np.unique(node, return_inverse=True)
    support = np.stack([b.support[int(n)] for n in nodes]) if len(nodes) else np.zeros((0, 0), bool)
    columns = np.arange(b.columns)
    chunk = max(1, 2**22 // b.columns)
    for start in range(0, len(out), chunk):
        part = slice(start, start + chunk)
        moved = support[place[part, None], (columns + shift[part, None]) % b.columns]
        same[part] &= ~np.any(wanted[out[part]] & ~asked[part] & moved, axis=1)
    return same


def _encode(b: Builder, d: _Diagonals, giant: np.ndarray, coefficients: Coefficients | None):
    """Plaintext of each diagonal: scalars and vectors go to two packs."""
    c = coefficients or Coefficients(-1, literal=np.ones(1))
    table = d.table
    plains: list[tuple[int, int]] = [(-1, -1)] * len(d.out)
    scalar = d.whole & (c.stride == 0)
    common = {
        "operand": c.operand,
        "weight": c.weight,
        "literal": c.literal,
        "width": b.width,
        "columns": b.columns,
    }
    for chosen, is_scalar in ((np.flatnonzero(scalar), True), (np.flatnonzero(~scalar), False)):
        if not len(chosen):
            continue
        if is_scalar:
            index = table[chosen].max(axis=1, keepdims=True)
        else:
            index = np.stack([np.roll(table[k], int(giant[k])) for k in chosen])
        number = b.pack(
            PlaintextFamily(
                index=np.ascontiguousarray(index), stride=c.stride, batch=b.batch, **common
            )
        )
        for row, k in enumerate(chosen):
            plains[k] = (number, row)
    return plains


def _fewest_rotations(
    out: np.ndarray, node: np.ndarray, shift: np.ndarray, columns: int
) -> tuple[int, int]:
    """(rotations, baby-step modulus), modulus 0 meaning no giant steps."""
    pairs = np.unique(node[shift > 0].astype(np.int64) * columns + shift[shift > 0])
    best, chosen = len(pairs), 0
    if best < 4:
        return best, 0
    unit = int(np.gcd.reduce(shift[shift > 0]))
    step = 2 * unit
    while step < columns:
        baby = shift % step
        giant = shift - baby
        moved = baby > 0
        count = len(np.unique(node[moved].astype(np.int64) * columns + baby[moved]))
        turned = giant > 0
        count += len(np.unique(out[turned].astype(np.int64) * columns + giant[turned]))
        if count < best:
            best, chosen = count, step
        step *= 2
    return best, chosen
