"""Every plan that the search finds, on the slot machine, against the exact values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest

from hesim.circuit.candidate import Candidate
from hesim.circuit.circuit import Circuit
from hesim.circuit.packing import lowering
from hesim.circuit.packing.costs import Prices
from hesim.circuit.packing.layout import Layout
from hesim.circuit.packing.lowering import lowerings
from hesim.circuit.refresher import KEY_HOLDER
from hesim.circuit.shape import StageShape
from hesim.params import CKKSParams
from hesim.trace import trace
from tests.hesim.circuit.conftest import close, exact_values, quiet_params, run_slots

TOLERANCE = 1e-9


class DrawnPrices(Prices):
    """Seconds that are drawn, so that plans are found that no true price would choose."""

    def __init__(self, seed: int):
        super().__init__(10, 1.0)
        object.__setattr__(self, "_rng", np.random.default_rng(seed))

    def seconds(self, works: Iterable[StageShape]) -> float:
        return super().seconds(works) * float(np.exp(2 * self._rng.normal()))  # type: ignore


@contextmanager
def unlikely(seed: int | None, finalists: int) -> Iterator[None]:
    """The search looks at more plans, at drawn prices unless `seed` is None."""
    true = lowering.search

    def search(setting: Any, ops: Any, prices: Prices, **options: Any) -> Any:
        return true(setting, ops, prices if seed is None else DrawnPrices(seed), **options)

    with (
        mock.patch.object(lowering, "search", search),
        mock.patch.object(lowering, "_FINALISTS", finalists),
    ):
        yield


def whole_pieces(layout: Layout) -> bool:
    """Whether the pieces of every axis continue each other, so that no element lies twice."""
    for axis in layout.axes:
        stride = 1
        for piece in layout.pieces(axis):
            if piece.stride != stride:
                return False
            stride *= piece.size
    return True


def check_plans(
    fn: Callable[..., Any],
    *args: Any,
    encrypted: Any = (0,),
    params: CKKSParams | None = None,
    batch: bool = True,
    price: float | None = None,
    seed: int | None = None,
    finalists: int = 3,
) -> list[Circuit]:
    """Circuits of all plans, which compute what the function does, operation by operation.

    Args:
      seed: for drawn prices; None for the true ones.
      finalists: plans of one batch axis that are looked at.
    """
    program = trace(fn, *args, encrypted=encrypted)
    params = params or quiet_params()
    found = []
    exact, results = exact_values(program, args)
    with unlikely(seed, finalists):
        plans = list(lowerings(program, params, price, KEY_HOLDER, batch))
    for lowered in plans:
        for _, offer, _ in lowered.plan.steps:
            assert all(whole_pieces(x) for x in offer.outs), [str(x) for x in offer.outs]
        circuit = Candidate(lowered, params, price).circuit(params)
        outputs, taps = run_slots(circuit, args)
        for value, wanted in zip(outputs, exact, strict=True):
            if value is not None:
                close(value, wanted, "a result", TOLERANCE)
        for op, value in taps.items():
            if op >= 0 and np.isfinite(value).all():
                close(value, results[op], f"{program.ops[op].name} ({op})", TOLERANCE)
        found.append(circuit)
    return found


@pytest.fixture
def check() -> Callable[..., list[Circuit]]:
    return check_plans
