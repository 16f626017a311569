"""Lowering: a rule per primitive, from tensors to kernels. Adding an operation is adding a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from hesim.circuit.batching import linear_index
from hesim.circuit.builder import Builder
from hesim.circuit.kernels import elementwise, linear, polynomial, product, reduce
from hesim.circuit.layout import Tensor, ranks, unique_rows
from hesim.circuit.moves import FREE_MOVES, INDEXED_MOVES, move_table
from hesim.circuit.publics import Publics
from hesim.errors import LayoutError
from hesim.program import Equation, Literal, Program, Var
from hesim.trace import IDENTITIES

__all__ = ["Lowering"]

_LARGEST = 2 * 10**8
"""Terms of one contraction that the tables may hold."""

_WHOLE = 2
"""Largest whole ratio of two gains that repeated addition bridges; more would inflate the slots."""

_GAIN_BITS = 7
"""Bits by which a pending gain may let slots differ from their values before a product."""


class Lowering:
    """One pass over a Program with input layouts fixed.

    Attributes:
      values: Tensor per encrypted value id.
      builder: the stages so far.
    """

    def __init__(
        self, program: Program, publics: Publics, builder: Builder, axes: dict[int, int | None]
    ):
        self.program = program
        self.publics = publics
        self.b = builder
        self.axes = axes
        self.values: dict[int, Tensor] = {}
        self.source = -1

    def run(self) -> None:
        """Lowers every operation on encrypted values, in order."""
        for number, eqn in enumerate(self.program.ops):
            self.source = number
            rule = _RULES.get(eqn.name)
            assert rule is not None, f"no rule for {eqn.name}"
            out = rule(self, eqn)
            for var, tensor in zip(eqn.outputs, out, strict=True):
                self.values[var.id] = tensor

    # --- what the rules share -------------------------------------------------------------------

    def axis(self, var: Var) -> int | None:
        return self.axes.get(var.id)

    def tensor(self, value: Var | Literal) -> Tensor:
        assert isinstance(value, Var)
        return self.values[value.id]

    def spread(self, value: Var | Literal, var: Var) -> Tensor:
        """An operand broadcast to the shape of an elementwise result."""
        x, axis = self.tensor(value), self.axis(var)
        shape = stripped(var.shape, axis)
        node, column = x.node, x.column
        if axis is not None and x.batch_axis is None and node.ndim == len(var.shape):
            node, column = node.take(0, axis=axis), column.take(0, axis=axis)
        if node.shape == shape:
            return Tensor(node, column, x.gain, axis, var.shape)
        return Tensor(
            np.broadcast_to(node, shape), np.broadcast_to(column, shape), x.gain, axis, var.shape
        )

    def result(self, var: Var, node: np.ndarray, column: np.ndarray, gain: float) -> Tensor:
        shape = stripped(var.shape, self.axis(var))
        return Tensor(
            np.asarray(node, np.int32).reshape(shape),
            np.asarray(column, np.int32).reshape(shape),
            gain,
            self.axis(var),
            var.shape,
        )

    def public(
        self, value: Var | Literal, shape: tuple[int, ...], axis: int | None, kind: str = "value"
    ) -> tuple[int, np.ndarray, int]:
        """(operand, index of the first member, stride) of a public value spread over `shape`."""
        view = self.publics.view(value, shape, kind)
        split = linear_index(view.index, axis)
        if split is None:
            raise LayoutError(
                "a public operand is laid out irregularly along the batch axis; compile with batch=False"
            )
        return view.operand, split[0], split[1]

    def with_gain(self, x: Tensor, gain: float) -> Tensor:
        """x with its slots rescaled so that its gain is the one asked for."""
        if x.gain == gain or not len(x.nodes):
            return Tensor(x.node, x.column, gain, x.batch_axis, x.shape)
        made = elementwise.scaled(self.b, self.source, x.nodes, x.gain / gain)
        return Tensor(self._renamed(x.node, made), x.column, gain, x.batch_axis, x.shape)

    def _renamed(self, node: np.ndarray, made: dict[int, int]) -> np.ndarray:
        table = np.full(len(self.b.nodes) + 1, -1, np.int32)
        for old, new in made.items():
            table[old] = new
        return table[node]

    def sum(self, var: Var, left: Tensor, right: Tensor, sign: int) -> Tensor:
        """left + sign * right."""
        if not len(right.nodes):
            return self.result(var, left.node, left.column, left.gain)
        if not len(left.nodes):
            return self.result(var, right.node, right.column, sign * right.gain)
        ratio = sign * right.gain / left.gain
        if _whole(ratio):
            factors, gain = (1, round(ratio)), left.gain
        elif _whole(1 / ratio):
            factors, gain = (round(1 / ratio), 1), sign * right.gain
        else:
            fewer = len(left.nodes) < len(right.nodes)
            if fewer:
                left = self.with_gain(left, right.gain)
            else:
                right = self.with_gain(right, left.gain)
            factors, gain = (1, sign), left.gain
        node, column = elementwise.add(self.b, self.source, left, right, factors)
        return self.result(var, node, column, gain)

    def plus_public(self, var: Var, x: Tensor, value: Var | Literal, sign: float) -> Tensor:
        """x + sign * public."""
        if self.publics.uniform(value) == 0.0:
            return self.result(var, x.node, x.column, x.gain)
        x = elementwise.explicit(self.b, self.source, x)
        operand, index, stride = self.public(value, var.shape, self.axis(var))
        node, column = elementwise.add_public(
            self.b, self.source, x, operand, index, stride, sign / x.gain
        )
        return self.result(var, node, column, x.gain)

    def bounded(self, x: Tensor) -> Tensor:
        """x with a pending gain that is far from 1 applied: one level."""
        if abs(math.log2(abs(x.gain))) <= _GAIN_BITS:
            return x
        return self.with_gain(x, math.copysign(1.0, x.gain))

    def product(self, var: Var, left, right, gain: float) -> Tensor:
        """Sum over the last axis of left * right, each (node, column) of shape (results, terms)."""
        node, column, times = product.apply(self.b, self.source, left, right)
        return self.result(var, node, column, gain * times)


def stripped(shape: Sequence[int], axis: int | None) -> tuple[int, ...]:
    """`shape` without the batch axis."""
    return tuple(d for k, d in enumerate(shape) if k != axis)


def _whole(ratio: float) -> bool:
    return abs(ratio) <= _WHOLE and abs(ratio) >= 1 and float(ratio).is_integer()


# --- rules ------------------------------------------------------------------------------------------


def _identity(lo: Lowering, eqn: Equation) -> list[Tensor]:
    out = []
    for var, value in zip(eqn.outputs, eqn.inputs, strict=False):
        x = lo.tensor(value)
        out.append(lo.result(var, x.node, x.column, x.gain))
    return out


def _add(lo: Lowering, eqn: Equation, sign: int = 1) -> list[Tensor]:
    (var,), (a, b) = eqn.outputs, eqn.inputs
    if a.encrypted and b.encrypted:
        return [lo.sum(var, lo.spread(a, var), lo.spread(b, var), sign)]
    if a.encrypted:
        return [lo.plus_public(var, lo.spread(a, var), b, float(sign))]
    x = lo.spread(b, var)
    turned = Tensor(x.node, x.column, sign * x.gain, x.batch_axis, x.shape)
    return [lo.plus_public(var, turned, a, 1.0)]


def _sub(lo: Lowering, eqn: Equation) -> list[Tensor]:
    return _add(lo, eqn, -1)


def _neg(lo: Lowering, eqn: Equation) -> list[Tensor]:
    x = lo.tensor(eqn.inputs[0])
    return [lo.result(eqn.outputs[0], x.node, x.column, -x.gain)]


def _mul(lo: Lowering, eqn: Equation) -> list[Tensor]:
    (var,), (a, b) = eqn.outputs, eqn.inputs
    if a.encrypted and b.encrypted:
        return [_squared(lo, var, lo.spread(a, var), lo.spread(b, var))]
    secret, public = (a, b) if a.encrypted else (b, a)
    return [_scaled(lo, var, lo.spread(secret, var), public, "value")]


def _div(lo: Lowering, eqn: Equation) -> list[Tensor]:
    (var,), (x, divisor) = eqn.outputs, eqn.inputs
    return [_scaled(lo, var, lo.spread(x, var), divisor, "inverse")]


def _scaled(lo: Lowering, var: Var, x: Tensor, value: Var | Literal, kind: str) -> Tensor:
    number = lo.publics.uniform(value)
    if number == 0.0 and kind == "value":
        return lo.result(var, np.full_like(x.node, -1), x.column, 1.0)
    if number is not None and np.isfinite(number) and number != 0.0:
        return lo.result(
            var, x.node, x.column, x.gain * number if kind == "value" else x.gain / number
        )
    operand, index, stride = lo.public(value, var.shape, lo.axis(var), kind)
    node, column = elementwise.scaled_by_public(lo.b, lo.source, x, operand, index, stride, 1.0)
    return lo.result(var, node, column, x.gain)


def _squared(lo: Lowering, var: Var, a: Tensor, b: Tensor) -> Tensor:
    same = a is b
    a = lo.bounded(a)
    b = a if same else lo.bounded(b)
    left, right = (
        (t.node.reshape(-1, 1).astype(np.int64), t.column.reshape(-1, 1).astype(np.int64))
        for t in (a, b)
    )
    return lo.product(var, left, right, a.gain * b.gain)


def _square(lo: Lowering, eqn: Equation) -> list[Tensor]:
    x = lo.tensor(eqn.inputs[0])
    return [_squared(lo, eqn.outputs[0], x, x)]


def _integer_pow(lo: Lowering, eqn: Equation) -> list[Tensor]:
    (var,), y = eqn.outputs, eqn.params["y"]
    powers = {1: lo.tensor(eqn.inputs[0])}
    if y == 0:
        zero = lo.result(var, np.full_like(powers[1].node, -1), powers[1].column, 1.0)
        base = Tensor(powers[1].node, powers[1].column, 1.0, powers[1].batch_axis, powers[1].shape)
        return [_constant(lo, var, base, zero, 1.0)]

    def power(k: int) -> Tensor:
        if k not in powers:
            half = 1 << ((k - 1).bit_length() - 1)
            powers[k] = _squared(lo, var, power(half), power(k - half))
        return powers[k]

    return [power(y)]


def _constant(lo: Lowering, var: Var, like: Tensor, zero: Tensor, value: float) -> Tensor:
    """An encrypted constant in the layout of `like`."""
    made = elementwise.scaled(lo.b, lo.source, like.nodes, 0.0)
    node = lo._renamed(like.node, made)
    x = Tensor(node, like.column, 1.0, zero.batch_axis, zero.shape)
    return lo.plus_public(var, x, Literal(np.asarray(value)), 1.0)


def _dot_general(lo: Lowering, eqn: Equation) -> list[Tensor]:
    (var,), (a, b) = eqn.outputs, eqn.inputs
    (ca, cb), (ba, bb) = eqn.params["dimension_numbers"]
    letters = _dimensions(len(a.shape), len(b.shape), ca, cb, ba, bb)
    if a.encrypted and b.encrypted:
        return [_dot_encrypted(lo, var, a, b, letters)]
    if a.encrypted:
        return [_dot_public(lo, var, a, b, *letters)]
    return [_dot_public(lo, var, b, a, letters[1], letters[0], letters[2])]


def _dimensions(rank_a, rank_b, ca, cb, ba, bb) -> tuple[list[int], list[int], list[int]]:
    """Labels of the dimensions of both operands and of the result, as in einsum."""
    labels_a: list[int] = [-1] * rank_a
    labels_b: list[int] = [-1] * rank_b
    label = 0
    out = []
    for i, j in zip(ba, bb, strict=True):
        labels_a[i] = labels_b[j] = label
        out.append(label)
        label += 1
    for i, j in zip(ca, cb, strict=True):
        labels_a[i] = labels_b[j] = label
        label += 1
    for labels in (labels_a, labels_b):
        for k, known in enumerate(labels):
            if known < 0:
                labels[k] = label
                out.append(label)
                label += 1
    return labels_a, labels_b, out


def _arranged(
    table: np.ndarray, labels: Sequence[int], order: Sequence[int], sizes: dict[int, int]
):
    """`table` with its axes in the given order of labels, absent ones broadcast."""
    present = [x for x in order if x in labels]
    moved = table.transpose([list(labels).index(x) for x in present])
    view = moved.reshape([sizes[x] if x in labels else 1 for x in order])
    return np.broadcast_to(view, [sizes[x] for x in order])


def _dot_encrypted(lo: Lowering, var: Var, a: Var, b: Var, letters) -> Tensor:
    la, lb, out = letters
    x, y = lo.bounded(lo.tensor(a)), lo.bounded(lo.tensor(b))
    batch = lo.axis(var)
    la = [k for i, k in enumerate(la) if i != x.batch_axis]
    lb = [k for i, k in enumerate(lb) if i != y.batch_axis]
    out = [k for i, k in enumerate(out) if i != batch]
    sizes = {**dict(zip(la, x.node.shape, strict=True)), **dict(zip(lb, y.node.shape, strict=True))}
    summed = [k for k in la if k in lb and k not in out]
    order = [*out, *summed]
    terms = int(np.prod([sizes[k] for k in summed], dtype=np.int64))
    results = int(np.prod([sizes[k] for k in out], dtype=np.int64))
    _check_size(lo, terms * results)
    left, right = (
        tuple(
            _arranged(table, labels, order, sizes).reshape(results, terms).astype(np.int64)
            for table in (t.node, t.column)
        )
        for t, labels in ((x, la), (y, lb))
    )
    return lo.product(var, left, right, x.gain * y.gain)


def _check_size(lo: Lowering, terms: int) -> None:
    if terms > _LARGEST:
        eqn = lo.program.ops[lo.source]
        raise LayoutError(
            f"{eqn.name} at {eqn.source} has {terms:,} terms for one batch member, more than the "
            f"{_LARGEST:,} that can be laid out; split the batch or the tensor."
        )


def _dot_public(lo: Lowering, var: Var, secret: Var, public: Var | Literal, ls, lp, out) -> Tensor:
    x = lo.tensor(secret)
    batch = lo.axis(var)
    batch_label = out[batch] if batch is not None else None
    where = lp.index(batch_label) if batch_label in lp else None
    operand, index, stride = lo.public(public, public.shape, where)
    lp = [k for k in lp if k != batch_label or where is None]
    ls = [k for i, k in enumerate(ls) if i != x.batch_axis]
    out = [k for i, k in enumerate(out) if i != batch]
    sizes = {**dict(zip(lp, index.shape, strict=True)), **dict(zip(ls, x.node.shape, strict=True))}
    summed = [k for k in ls if k in lp and k not in out]
    rows = [k for k in out if k in ls]  # the operand's batch and free dimensions
    fresh = [k for k in out if k not in ls]  # dimensions that only the public operand has
    order = [*rows, *fresh, *summed]
    r, n, c = (
        int(np.prod([sizes[k] for k in group], dtype=np.int64)) for group in (rows, fresh, summed)
    )
    _check_size(lo, r * n * c)
    node, column = (
        _arranged(t, ls, [*rows, *summed], sizes).reshape(r, c).astype(np.int64)
        for t in (x.node, x.column)
    )
    weight = _arranged(index, lp, order, sizes).reshape(r, n, c)
    made, at = _matmul(lo, node, column, weight, operand, stride)
    shape = [sizes[k] for k in (*rows, *fresh)]
    perm = [[*rows, *fresh].index(k) for k in out]
    return lo.result(
        var, made.reshape(shape).transpose(perm), at.reshape(shape).transpose(perm), x.gain
    )


def _matmul(lo: Lowering, node, column, weight, operand: int, stride: int):
    """out[r, n] = sum over c of in[r, c] * weight[r, n, c]: the cheapest of three layouts.

    Kept: results lie where their operand row lies (the contraction is across ciphertexts).
    Diagonal: result n takes the place of contraction element n modulo their number.
    Reduced: each n is a masked copy, summed over slots afterwards (few results, many slots).
    """
    b, source = lo.b, lo.source
    r, n, c = weight.shape
    coefficients = linear.Coefficients(operand, stride)
    plans: list[tuple[float, Callable[[], tuple[np.ndarray, np.ndarray]]]] = []

    def direct(out_key, out_column):
        live = node >= 0
        keep = np.broadcast_to(live[:, None, :], weight.shape).reshape(-1)
        _, number = unique_rows(out_key)
        number = number.reshape(r, n)
        spread = np.broadcast_to(number[:, :, None], weight.shape).reshape(-1)[keep]
        # Ciphertexts without any term are exact zeros: renumber the others.
        used, dense = np.unique(spread, return_inverse=True)
        terms = linear.Terms(
            dense.reshape(-1),
            np.broadcast_to(out_column[:, :, None], weight.shape).reshape(-1)[keep],
            np.broadcast_to(node[:, None, :], weight.shape).reshape(-1)[keep],
            np.broadcast_to(column[:, None, :], weight.shape).reshape(-1)[keep],
            weight.reshape(-1)[keep].astype(np.int64),
        )

        def emit():
            if not len(used):
                return np.full((r, n), -1), out_column
            made = linear.apply(b, source, terms, coefficients)
            table = np.full(int(number.max()) + 1, -1, np.int64)
            table[used] = made
            return table[number], out_column

        return linear.estimate(b, terms, True) if len(used) else 0.0, emit

    same_column = bool(np.all(column == column[:, :1]))
    distinct_weights = (
        unique_rows(weight.reshape(r, -1).astype(np.int64))[1] if n * c else np.zeros(r, int)
    )
    if same_column:
        rows_class = unique_rows(node)[1]
        at = np.broadcast_to(column[:, :1], (r, n))
        # Rows that share a place but meet other weights need a layer of their own.
        pairs, pair = unique_rows(np.stack([rows_class, column[:, 0], distinct_weights], 1))
        layer = ranks(pairs[:, 0] * b.columns + pairs[:, 1])[pair]
        key = np.stack([np.repeat(rows_class, n), np.repeat(layer, n), np.tile(np.arange(n), r)], 1)
        plans.append(direct(key, at))
    else:
        target = np.arange(n) % c
        block = np.arange(n) // c
        places, place = unique_rows(
            np.stack([node[:, target].reshape(-1), column[:, target].reshape(-1)], 1)
        )
        other = unique_rows(
            np.stack(
                [
                    place,
                    np.tile(np.arange(n), r),
                    np.repeat(distinct_weights, n),
                    np.tile(block, r),
                ],
                1,
            )
        )[0]
        clash = ranks(other[:, 0] * (block.max() + 1) + other[:, 3])
        if clash.max(initial=0) == 0 and np.all(node >= 0):
            key = np.stack([node[:, target].reshape(-1), np.tile(block, r)], 1)
            plans.append(direct(key, column[:, target]))
        plans.append(_reduced(lo, node, column, weight, coefficients))
    return min(plans, key=lambda plan: plan[0])[1]()


def _reduced(lo: Lowering, node, column, weight, coefficients):
    b, source = lo.b, lo.source
    r, n, c = weight.shape
    cells = np.stack(
        [
            np.broadcast_to(node[:, None, :], weight.shape).reshape(-1),
            np.tile(np.repeat(np.arange(n), c), r),
            np.broadcast_to(column[:, None, :], weight.shape).reshape(-1),
            weight.reshape(-1).astype(np.int64),
        ],
        1,
    )
    live = cells[:, 0] >= 0
    distinct, inverse = unique_rows(cells[live])
    layer = ranks((distinct[:, 0] * n + distinct[:, 1]) * b.columns + distinct[:, 2])
    keys, number = unique_rows(np.stack([distinct[:, 0], distinct[:, 1], layer], 1))
    spans = max(len(np.unique(column[k])) for k in range(min(r, 4))) if r else 1
    results = max(len(keys) // max(len(np.unique(distinct[:, 0])), 1), 1)
    cost = linear.relative_cost(
        plain_products=len(keys),
        rescales=len(keys),
        rotations=results
        * np.log2(max(spans, 2))
        * len(np.unique(distinct[:, 0]))
        / max(c // max(spans, 1), 1),
        additions=len(keys),
    )

    def emit():
        terms = linear.Terms(number, distinct[:, 2], distinct[:, 0], distinct[:, 2], distinct[:, 3])
        made = np.asarray(linear.apply(b, source, terms, coefficients))
        places = np.full(len(cells), -1, np.int64)
        places[np.flatnonzero(live)] = made[number][inverse]
        out_node, out_column, gain = reduce.apply(
            b, source, places.reshape(r * n, c), cells[:, 2].reshape(r * n, c)
        )
        assert gain == 1.0, "masked copies are summed once each"
        return out_node.reshape(r, n), out_column.reshape(r, n)

    return cost, emit


def _reduce_sum(lo: Lowering, eqn: Equation) -> list[Tensor]:
    (var,), x = eqn.outputs, lo.tensor(eqn.inputs[0])
    node, column = _rows(x, eqn.params["axes"])
    out_node, out_column, gain = reduce.apply(lo.b, lo.source, node, column)
    return [lo.result(var, out_node, out_column, x.gain * gain)]


def _rows(x: Tensor, axes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Tables (results, terms) for a reduction over `axes` of the full shape."""
    batch = x.batch_axis
    gone = [a - (batch is not None and a > batch) for a in axes]
    kept = [k for k in range(x.node.ndim) if k not in gone]
    results = int(np.prod([x.node.shape[k] for k in kept], dtype=np.int64))
    node, column = (
        t.transpose([*kept, *gone]).reshape(results, -1).astype(np.int64)
        for t in (x.node, x.column)
    )
    return node, column


def _reduce_prod(lo: Lowering, eqn: Equation) -> list[Tensor]:
    (var,), x = eqn.outputs, lo.tensor(eqn.inputs[0])
    node, column = _rows(x, eqn.params["axes"])
    parts = [(node[:, k : k + 1], column[:, k : k + 1], x.gain) for k in range(node.shape[1])]
    while len(parts) > 1:
        half = []
        for (n1, c1, g1), (n2, c2, g2) in zip(parts[::2], parts[1::2], strict=False):
            made, at, gain = product.apply(lo.b, lo.source, (n1, c1), (n2, c2))
            half.append(
                (made[:, None].astype(np.int64), at[:, None].astype(np.int64), g1 * g2 * gain)
            )
        if len(parts) % 2:
            half.append(parts[-1])
        parts = half
    n, c, gain = parts[0]
    return [lo.result(var, n, c, gain)]


def _cumsum(lo: Lowering, eqn: Equation) -> list[Tensor]:
    (var,), x = eqn.outputs, lo.tensor(eqn.inputs[0])
    (axis,) = [eqn.params["axis"]]
    axis -= x.batch_axis is not None and axis > x.batch_axis
    node = np.moveaxis(x.node, axis, -1).astype(np.int64)
    column = np.moveaxis(x.column, axis, -1).astype(np.int64)
    shape = node.shape
    node, column = node.reshape(-1, shape[-1]), column.reshape(-1, shape[-1])
    n = shape[-1]
    reach = np.tri(n, dtype=bool).T if eqn.params["reverse"] else np.tri(n, dtype=bool)
    out, term = np.nonzero(reach)
    ones = np.ones(1)
    places = elementwise.explicit(lo.b, lo.source, x)
    at_node = np.moveaxis(places.node, axis, -1).reshape(-1, n).astype(np.int64)
    at_column = np.moveaxis(places.column, axis, -1).reshape(-1, n).astype(np.int64)
    # Each result takes its own ciphertext class: elements of one place that sum other elements differ.
    table = np.stack(
        [
            (at_node[:, out]).reshape(-1),
            np.broadcast_to(out, (len(node), len(out))).reshape(-1),
            at_column[:, out].reshape(-1),
            node[:, term].reshape(-1),
            column[:, term].reshape(-1),
        ],
        1,
    )
    slots = unique_rows(table[:, [0, 2]])[1]
    members = unique_rows(np.stack([slots, table[:, 1]], 1))
    shared = len(members[0]) > int(slots.max()) + 1
    key = table[:, [0, 1]] if shared else table[:, [0]]
    _, number = unique_rows(key)
    live = table[:, 3] >= 0
    used, dense = np.unique(number[live], return_inverse=True)
    rows = unique_rows(np.concatenate([dense.reshape(-1, 1), table[live][:, 2:]], 1))[0]
    made = linear.apply(
        lo.b,
        lo.source,
        linear.Terms(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3]),
        None if _unit(rows) else linear.Coefficients(-1, literal=ones),
    )
    of = np.full(int(number.max()) + 1, -1, np.int64)
    of[used] = made
    result = np.zeros((len(node), n), np.int64)
    result[:, out] = of[number].reshape(len(node), len(out))
    back = lambda t: np.moveaxis(t.reshape(shape), -1, axis)  # noqa: E731
    return [lo.result(var, back(result), back(at_column), x.gain)]


def _unit(rows: np.ndarray) -> bool:
    return len(unique_rows(rows)[0]) == len(rows)


def _select_n(lo: Lowering, eqn: Equation) -> list[Tensor]:
    (var,) = eqn.outputs
    which, *cases = eqn.inputs
    chosen = lo.program.constant(which)
    if chosen is not None:
        return [_select_known(lo, eqn, var, np.asarray(chosen).astype(np.int64), cases)]
    total: Tensor | None = None
    for k, case in enumerate(cases):
        if not case.encrypted:
            continue
        x = lo.spread(case, var)
        operand = lo.publics.mask(eqn, k)
        index = np.arange(var.size).reshape(var.shape)
        first, stride = linear_index(index, lo.axis(var)) or (index, 0)
        node, column = elementwise.scaled_by_public(lo.b, lo.source, x, operand, first, stride, 1.0)
        part = lo.result(var, node, column, x.gain)
        total = part if total is None else lo.sum(var, total, part, 1)
    assert total is not None
    return [_plus_cases(lo, eqn, var, total, cases)]


def _plus_cases(lo: Lowering, eqn: Equation, var: Var, total: Tensor, cases) -> Tensor:
    for k, case in enumerate(cases):
        if case.encrypted or lo.publics.uniform(case) == 0.0:
            continue
        total = elementwise.explicit(lo.b, lo.source, total)
        index = np.arange(var.size).reshape(var.shape)
        first, stride = linear_index(index, lo.axis(var)) or (index, 0)
        node, column = elementwise.add_public(
            lo.b, lo.source, total, lo.publics.selected(eqn, k), first, stride, 1.0 / total.gain
        )
        total = lo.result(var, node, column, total.gain)
    return total


def _select_known(lo: Lowering, eqn: Equation, var: Var, chosen: np.ndarray, cases) -> Tensor:
    """A choice known at compile time only picks places."""
    chosen = np.broadcast_to(chosen, var.shape)
    axis = lo.axis(var)
    if axis is not None:
        first = chosen.take(0, axis=axis)
        if np.any(chosen != np.expand_dims(first, axis)):
            raise LayoutError(
                "a selection differs between members of the batch; compile with batch=False"
            )
        chosen = first
    secret = [k for k, case in enumerate(cases) if case.encrypted and np.any(chosen == k)]
    if not secret:
        secret = [k for k, case in enumerate(cases) if case.encrypted][:1]
    gain = lo.tensor(cases[secret[0]]).gain
    node = np.full(stripped(var.shape, axis), -1, np.int64)
    column = np.zeros_like(node)
    for k in secret:
        x = lo.with_gain(lo.spread(cases[k], var), gain)
        node = np.where(chosen == k, x.node, node)
        column = np.where(chosen == k, x.column, column)
    total = lo.result(var, node, column, gain)
    used = [case for k, case in enumerate(cases) if not case.encrypted and np.any(chosen == k)]
    if not used:
        return total
    if not len(total.nodes):
        total = _zeros_like(lo, var, lo.tensor(cases[secret[0]]))
    return _plus_cases(lo, eqn, var, total, cases)


def _zeros_like(lo: Lowering, var: Var, like: Tensor) -> Tensor:
    made = elementwise.scaled(lo.b, lo.source, like.nodes, 0.0)
    return lo.result(var, lo._renamed(like.node, made), like.column, 1.0)


def _move(lo: Lowering, eqn: Equation) -> list[Tensor]:
    """Moves elements: indexing of the tables, and nothing for a ciphertext to do."""
    operands: list[np.ndarray | None] = []
    for k, v in enumerate(eqn.inputs):
        is_index = eqn.name in INDEXED_MOVES and k in _places(eqn)
        constant = lo.program.constant(v) if is_index else None
        if is_index and constant is None:
            return _move_by_matrix(lo, eqn)
        operands.append(constant)
    secret = [v for v in eqn.inputs if isinstance(v, Var) and v.encrypted]
    gain = lo.tensor(secret[0]).gain
    nodes, columns, tables = [np.full(1, -1, np.int64)], [np.zeros(1, np.int64)], []
    offset = 1
    publics: list[tuple[int, Var | Literal]] = []
    for k, v in enumerate(eqn.inputs):
        if operands[k] is not None:
            tables.append(None)
        elif v.encrypted:
            x = lo.with_gain(lo.tensor(v), gain)
            nodes.append(x.node.reshape(-1).astype(np.int64))
            columns.append(x.column.reshape(-1).astype(np.int64))
            table = np.arange(offset, offset + x.node.size, dtype=np.int32).reshape(x.node.shape)
            if x.batch_axis is not None:
                table = np.broadcast_to(np.expand_dims(table, x.batch_axis), v.shape)
            tables.append(table)
            offset += x.node.size
        else:
            tables.append(np.zeros(v.shape, np.int32))
            publics.append((k, v))
    node, column = np.concatenate(nodes), np.concatenate(columns)
    out = []
    for var, table in zip(eqn.outputs, move_table(eqn, tables, operands), strict=True):
        axis = lo.axis(var)
        table = np.where(table < 0, 0, table)
        table = table if axis is None else table.take(0, axis=axis)
        out.append(lo.result(var, node[table], column[table], gain))
    for k, value in publics:
        if lo.publics.uniform(value) != 0.0:
            out = [_with_public_part(lo, eqn, k, value, out[0])]
    return out


def _with_public_part(
    lo: Lowering, eqn: Equation, k: int, value: Var | Literal, total: Tensor
) -> Tensor:
    """Adds the elements that a concatenate or pad takes from a public operand."""
    (var,) = eqn.outputs
    total = elementwise.explicit(lo.b, lo.source, total)
    if eqn.name == "pad":
        tables = [np.zeros(v.shape, np.int32) for v in eqn.inputs]
        places = np.where(move_table(eqn, tables, [None] * len(tables))[0] < 0, 0, -1)
    else:
        tables = [
            np.arange(int(np.prod(v.shape, dtype=np.int64)), dtype=np.int32).reshape(v.shape)
            if i == k
            else np.full(v.shape, -1, np.int32)
            for i, v in enumerate(eqn.inputs)
        ]
        places = move_table(eqn, tables, [None] * len(tables))[0]
    operand, index, stride = lo.public(value, value.shape, None)
    axis = lo.axis(var)
    flat = index.reshape(-1)
    if axis is not None:
        split = linear_index(places, axis)
        if split is None:
            split = _strided(places, axis)
        places, stride = split
    spread = np.where(places >= 0, flat[np.maximum(places, 0)], -1).reshape(-1)
    live = spread >= 0
    part = Tensor(
        np.where(live, total.node.reshape(-1), -1),
        total.column.reshape(-1),
        total.gain,
        total.batch_axis,
        total.shape,
    )
    node, column = elementwise.add_public(
        lo.b, lo.source, part, operand, np.maximum(spread, 0), stride, 1.0 / total.gain
    )
    merged = np.where(live, node.reshape(-1), total.node.reshape(-1))
    return lo.result(var, merged, total.column, total.gain)


def _strided(places: np.ndarray, axis: int) -> tuple[np.ndarray, int]:
    first, second = places.take(0, axis=axis), places.take(1, axis=axis)
    steps = np.unique((second - first)[first >= 0])
    if len(steps) > 1:
        raise LayoutError(
            "a public part is laid out irregularly along the batch; compile with batch=False"
        )
    return first, int(steps[0]) if len(steps) else 0


def _places(eqn: Equation) -> tuple[int, ...]:
    if eqn.name == "dynamic_slice":
        return tuple(range(1, len(eqn.inputs)))
    if eqn.name == "dynamic_update_slice":
        return tuple(range(2, len(eqn.inputs)))
    return (1,)


def _move_by_matrix(lo: Lowering, eqn: Equation) -> list[Tensor]:
    """A move to places known only at run time: a product by a public one-hot matrix."""
    secret = [v for v in eqn.inputs if isinstance(v, Var) and v.encrypted]
    (var,) = eqn.outputs
    if eqn.name not in ("dynamic_slice", "gather") or len(secret) != 1:
        raise LayoutError(
            f"{eqn.name} at {eqn.source} writes at a place that is known only at run time; write it as a "
            "sum with a one-hot mask instead."
        )
    x = lo.tensor(secret[0])
    if x.batch_axis is not None:
        raise LayoutError("a run-time index across a batch; compile with batch=False")
    operand = lo.publics.one_hot(eqn)
    size = x.node.size
    weight = np.arange(var.size * size).reshape(1, var.size, size)
    node = x.node.reshape(1, size).astype(np.int64)
    column = x.column.reshape(1, size).astype(np.int64)
    made, at = _matmul(lo, node, column, weight, operand, 0)
    return [lo.result(var, made, at, x.gain)]


def _scatter_add(lo: Lowering, eqn: Equation) -> list[Tensor]:
    """operand + updates moved to their places; updates that share a place go in layers."""
    (var,) = eqn.outputs
    operand, indices, updates = eqn.inputs
    where = lo.program.constant(indices)
    if where is None:
        raise LayoutError(
            f"scatter-add at {eqn.source} adds at a place that is known only at run time; write it as a "
            "product with a one-hot matrix instead."
        )
    target = _scatter_targets(eqn, where).reshape(-1)
    layer = np.where(target >= 0, ranks(target), -1)
    public_updates = not updates.encrypted
    axis = lo.axis(var)
    if axis is not None and (public_updates or lo.axis(updates) is None or not operand.encrypted):
        raise LayoutError("scatter-add of public values across a batch; compile with batch=False")
    total: Tensor | None = lo.tensor(operand) if operand.encrypted else None
    for k in range(int(layer.max(initial=-1)) + 1):
        source = np.flatnonzero(layer == k)
        table = np.full(int(np.prod(operand.shape, dtype=np.int64)), -1, np.int64)
        table[target[source]] = source
        table = table.reshape(operand.shape)
        if public_updates:
            assert total is not None
            total = _add_at(lo, var, total, updates, table)
            continue
        x = lo.tensor(updates)
        if axis is not None:
            table = _first_member(table, axis, updates.shape, x.batch_axis)
        pick = table.reshape(-1)
        part = lo.result(
            var,
            np.where(pick >= 0, x.node.reshape(-1)[np.maximum(pick, 0)], -1),
            np.where(pick >= 0, x.column.reshape(-1)[np.maximum(pick, 0)], 0),
            x.gain,
        )
        total = part if total is None else lo.sum(var, total, part, 1)
    assert total is not None
    if not operand.encrypted and lo.publics.uniform(operand) != 0.0:
        total = lo.plus_public(var, total, operand, 1.0)
    return [lo.result(var, total.node, total.column, total.gain)]


def _first_member(table: np.ndarray, axis: int, shape: tuple[int, ...], batch_axis: int | None):
    first = table.take(0, axis=axis)
    places = np.unravel_index(np.maximum(first, 0), shape)
    kept = [p for k, p in enumerate(places) if k != batch_axis]
    flat = np.ravel_multi_index(kept, stripped(shape, batch_axis)) if kept else np.zeros_like(first)
    return np.where(first >= 0, flat, -1)


def _add_at(
    lo: Lowering, var: Var, total: Tensor, updates: Var | Literal, table: np.ndarray
) -> Tensor:
    total = elementwise.explicit(lo.b, lo.source, total)
    operand, index, _ = lo.public(updates, updates.shape, None)
    flat = table.reshape(-1)
    live = flat >= 0
    part = Tensor(
        np.where(live, total.node.reshape(-1), -1),
        total.column.reshape(-1),
        total.gain,
        None,
        total.shape,
    )
    node, column = elementwise.add_public(
        lo.b, lo.source, part, operand, index.reshape(-1)[np.maximum(flat, 0)], 0, 1.0 / total.gain
    )
    merged = np.where(live, node.reshape(-1), total.node.reshape(-1))
    return lo.result(var, merged, total.column, total.gain)


def _scatter_targets(eqn: Equation, indices: np.ndarray) -> np.ndarray:
    """Flat place in the operand of every update element, -1 where it falls outside."""
    import jax
    import jax.numpy as jnp

    operand, _, updates = eqn.inputs
    d = eqn.params["dimension_numbers"]
    size = int(np.prod(operand.shape, dtype=np.int64))
    windows = iter([updates.shape[k] for k in d.update_window_dims])
    skipped = (*d.inserted_window_dims, *d.operand_batching_dims)
    slices = tuple(1 if k in skipped else next(windows) for k in range(len(operand.shape)))
    numbers = jax.lax.GatherDimensionNumbers(
        offset_dims=d.update_window_dims,
        collapsed_slice_dims=d.inserted_window_dims,
        start_index_map=d.scatter_dims_to_operand_dims,
        operand_batching_dims=d.operand_batching_dims,
        start_indices_batching_dims=d.scatter_indices_batching_dims,
    )
    places = jnp.arange(size, dtype=jnp.int32).reshape(operand.shape)
    found = jax.lax.gather(
        places, jnp.asarray(indices), numbers, slices, mode="fill", fill_value=-1
    )
    return np.asarray(found, np.int64)


def _conv(lo: Lowering, eqn: Equation) -> list[Tensor]:
    """A convolution is a move to patches and a product by the flattened kernel."""
    (var,), (x, kernel) = eqn.outputs, eqn.inputs
    p = eqn.params
    spec = p["dimension_numbers"]
    groups = p["feature_group_count"]
    if p["batch_group_count"] != 1:
        raise LayoutError(f"conv_general_dilated at {eqn.source}: batch_group_count must be 1.")
    t = lo.tensor(x)
    node, column = (
        np.expand_dims(a, t.batch_axis) if t.batch_axis is not None else a
        for a in (t.node, t.column)
    )
    places = np.arange(node.size).reshape(node.shape).transpose(spec.lhs_spec)  # N C spatial
    patches = _patches(places, kernel.shape, spec.rhs_spec, p)  # N C out-spatial kernel-spatial
    batch, channels = patches.shape[:2]
    spatial = patches.shape[2 : 2 + len(spec.lhs_spec) - 2]
    taps = int(np.prod(patches.shape[2 + len(spatial) :], dtype=np.int64))
    per_group = channels // groups
    patches = patches.reshape(batch, groups, per_group, int(np.prod(spatial, dtype=np.int64)), taps)
    operand, index, stride = lo.public(kernel, kernel.shape, None)
    weights = index.transpose(spec.rhs_spec)  # out in spatial
    outs = weights.shape[0] // groups
    weights = weights.reshape(groups, outs, per_group * taps)
    flat_node = np.r_[node.reshape(-1), -1].astype(np.int64)
    flat_column = np.r_[column.reshape(-1), 0].astype(np.int64)
    made_all, at_all = [], []
    for g in range(groups):
        rows = patches[:, g].transpose(0, 2, 1, 3).reshape(-1, per_group * taps)
        weight = np.broadcast_to(weights[g][None], (len(rows), outs, per_group * taps))
        _check_size(lo, weight.size)
        made, at = _matmul(lo, flat_node[rows], flat_column[rows], weight, operand, stride)
        made_all.append(made.reshape(batch, -1, outs))
        at_all.append(at.reshape(batch, -1, outs))
    inverse = np.argsort(spec.out_spec)

    def shaped(parts):
        whole = np.concatenate(parts, axis=2).transpose(0, 2, 1).reshape(batch, -1, *spatial)
        whole = whole.transpose(inverse)
        return whole if t.batch_axis is None else whole.take(0, axis=lo.axis(var))

    return [lo.result(var, shaped(made_all), shaped(at_all), t.gain)]


def _patches(places: np.ndarray, kernel_shape, rhs_spec, p) -> np.ndarray:
    """Indices under each kernel tap: (N, C, *out spatial, *kernel spatial), -1 outside."""
    dims = places.ndim - 2
    for k in range(dims):
        axis = 2 + k
        spread = p["lhs_dilation"][k]
        if spread > 1:
            shape = list(places.shape)
            shape[axis] = (shape[axis] - 1) * spread + 1
            wide = np.full(shape, -1, places.dtype)
            wide[
                tuple(
                    slice(None, None, spread) if a == axis else slice(None)
                    for a in range(places.ndim)
                )
            ] = places
            places = wide
        low, high = p["padding"][k]
        pads = [(0, 0)] * places.ndim
        pads[axis] = (max(low, 0), max(high, 0))
        places = np.pad(places, pads, constant_values=-1)
        cut = slice(max(-low, 0), places.shape[axis] - max(-high, 0))
        places = places[tuple(cut if a == axis else slice(None) for a in range(places.ndim))]
    extent = [kernel_shape[d] for d in rhs_spec[2:]]
    for k in range(dims):
        reach = (extent[k] - 1) * p["rhs_dilation"][k] + 1
        count = (places.shape[2 + k] - reach) // p["window_strides"][k] + 1
        at = (
            np.arange(count)[:, None] * p["window_strides"][k]
            + np.arange(extent[k]) * p["rhs_dilation"][k]
        )
        places = np.take(places, at.reshape(-1), axis=2 + k)
        shape = places.shape
        places = places.reshape(*shape[: 2 + k], count, extent[k], *shape[3 + k :])
        places = np.moveaxis(places, 3 + k, -1)
    return places


def _polynomial(lo: Lowering, eqn: Equation) -> list[Tensor]:
    (var,), x = eqn.outputs, lo.tensor(eqn.inputs[0])
    poly = eqn.params["poly"]
    if not len(x.nodes):
        raise LayoutError(f"polynomial at {eqn.source}: its argument is exactly zero; drop it.")
    out = polynomial.apply(lo.b, lo.source, elementwise.explicit(lo.b, lo.source, x), poly)
    return [lo.result(var, out.node, out.column, out.gain)]


def _refresh(lo: Lowering, eqn: Equation) -> list[Tensor]:
    (var,), x = eqn.outputs, lo.tensor(eqn.inputs[0])
    nodes = [int(n) for n in x.nodes]
    if not nodes:
        return [x]
    lo.b.begin(lo.source)
    made = lo.b.end([lo.b.refresh(n) for n in nodes], refreshed=True)
    renamed = lo._renamed(x.node, dict(zip(nodes, made, strict=True)))
    return [lo.result(var, renamed, x.column, x.gain)]


_RULES: dict[str, Callable[[Lowering, Equation], list[Tensor]]] = {
    **{name: _identity for name in IDENTITIES},
    **{name: _move for name in (FREE_MOVES | INDEXED_MOVES) - IDENTITIES},
    "add": _add,
    "add_any": _add,
    "sub": _sub,
    "neg": _neg,
    "mul": _mul,
    "div": _div,
    "square": _square,
    "integer_pow": _integer_pow,
    "dot_general": _dot_general,
    "reduce_sum": _reduce_sum,
    "reduce_prod": _reduce_prod,
    "cumsum": _cumsum,
    "select_n": _select_n,
    "scatter-add": _scatter_add,
    "conv_general_dilated": _conv,
    "convert_element_type": _identity,
    "polynomial": _polynomial,
    "refresh": _refresh,
}
