"""What the compiler plans for the matrix products that the paper counts.

Operands lie as densely as values of a model do. A client that packs for the product alone may
spread them over more ciphertexts, which spares most rotations.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import hesim
from hesim.circuit.candidate import Candidate
from hesim.circuit.circuit import Circuit, Kind
from hesim.circuit.packing.lowering import lowerings
from hesim.circuit.refresher import KEY_HOLDER
from hesim.params import CKKSParams

__all__ = ["Counts", "counts", "tables"]

_RING = CKKSParams(16, 6, 40, 50, 60)
"""The paper's ring; a chain as long as these products need."""

_NAMES = ("additions", "by plaintexts", "rotations", "products")


@dataclass(frozen=True)
class Counts:
    """Instructions as the paper counts them: products by their terms."""

    additions: int
    by_plaintexts: int
    rotations: int
    products: int

    @property
    def row(self) -> tuple[int, int, int, int]:
        return self.additions, self.by_plaintexts, self.rotations, self.products


def counts(circuit: Circuit, operations: range | None = None) -> Counts:
    """Instructions of some operations of the Program, all by default."""
    chosen = np.ones(len(circuit), bool)
    if operations is not None:
        chosen = np.isin(circuit.source, np.asarray(operations))
    terms = np.diff(circuit.arg_ptr)

    def of(kind: int) -> np.ndarray:
        return chosen & (circuit.kind == kind)

    dots, plains = of(Kind.DOT), of(Kind.DOT_PLAIN)
    summed = of(Kind.ADD) | dots | plains
    return Counts(
        int((terms[summed] - 1).sum()),
        int(terms[plains].sum()),
        int(of(Kind.ROTATE).sum()),
        int(terms[dots].sum()),
    )


@dataclass(frozen=True)
class _Product:
    """A product of encrypted matrices.

    Attributes:
      fn: of matrices of these shapes. most: ciphertexts that each lies in, at most.
      theirs: additions, products by plaintexts, rotations and products by the paper's formulas.
    """

    name: str
    fn: Callable[..., Any]
    shapes: Sequence[tuple[int, ...]]
    most: int
    theirs: tuple[float, float, float, float]


def _square(d: int) -> _Product:
    theirs = 6 * d, 4 * d, 3 * d + 5 * math.sqrt(d), d
    return _Product(f"Table 6: {d} x {d} by {d} x {d}", operator.matmul, [(d, d)] * 2, 1, theirs)


def _flat(rows: int, d: int) -> _Product:
    more = math.log2(d / rows)
    plain = 3 * d + 2 * rows
    theirs = plain + more, plain, 3 * rows + 5 * math.sqrt(d) + more, rows
    name = f"Table 7: {rows} x {d} by {d} x {d}"
    return _Product(name, operator.matmul, [(rows, d), (d, d)], 1, theirs)


def _adapter(tokens: int, hidden: int, rank: int, most: int) -> _Product:
    def product(x: Any, a: Any, b: Any) -> Any:
        return (x @ a) @ b

    shapes = [(tokens, hidden), (hidden, rank), (rank, hidden)]
    theirs = 42 * rank - 3, 4 * rank, 40 * rank - 1, 6 * rank
    name = f"Table 9: {tokens} x {hidden} by {hidden} x {rank} by {rank} x {hidden}"
    return _Product(name, product, shapes, most, theirs)


_CASES = (
    _square(128),
    *(_flat(rows, 128) for rows in (2, 8, 32)),
    *(_adapter(128, 768, 2, most) for most in (3, 6)),
)


def tables() -> None:
    """Print counts beside those of the paper's Tables 6, 7 and 9."""
    print(f"{_RING}\n  {'':44}" + "".join(f"{name:>14}" for name in _NAMES) + "   ciphertexts")
    for case in _CASES:
        circuit = _compiled(case)
        inputs = ", ".join(str(len(p)) for p in circuit.inputs)
        print(
            f"  {case.name:44}" + "".join(f"{n:14,}" for n in counts(circuit).row) + f"   {inputs}"
        )
        print(f"  {'  the paper':44}" + "".join(f"{n:14,.0f}" for n in case.theirs), flush=True)


def _compiled(case: _Product) -> Circuit:
    """The best plan with operands in as few ciphertexts."""
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in case.shapes]
    program = hesim.trace(case.fn, *shapes, encrypted=tuple(range(len(shapes))))
    lowered = lowerings(program, _RING, None, KEY_HOLDER, False, most=case.most)
    plans = [Candidate(plan, _RING, None) for plan in lowered]
    return min(plans, key=lambda plan: plan.schedule.seconds).circuit(_RING)


def layer(circuit: Circuit) -> Mapping[str, int]:
    """Counts of what comes before the first token is taken: the first of two layers."""
    names = list(circuit.op_names)
    first = names.index("slice")
    found = counts(circuit, range(first))
    own = (circuit.source >= 0) & (circuit.source < first)
    return {
        "rotations": found.rotations,
        "products": found.products,
        "by plaintexts": found.by_plaintexts,
        "refreshed": int((own & (circuit.kind == Kind.REFRESH)).sum()),
    }
