"""Rules: a function per primitive, from tensors to kernels. Adding an operation is adding a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hesim.circuit.layout import Tensor
from hesim.circuit.moves import FREE_MOVES, INDEXED_MOVES
from hesim.circuit.rules import (
    contraction,
    convolution,
    elementwise,
    movement,
    reduction,
    selection,
)
from hesim.primitives import IDENTITIES
from hesim.program import Equation

if TYPE_CHECKING:
    from hesim.circuit.lower import Lowering

__all__ = ["RULES"]

RULES: dict[str, Callable[[Lowering, Equation], list[Tensor]]] = {
    **dict.fromkeys(IDENTITIES, elementwise.identity),
    **dict.fromkeys((FREE_MOVES | INDEXED_MOVES) - IDENTITIES, movement.move),
    "add": elementwise.add,
    "add_any": elementwise.add,
    "sub": elementwise.sub,
    "neg": elementwise.neg,
    "mul": elementwise.mul,
    "div": elementwise.div,
    "square": elementwise.square,
    "integer_pow": elementwise.integer_pow,
    "dot_general": contraction.dot_general,
    "reduce_sum": reduction.reduce_sum,
    "reduce_prod": reduction.reduce_prod,
    "cumsum": reduction.cumsum,
    "select_n": selection.select_n,
    "scatter-add": movement.scatter_add,
    "conv_general_dilated": convolution.convolution,
    "convert_element_type": elementwise.identity,
    "polynomial": elementwise.polynomial,
    "refresh": elementwise.refresh,
}
