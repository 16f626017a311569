"""Inputs laid out again: where the first plan of a search turned out to want them.

An input that is used by itself first has one of a few layouts, chosen before anything is known of
what it meets. The first plan shows where it is brought to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from hesim.circuit.aims.carried import Pair
from hesim.circuit.packing.arrangement import relay
from hesim.circuit.packing.costs import Prices
from hesim.circuit.packing.layout import Layout
from hesim.circuit.packing.offers.offer import Offer, Setting, of_one_member
from hesim.circuit.packing.operations import Operation

if TYPE_CHECKING:
    from hesim.circuit.packing.search import Plan

__all__ = ["inputs_again"]


def inputs_again(plan: Plan, setting: Setting, prices: Prices) -> dict[int, Layout]:
    """Layouts of the inputs from which what the plan brings them to is cheapest; those of the plan
    where nothing is cheaper.
    """
    wanted: dict[int, dict[Layout, None]] = {v: {} for v in plan.inputs}
    for v, layout in _brought(plan, setting):
        if layout.shape == plan.inputs[v].shape:
            wanted[v].setdefault(layout)
    ends = _ends(plan, plan.carried)
    out = {}
    for v, own in plan.inputs.items():
        targets, start = wanted[v], ends.get(v)
        out[v] = min((own, *targets), key=lambda x: _price(x, targets, start, prices))
    return out


def _price(
    layout: Layout, targets: Mapping[Layout, None], start: Layout | None, prices: Prices
) -> float:
    """Seconds of bringing an input from a layout to others, and what it is next to that layout."""
    pairs = [(layout, x) for x in targets]
    pairs += [] if start is None else [(start, layout)]
    total = 0.0
    for source, target in pairs:
        if source == target:
            continue
        way = relay(source, target)
        if way is None:
            return math.inf
        total += prices.seconds(way.works) + prices.encoding(way.works)
    return total


def _brought(plan: Plan, setting: Setting) -> Iterator[tuple[int, Layout]]:
    """(input, layout that it is brought to, or what lies as it does and is of it alone)."""
    of = {v: v for v in plan.inputs}
    for op, offer, layouts in plan.steps:
        seen = of_one_member(setting, op, layouts) or layouts
        for k, (own, to) in enumerate(offer.moves(seen)):
            v = of.get(op.operands[min(k, len(op.operands) - 1)].id)
            if v is not None and to is not None and to != own:
                yield v, to
        if _as_it_is(op, offer, layouts) and op.operands[0].id in of:
            of[op.outputs[0].id] = of[op.operands[0].id]


def _as_it_is(op: Operation, offer: Offer, layouts: Sequence[Layout]) -> bool:
    """Whether the result of an operation on one value lies where that does."""
    return len(layouts) == 1 and offer.outs == tuple(layouts) and len(op.outputs) == 1


def _ends(plan: Plan, carried: Sequence[Pair]) -> dict[int, Layout]:
    """By carried argument, where its result lies."""
    lies = {
        v.id: x for op, offer, _ in plan.steps for v, x in zip(op.outputs, offer.outs, strict=True)
    }
    return {p.argument.id: lies[p.result.id] for p in carried if p.result.id in lies}
