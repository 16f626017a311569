"""Offers of choices by a public mask."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hesim.circuit.builder import Plain
from hesim.circuit.circuit import Kind
from hesim.circuit.layout import linear_index
from hesim.circuit.packing.arrangement import cipher_table
from hesim.circuit.packing.costs import counted, shaped
from hesim.circuit.packing.emission import Emission, Packed, PublicPart
from hesim.circuit.packing.layout import Layout
from hesim.circuit.packing.offers import gathered
from hesim.circuit.packing.offers.elementwise import meetings, views
from hesim.circuit.packing.offers.offer import Offer, Setting
from hesim.circuit.packing.operations import Operation
from hesim.program import Var

__all__ = ["select_n"]


def select_n(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    """A choice that is known, and alike in all members, moves elements; another is a sum of
    products by masks, of one or two encrypted cases.
    """
    found = list(gathered.select_n(s, op, layouts))
    yield from found or _masked(s, op, layouts)


def _masked(s: Setting, op: Operation, layouts: tuple[Layout, ...]) -> Iterator[Offer]:
    (eqn,), (var,) = op.equations, op.outputs
    cases = eqn.inputs[1:]
    secret = [k for k, case in enumerate(cases) if case.encrypted]
    split = linear_index(np.arange(var.size).reshape(var.shape), s.axis(var))
    first, *others = layouts
    if len(others) > 1 or eqn.inputs[0].encrypted or split is None:
        return
    operand = [op.operands.index(v) for v in cases if isinstance(v, Var) and v.encrypted]
    rest = [k for k, c in enumerate(cases) if k not in secret and s.publics.uniform(c) != 0.0]
    shape = s.shape(var)
    ways = meetings((first, others[0]), shape) if others else ((first, (None,)),)
    everywhere = {a for a, d in enumerate(shape) if d > 1}
    for both, moved in ways:
        for view in views(both, everywhere, shape):
            w = view.ciphertexts
            out = view._replace(zeros=True).canonical()
            rows = (counted(Kind.DOT_PLAIN, w, len(secret)), counted(Kind.RESCALE, w))
            works = [shaped(rows, 1, w)]
            works += [shaped((counted(Kind.ADD_PLAIN, w),), 0, w) for _ in rest]

            def emit(
                em: Emission, op: Operation, xs: tuple[Packed, ...], out: Layout = out
            ) -> list[Packed]:
                (eqn,), b = op.equations, em.b
                terms: list[list[tuple[int, Plain]]] = [[] for _ in range(out.ciphertexts)]
                for k, n in zip(secret, operand, strict=True):
                    mask = PublicPart(em.publics.mask(eqn, k), *split)
                    plains, _ = em.elementwise(mask, out, xs[n].gain / xs[0].gain)
                    under = cipher_table(out, xs[n].layout).tolist()
                    for own, i, plain in zip(terms, under, plains, strict=True):
                        own.append((xs[n].nodes[i], plain))
                b.begin(em.source)
                made = b.end([b.rescale(b.dot_plain(own)) for own in terms])
                x = Packed(out, tuple(made), xs[0].gain)
                for k in rest:
                    x = em.open_to(x, em.publics.magnitude(eqn.inputs[1 + k]))
                    chosen = PublicPart(em.publics.selected(eqn, k), *split)
                    plains, _ = em.elementwise(chosen, out, 1.0 / x.gain)
                    b.begin(em.source)
                    made = [b.add_plain(n, p) for n, p in zip(x.nodes, plains, strict=True)]
                    x = Packed(out, tuple(b.end(made)), x.gain)
                return [x]

            yield Offer((out,), tuple(works), emit, moved)
