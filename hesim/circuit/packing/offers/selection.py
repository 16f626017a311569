"""Offers of choices by a public mask."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hesim.circuit.circuit import Kind
from hesim.circuit.layout import linear_index
from hesim.circuit.packing.arrangement import cipher_table
from hesim.circuit.packing.costs import counted, shaped
from hesim.circuit.packing.emission import Emission, Packed, PublicPart
from hesim.circuit.packing.layout import Layout
from hesim.circuit.packing.offers import gathered
from hesim.circuit.packing.offers.elementwise import views
from hesim.circuit.packing.offers.offer import Offer, Setting
from hesim.circuit.packing.operations import Operation

__all__ = ["select_n"]


def select_n(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    """A choice that is known, and alike in all members, moves elements; another is a product by a
    mask, of one encrypted case.
    """
    found = list(gathered.select_n(s, op, layouts))
    yield from found or _masked(s, op, layouts)


def _masked(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    (eqn,), (var,) = op.equations, op.outputs
    cases = eqn.inputs[1:]
    secret = [k for k, case in enumerate(cases) if case.encrypted]
    split = linear_index(np.arange(var.size).reshape(var.shape), s.axis(var))
    if len(secret) != 1 or eqn.inputs[0].encrypted or split is None:
        return
    rest = [k for k, c in enumerate(cases) if k not in secret and s.publics.uniform(c) != 0.0]
    shape = s.shape(var)
    for view in views(layouts[0], {a for a, d in enumerate(shape) if d > 1}, shape):
        w = view.ciphertexts
        out = view._replace(zeros=True).canonical()
        works = [shaped((counted(Kind.DOT_PLAIN, w), counted(Kind.RESCALE, w)), 1, w)]
        works += [shaped((counted(Kind.ADD_PLAIN, w),), 0, w) for _ in rest]

        def emit(
            em: Emission, op: Operation, xs: tuple[Packed, ...], out: Layout = out
        ) -> list[Packed]:
            (eqn,), (x,) = op.equations, xs
            mask = PublicPart(em.publics.mask(eqn, secret[0]), *split)
            plains, _ = em.elementwise(mask, out, 1.0)
            under = cipher_table(out, x.layout).tolist()
            b = em.b
            b.begin(em.source)
            made = b.end(
                [
                    b.rescale(b.dot_plain([(x.nodes[i], p)]))
                    for i, p in zip(under, plains, strict=True)
                ]
            )
            x = Packed(out, tuple(made), x.gain)
            for k in rest:
                x = em.open_to(x, em.publics.magnitude(eqn.inputs[1 + k]))
                chosen = PublicPart(em.publics.selected(eqn, k), *split)
                plains, _ = em.elementwise(chosen, out, 1.0 / x.gain)
                b.begin(em.source)
                made = [b.add_plain(n, p) for n, p in zip(x.nodes, plains, strict=True)]
                x = Packed(out, tuple(b.end(made)), x.gain)
            return [x]

        yield Offer((out,), tuple(works), emit)
