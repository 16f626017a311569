"""The rules of the search, by kind of operation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hesim.circuit.packing.offers import (
    contraction,
    convolution,
    elementwise,
    gathered,
    movement,
    opaque,
    reduction,
    running,
    selection,
)
from hesim.circuit.packing.offers.offer import Rule
from hesim.circuit.packing.offers.rearranged import rearranged
from hesim.primitives import PRIMITIVES

__all__ = ["LAST", "MASKED", "OFFERS", "OPAQUE", "TIERS"]

GATHERED = (
    *("concatenate", "split", "stack", "tile", "pad", "rev"),
    *("dynamic_slice", "dynamic_update_slice", "gather", "scatter"),
)
"""Operations that move elements."""

MASKED = frozenset((*GATHERED, "reduce_sum"))
"""Operations whose plaintexts are masks of their own, to be encoded for them alone."""

OFFERS: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *("copy", "copy_p", "device_put", "name", "reshard", "layout_constraint"),
            *("stop_gradient", "optimization_barrier", "sharding_constraint"),
            *("reduce_precision", "convert_element_type"),
        ),
        elementwise.identity,
    ),
    "add": elementwise.add,
    "add_any": elementwise.add,
    "sub": elementwise.add,
    "neg": elementwise.neg,
    "mul": elementwise.mul,
    "div": elementwise.mul,
    "square": elementwise.products,
    "integer_pow": elementwise.power,
    "polynomial": elementwise.polynomial,
    "refresh": elementwise.refresh,
    "transpose": movement.transpose,
    "broadcast_in_dim": movement.broadcast_in_dim,
    "reshape": movement.reshape,
    "squeeze": movement.reshape,
    "expand_dims": movement.reshape,
    "slice": movement.sliced,
    "reduce_sum": reduction.reduce_sum,
    "sum of products": reduction.sum_of_products,
    "dot_general": contraction.dot_general,
    "conv_general_dilated": convolution.convolution,
    "cumsum": running.cumsum,
    "select_n": selection.select_n,
    **dict.fromkeys(GATHERED, gathered.moved),
}
"""Rules by kind of operation."""

LAST: dict[str, Rule] = {
    "conv_general_dilated": convolution.anywhere,
    **dict.fromkeys(
        ("slice", "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose"),
        gathered.moved,
    ),
    **{
        kind: rearranged(OFFERS[kind])
        for kind in (
            *("add", "add_any", "sub", "mul", "div", "square"),
            *("reduce_sum", "sum of products", "dot_general", "cumsum"),
        )
    },
}
"""Rules where the other one makes no offer for the layouts at hand."""


class _Every(Mapping[str, Rule]):
    """The rule of the tables for every kind of operation, also for those that users add."""

    def __getitem__(self, kind: str) -> Rule:
        return opaque.opaque

    def __iter__(self) -> Iterator[str]:
        return iter(PRIMITIVES)

    def __len__(self) -> int:
        return len(PRIMITIVES)


OPAQUE = _Every()
"""Where there is no offer: the rule of the tables, on this operation alone."""

TIERS: tuple[Mapping[str, Rule], ...] = (OFFERS, LAST, OPAQUE)
"""Rules in the order in which they are asked; later ones only where earlier ones offer nothing."""
