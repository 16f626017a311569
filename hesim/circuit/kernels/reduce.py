"""Sums over elements: additions across ciphertexts, rotations by doubling within them."""

from __future__ import annotations

import numpy as np

from hesim.circuit.builder import Builder
from hesim.circuit.kernels import linear
from hesim.circuit.layout import unique_rows

__all__ = ["apply", "rotate_and_sum", "signatures"]


def apply(
    b: Builder, source: int, node: np.ndarray, column: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Sums the rows of a table of elements.

    Args:
      node, column: int (results, terms): places of the summands; node -1 is zero.

    Returns:
      (node, column, gain): places (results,) of the sums and the factor still to apply to them.
    """
    results = len(node)
    present = node >= 0
    first = np.argmax(present, axis=1)
    out_column = np.where(present.any(1), column[np.arange(results), first], 0)
    shift = np.where(present, (column - out_column[:, None]) % b.columns, 0)
    shift %= np.asarray([*b.period, b.columns])[node]
    pairs, pair = unique_rows(np.stack([node.reshape(-1), shift.reshape(-1)], 1))
    pair = pair.reshape(node.shape)
    klass, members, counts = signatures(pair, present)
    multiple = {int(c) for count in counts for c in count}
    if len(multiple) > 1:
        return _weighted(b, source, node, out_column, pairs, klass, members, counts)
    out_nodes: list[int] = []
    todo = []
    for k, terms in enumerate(members):
        places = pairs[terms]
        if len(places) == 0:
            out_nodes.append(-1)
        elif len(places) == 1 and places[0, 1] == 0:
            out_nodes.append(int(places[0, 0]))
        else:
            out_nodes.append(-2)
            todo.append((k, places))
    if todo:
        b.begin(source)
        made = b.end([_sum_places(b, places) for _, places in todo])
        for (k, _), n in zip(todo, made, strict=True):
            out_nodes[k] = n
    gain = float(multiple.pop()) if multiple else 1.0
    return np.asarray(out_nodes, np.int32)[klass], out_column.astype(np.int32), gain


def signatures(
    ids: np.ndarray, present: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Classes of rows that hold the same multiset of ids.

    Returns:
      (class of each row, distinct ids of each class, how often each occurs in it).
    """
    weights = np.random.default_rng(0).integers(
        1, 2**63, int(ids.max(initial=0)) + 1, dtype=np.uint64
    )
    with np.errstate(over="ignore"):
        key = np.sum(np.where(present, weights[ids], np.uint64(0)), axis=1, dtype=np.uint64)
    _, first, klass = np.unique(key, return_index=True, return_inverse=True)
    members, counts = [], []
    for row in first:
        distinct, count = np.unique(ids[row][present[row]], return_counts=True)
        members.append(distinct)
        counts.append(count)
    return klass.reshape(-1), members, counts


def _sum_places(b: Builder, places: np.ndarray) -> int:
    """Sum of rotations of nodes: nodes with equal sets of shifts are added before they rotate."""
    shifts: dict[int, list[int]] = {}
    for n, s in places:
        shifts.setdefault(int(n), []).append(int(s))
    groups: dict[tuple[int, ...], list[int]] = {}
    for n, s in shifts.items():
        groups.setdefault(tuple(sorted(s)), []).append(n)
    parts = []
    for steps, nodes in groups.items():
        total = nodes[0] if len(nodes) == 1 else b.add([(1, n) for n in nodes])
        parts.append(rotate_and_sum(b, total, list(steps)))
    return parts[0] if len(parts) == 1 else b.add([(1, n) for n in parts])


def rotate_and_sum(b: Builder, node: int, steps: list[int]) -> int:
    """Sum of rotations of one node by ascending steps, by doubling where they allow it.

    A sum over a whole cycle of equal steps has that step as its period.
    """
    total = _rotated_sum(b, node, steps)
    spacing = steps[1] - steps[0] if len(steps) > 1 else 0
    if spacing and steps == list(range(0, b.columns, spacing)):
        b.period[total] = min(b.period[total], spacing)
    return total


def _rotated_sum(b: Builder, node: int, steps: list[int]) -> int:
    """The sum of rotations by steps, which are counted from the one after the widest gap of the
    cycle, so that a run of steps stays one where it goes around.
    """
    gaps = [(s - before) % b.columns for before, s in zip([steps[-1], *steps[:-1]], steps)]
    start = steps[gaps.index(max(gaps))] if len(steps) > 1 and len(set(gaps)) > 1 else steps[0]
    return b.rotate(_summed_from(b, node, sorted((s - start) % b.columns for s in steps)), start)


def _summed_from(b: Builder, node: int, steps: list[int]) -> int:
    """The sum of rotations by ascending steps from 0 on: runs of equal distance by doubling, runs
    of runs one after the other, others one by one.
    """
    while len(steps) > 1:
        apart = steps[1]
        length = next((k for k, s in enumerate(steps) if s != k * apart), len(steps))
        outer = steps[::length]
        if steps != [o + k * apart for o in outer for k in range(length)]:
            return b.add([(1, b.rotate(node, s)) for s in steps])
        node, steps = _doubled(b, node, apart, length), outer
    return node


def _doubled(b: Builder, node: int, apart: int, count: int) -> int:
    """The sum of rotations by 0, apart, ..., (count - 1) * apart: as many steps, and so keys, as
    `count` has bits.
    """
    power = node  # the sum of `size` rotations
    rest: int | None = None  # the sum of as many as the lower bits of `count` say
    size = 1
    while True:
        if count & size:
            turned = None if rest is None else b.rotate(rest, size * apart)
            rest = power if turned is None else b.add([(1, power), (1, turned)])
        if 2 * size > count:
            assert rest is not None, "there is something to add up"
            return rest
        power = b.add([(1, power), (1, b.rotate(power, size * apart))])
        size *= 2


def _weighted(
    b: Builder,
    source: int,
    node: np.ndarray,
    out_column: np.ndarray,
    pairs: np.ndarray,
    klass: np.ndarray,
    members: list[np.ndarray],
    counts: list[np.ndarray],
):
    """Summands that occur unequally often (a sum over a partly broadcast axis): one level."""
    live = [k for k in range(len(members)) if len(members[k])]
    number = {k: i for i, k in enumerate(live)}
    rows = [r for r in range(len(node)) if klass[r] in number]
    columns: list[np.ndarray] = []
    for r in rows:
        k = int(klass[r])
        place = pairs[members[k]]
        columns.append(
            np.stack(
                [
                    np.full(len(place), number[k]),
                    np.full(len(place), out_column[r]),
                    place[:, 0],
                    (out_column[r] + place[:, 1]) % b.columns,
                    counts[k],
                ],
                1,
            )
        )
    table = unique_rows(np.concatenate(columns))[0]
    literal = np.arange(int(table[:, 4].max()) + 1, dtype=np.float64)
    made = linear.apply(
        b,
        source,
        linear.Terms(*(table[:, i] for i in range(5))),
        linear.Coefficients(-1, literal=literal),
    )
    out = np.full(len(members), -1, np.int32)
    out[live] = made
    return out[klass], out_column.astype(np.int32), 1.0
