"""Last offers: operands are brought to layouts in which an operation can be done."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from hesim.circuit.packing.arrangement import like
from hesim.circuit.packing.gathering import packings
from hesim.circuit.packing.layout import Layout
from hesim.circuit.packing.offers.contraction import labels_of
from hesim.circuit.packing.offers.offer import Offer, Rule, Setting
from hesim.circuit.packing.operations import Operation

__all__ = ["rearranged"]


def rearranged(rule: Rule) -> Rule:
    """The offers of a rule once its operands have been moved."""

    def offers(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
        for places in _places(s, op, layouts):
            for offer in rule(s, op, places):
                wanted = offer.operands or (None,) * len(places)
                moved = tuple(
                    places[min(k, len(places) - 1)] if w is None else w
                    for k, w in enumerate(wanted)
                )
                yield replace(offer, operands=moved)

    return offers


def _places(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[tuple[Layout, ...]]:
    """Layouts of the operands, a few."""
    if len(layouts) == 1:
        for x in packings(layouts[0].shape, s.columns):
            yield (x,)
        return
    if op.kind == "dot_general":
        labels = labels_of(s, op.equations[0])
        if labels is None:
            return
        names: list[Sequence[int]] = [labels.left, labels.right]
        sizes = labels.sizes
    else:
        sizes = s.shape(op.equations[0].outputs[0])
        if any(len(x.shape) > len(sizes) for x in layouts):
            return
        names = [range(len(sizes) - len(x.shape), len(sizes)) for x in layouts]
    for model in packings(sizes, s.columns):
        ways = [list(_under(model, x, own)) for x, own in zip(layouts, names, strict=True)]
        yield from itertools.product(*ways)


def _under(model: Layout, x: Layout, names: Sequence[int]) -> Iterator[Layout]:
    """The layout of an operand as the model's; names: the model's axis of each of its own."""
    own = [n for k, n in enumerate(names) if x.shape[k] > 1]
    shape = [1] * len(model.shape)
    for k, n in enumerate(names):
        shape[n] = x.shape[k]
    found = like(model, own, shape)
    if found is not None and set(found.axes) == set(own):
        back = {n: k for k, n in enumerate(names)}
        yield found.renamed(x.shape, back).canonical()
