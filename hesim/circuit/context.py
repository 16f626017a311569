"""What the rules of lowering share: the tensors so far, the stages, and what is done to tensors.

It knows of no rule and of no primitive, so that rules import it, and `lower` both.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from hesim.circuit import gains, sizes
from hesim.circuit.builder import Builder
from hesim.circuit.kernels import elementwise, product
from hesim.circuit.layout import Tensor, linear_index, stripped
from hesim.errors import LayoutError
from hesim.program import Equation, Literal, Program, Var

if TYPE_CHECKING:
    from hesim.circuit.publics import Publics

__all__ = ["Context"]


class Context:
    """One pass over a Program with input layouts fixed, as its rules see it.

    Attributes:
      values: Tensor per encrypted value id.
      pending: operands of products that are left to the sum that follows, by value id.
      b: the stages so far.
      source: number of the operation that is being lowered, -1 before the first.
    """

    def __init__(
        self, program: Program, publics: Publics, builder: Builder, axes: dict[int, int | None]
    ):
        self.program = program
        self.publics = publics
        self.b = builder
        self.axes = axes
        self.values: dict[int, Tensor] = {}
        self.pending: dict[int, tuple[Tensor, Tensor]] = {}
        self.source = -1
        self._uses: dict[int, list[str]] = {}
        for eqn in program.ops:
            for v in eqn.inputs:
                if isinstance(v, Var):
                    self._uses.setdefault(v.id, []).append(eqn.name)
        for v in program.outputs:
            if isinstance(v, Var):
                self._uses.setdefault(v.id, []).append("return")

    def enter(self, number: int, eqn: Equation) -> None:
        """Starts operation `number`: what follows belongs to it, and its tables fit into memory."""
        self.source, self.publics.user = number, eqn
        self.b.operation = functools.partial(_named, eqn)
        self.b.reserve(self._table_bytes(eqn))

    def _table_bytes(self, eqn: Equation) -> int:
        """Bytes of tables with an entry for each element, of one member and of all of them."""
        operands = [v for v in (*eqn.inputs, *eqn.outputs) if isinstance(v, Var)]
        own = max(math.prod(stripped(v.shape, self.axis(v))) for v in operands if v.encrypted)
        whole = max(v.size for v in operands)
        return sizes.ENTRY_BYTES * own + sizes.INDEX_BYTES * whole

    def axis(self, var: Var) -> int | None:
        return self.axes.get(var.id)

    def tensor(self, value: Var | Literal) -> Tensor:
        assert isinstance(value, Var)
        return self.values[value.id]

    def only_summed(self, var: Var) -> bool:
        """Whether a value's single use is a `reduce_sum`."""
        return self._uses.get(var.id) == ["reduce_sum"]

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
                "a public operand is laid out irregularly along the batch axis; compile with "
                "batch=False"
            )
        return view.operand, split[0], split[1]

    def zero(self, var: Var) -> Tensor:
        """A tensor that is exactly zero: no ciphertext holds it."""
        shape = stripped(var.shape, self.axis(var))
        return self.result(var, np.full(shape, -1), np.zeros(shape, int), 1.0)

    def constant(self, var: Var, value: float) -> Tensor:
        """An encrypted tensor of one known value."""
        return self.plus_public(var, self.zero(var), Literal(np.asarray(value)), 1.0)

    def with_gain(self, x: Tensor, gain: float) -> Tensor:
        """x with its slots rescaled so that its gain is the one asked for."""
        if x.gain == gain or not len(x.nodes):
            return Tensor(x.node, x.column, gain, x.batch_axis, x.shape)
        made = elementwise.scaled(self.b, self.source, x.nodes, x.gain / gain)
        return Tensor(self.renamed(x.node, made), x.column, gain, x.batch_axis, x.shape)

    def renamed(self, node: np.ndarray, made: dict[int, int]) -> np.ndarray:
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
        met = gains.meeting(left.gain, sign * right.gain)
        if met is None:
            fewer = len(left.nodes) < len(right.nodes)
            if gains.scales_left(left.gain, right.gain, fewer=fewer):
                left = self.with_gain(left, right.gain)
            else:
                right = self.with_gain(right, left.gain)
            met = (1, sign), left.gain
        factors, gain = met
        node, column = elementwise.add(self.b, self.source, left, right, factors)
        return self._not_inflated(self.result(var, node, column, gain))

    def _not_inflated(self, x: Tensor) -> Tensor:
        """A sum whose slots have grown by sums while its pending gain shrank, as those of running
        averages do, with the gain applied: one level.
        """
        grown = max((self.b.growth[int(n)] for n in x.nodes), default=1.0)
        if not gains.inflated(grown, x.gain):
            return x
        return self.with_gain(x, math.copysign(1.0, x.gain))

    def plus_public(self, var: Var, x: Tensor, value: Var | Literal, sign: float) -> Tensor:
        """x + sign * public."""
        if self.publics.uniform(value) == 0.0:
            return self.result(var, x.node, x.column, x.gain)
        operand, index, stride = self.public(value, var.shape, self.axis(var))
        x = self.open_to(x, self.publics.magnitude(value))
        node, column = elementwise.add_public(
            self.b, self.source, x, operand, index, stride, sign / x.gain
        )
        return self.result(var, node, column, x.gain)

    def plus_operand(self, var: Var, x: Tensor, operand: int, index: np.ndarray) -> Tensor:
        """x + a public operand by number; `index` (of the full shape) is flat into it."""
        split = linear_index(index, self.axis(var))
        assert split is not None, "operands of a result's own shape are regular"
        x = self.open_to(x, 1.0)
        node, column = elementwise.add_public(self.b, self.source, x, operand, *split, 1.0 / x.gain)
        return self.result(var, node, column, x.gain)

    def open_to(self, x: Tensor, magnitude: float) -> Tensor:
        """x as public values of some magnitude can be added to it.

        Its exact zeros are ciphertexts, and a pending gain so small that the values would inflate
        the slots is applied: one level.
        """
        if magnitude > abs(x.gain) * 2.0**gains.GAIN_BITS:
            x = self.with_gain(x, math.copysign(1.0, x.gain))
        return elementwise.explicit(self.b, self.source, x)

    def bounded(self, x: Tensor) -> Tensor:
        """x with a pending gain that is far from 1 applied: one level."""
        if gains.stays_pending(x.gain):
            return x
        return self.with_gain(x, math.copysign(1.0, x.gain))

    def times(self, var: Var, x: Tensor, number: float) -> Tensor:
        """x times a known number other than 0: kept as a gain beside the ciphertexts."""
        if not gains.representable(x.gain * number):
            x = self.with_gain(x, math.copysign(1.0, x.gain))
        return self.result(var, x.node, x.column, x.gain * number)

    def product(
        self,
        var: Var,
        left: product.Places,
        right: product.Places,
        gain: float,
    ) -> Tensor:
        """Sum over the last axis of left * right, each (node, column) of shape (results, terms)."""
        node, column, times = product.apply(self.b, self.source, left, right)
        return self.result(var, node, column, gain * times)


def _named(eqn: Equation) -> str:
    return f"`{eqn.name}` at {eqn.source}"
