"""The primitives that encrypted values may pass through: one row for each, with all that is known
of it but its noise, which is a row of `hesim.noise.rules`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hesim.circuit.batching import rules as batch_rules
from hesim.circuit.rules import (
    contraction,
    convolution,
    elementwise,
    movement,
    reduction,
    selection,
)

if TYPE_CHECKING:
    from hesim.circuit.context import Context
    from hesim.circuit.layout import Tensor
    from hesim.program import Equation, Program

__all__ = ["PRIMITIVES", "Primitive", "moves_by_parameters"]

Lower = Callable[["Context", "Equation"], "list[Tensor]"]
Batch = Callable[["Program", "Equation", batch_rules.Axes, int], list[int | None]]


@dataclass(frozen=True)
class Primitive:
    """One primitive.

    Attributes:
      lower: from tensors to kernels: a function of the context and the equation to one tensor a
        result.
      batch: where the batch axis of its results lies.
      depth: levels between its operands and its results, in the best layout.
      moves: whether it only moves elements, to places that its parameters say.
      contracts: whether it sums elements of an operand over more than one position.
      zero_if_empty: whether it is zero where an operand has no elements.
    """

    lower: Lower
    batch: Batch = batch_rules.mixing
    depth: Callable[[Equation], int] = lambda eqn: 0
    moves: bool = False
    contracts: Callable[[Equation], bool] = lambda eqn: False
    zero_if_empty: bool = False


def _one(eqn: Equation) -> int:
    return 1


def _doublings(count: int) -> int:
    return math.ceil(math.log2(count)) if count > 1 else 0


def _factors(eqn: Equation) -> int:
    shape = eqn.inputs[0].shape
    return int(np.prod([shape[a] for a in eqn.params["axes"]], dtype=np.int64))


def _sums(axes: Callable[[Equation], Sequence[int]]) -> Callable[[Equation], bool]:
    """Whether any of these axes of the first operand has more than one position."""
    return lambda eqn: any(eqn.inputs[0].shape[a] > 1 for a in axes(eqn))


_KEPT = Primitive(elementwise.identity, batch_rules.elementwise, moves=True)
_ROUNDED = Primitive(elementwise.identity, batch_rules.elementwise)
_SUM = Primitive(elementwise.add, batch_rules.elementwise)
_MOVE = Primitive(movement.move, batch_rules.moved, moves=True)
_INDEXED = Primitive(movement.move, batch_rules.moved)

_KEEPING = (
    *("copy", "copy_p", "device_put", "name", "reshard", "layout_constraint", "stop_gradient"),
    *("optimization_barrier", "sharding_constraint"),
)
_ROUNDING = ("reduce_precision", "convert_element_type")  # of public values only
_PLACED_BY_PARAMETERS = (
    *("broadcast_in_dim", "reshape", "transpose", "slice", "squeeze", "expand_dims"),
    *("concatenate", "split", "stack", "tile", "pad", "rev"),
)
_PLACED_BY_OPERANDS = ("dynamic_slice", "dynamic_update_slice", "gather", "scatter")

PRIMITIVES: dict[str, Primitive] = {
    **dict.fromkeys(_KEEPING, _KEPT),
    **dict.fromkeys(_ROUNDING, _ROUNDED),
    **dict.fromkeys(_PLACED_BY_PARAMETERS, _MOVE),
    **dict.fromkeys(_PLACED_BY_OPERANDS, _INDEXED),
    "add": _SUM,
    "add_any": _SUM,
    "sub": Primitive(elementwise.sub, batch_rules.elementwise),
    "neg": Primitive(elementwise.neg, batch_rules.elementwise),
    "mul": Primitive(elementwise.mul, batch_rules.elementwise, _one),
    "div": Primitive(elementwise.div, batch_rules.elementwise, _one),
    "square": Primitive(elementwise.square, batch_rules.elementwise, _one),
    "integer_pow": Primitive(
        elementwise.integer_pow,
        batch_rules.elementwise,
        lambda eqn: _doublings(eqn.params["y"]),
    ),
    "polynomial": Primitive(
        elementwise.polynomial,
        batch_rules.elementwise,
        lambda eqn: eqn.params["poly"].depth,
    ),
    "refresh": Primitive(elementwise.refresh, batch_rules.elementwise),
    "select_n": Primitive(selection.select_n, batch_rules.elementwise, _one),
    "dot_general": Primitive(
        contraction.dot_general,
        batch_rules.contracted,
        _one,
        contracts=_sums(lambda eqn: eqn.params["dimension_numbers"][0][0]),
        zero_if_empty=True,
    ),
    "conv_general_dilated": Primitive(
        convolution.convolution,
        batch_rules.convolved,
        _one,
        contracts=lambda eqn: True,
        zero_if_empty=True,
    ),
    "reduce_sum": Primitive(
        reduction.reduce_sum,
        batch_rules.reduced,
        contracts=_sums(lambda eqn: eqn.params["axes"]),
        zero_if_empty=True,
    ),
    "reduce_prod": Primitive(
        reduction.reduce_prod, batch_rules.reduced, lambda eqn: _doublings(_factors(eqn))
    ),
    "cumsum": Primitive(
        reduction.cumsum, batch_rules.cumulated, contracts=_sums(lambda eqn: (eqn.params["axis"],))
    ),
    "scatter-add": Primitive(movement.scatter_add, batch_rules.added_at),
}
"""From primitive name to row."""


def moves_by_parameters(name: str) -> bool:
    """Whether a primitive, of public values too, only moves elements to places that its parameters
    say.
    """
    row = PRIMITIVES.get(name)
    return row is not None and row.moves
