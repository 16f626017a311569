"""Where what a ciphertext holds lies before it was masked, repeated and scaled.

Masks that take ciphertexts into a joint one do that as well, so what was done for a ciphertext by
itself, and the levels that it took, are left out. Imports no JAX.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hesim.circuit.builder import Builder
from hesim.circuit.circuit import Kind
from hesim.circuit.refreshes.contents import PRIME, number

__all__ = ["Origin", "origins"]


class Origin(NamedTuple):
    """A node that may hold what another one holds, over `factor`.

    Attributes:
      prints: int64 (draws, 1), what fingerprints of the node are times to be the other's.
    """

    node: int
    factor: float
    prints: np.ndarray


def origins(b: Builder, node: int) -> Iterator[Origin]:
    """A node, and those that it comes of by masks, scalings and rotate-and-add, one by one."""
    found = Origin(node, 1.0, number(1.0))
    yield found
    while (before := _before(b, found)) is not None:
        found = before
        yield found


def _before(b: Builder, found: Origin) -> Origin | None:
    node = b.nodes[found.node]
    terms = list(node.terms) if len(node.terms) <= 2 else []
    if node.kind == Kind.RESCALE or (node.kind == Kind.ADD and len(terms) == 1):
        ((factor, a, _),) = terms
        return found._replace(node=a) if factor == 1 else None
    if node.kind == Kind.ADD and len(terms) == 2:
        (one, a, _), (other, turned, _) = terms
        again = b.nodes[turned].kind == Kind.ROTATE and b.nodes[turned].first == [a]
        return found._replace(node=a) if one == other == 1 and again else None
    if node.kind != Kind.DOT_PLAIN or len(terms) != 1:
        return None
    ((_, a, (pack, _)),) = terms
    family = b.packs[pack]
    if family.operand >= 0 or family.literal is None or len(family.literal) != 1:
        return None
    value = float(family.literal[0] * family.weight)
    if not value:
        return None
    return Origin(a, found.factor * value, found.prints * number(value) % PRIME)
