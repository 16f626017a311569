"""Pairs of computations whose seconds the paper compares, as the compiler plans them and as Pyfhel
runs them at a size that fits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import approx
import hesim
from he_backend.local import run_local
from he_backend.machines.pyfhel.machine import PyfhelMachine
from hesim.circuit.candidate import Candidate
from hesim.circuit.circuit import Circuit
from hesim.circuit.packing.lowering import lowerings
from hesim.circuit.refresher import KEY_HOLDER
from hesim.params import CKKSParams
from hesim.program import Program

__all__ = ["ratios"]

_NEAR = 4.0
"""Scores lie within this of 0."""

_RANK = 2


@dataclass(frozen=True)
class _Side:
    """A function, shapes of its arguments, and which of them are encrypted."""

    fn: Callable[..., Any]
    shapes: Sequence[tuple[int, ...]]
    secret: tuple[int, ...]

    @property
    def program(self) -> Program:
        args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in self.shapes]
        return hesim.trace(self.fn, *args, encrypted=self.secret)


@dataclass(frozen=True)
class _Pair:
    """Two computations.

    Attributes:
      name: of the ratio, theirs: what the paper measured.
      sides: of (tokens, hidden, heads): the dear one and the cheap one.
    """

    name: str
    theirs: float
    sides: Callable[[int, int, int], tuple[_Side, _Side]]


def _products(tokens: int, hidden: int, heads: int) -> tuple[_Side, _Side]:
    shapes = [(tokens, hidden), (hidden, hidden)]
    return _Side(jnp.matmul, shapes, (0, 1)), _Side(jnp.matmul, shapes, (0,))


def _kernels(tokens: int, hidden: int, heads: int) -> tuple[_Side, _Side]:
    exp = approx.fit("exp", (-_NEAR, _NEAR), degree=15)
    few, many = (tokens * float(np.exp(x)) for x in (-_NEAR, _NEAR))
    inverse = approx.fit("inv", (few, many), degree=63)

    def softmax(scores: Any) -> Any:
        e = exp(scores)
        return e * inverse(jnp.sum(e, -1, keepdims=True))

    shapes = [(heads, tokens, tokens)]
    gaussian = approx.fit("exp", (-2 * _NEAR, 0.0), degree=15)
    return _Side(softmax, shapes, (0,)), _Side(gaussian, shapes, (0,))


def _weights(tokens: int, hidden: int, heads: int) -> tuple[_Side, _Side]:
    def full(x: Any, w: Any, upstream: Any) -> Any:
        y, back = jax.vjp(lambda w: x @ w, w)
        return y, back(upstream)

    def adapter(x: Any, a: Any, b: Any, upstream: Any) -> Any:
        y, back = jax.vjp(lambda a, b: (x @ a) @ b, a, b)
        return y, back(upstream)

    x = tokens, hidden
    pair = [(hidden, _RANK), (_RANK, hidden)]
    return (
        _Side(full, [x, (hidden, hidden), x], (0, 1, 2)),
        _Side(adapter, [x, *pair, x], (0, 1, 2, 3)),
    )


_PAIRS = (
    _Pair("encrypted / public matrix", 4.58, _products),
    _Pair("softmax / Gaussian", 6.24, _kernels),
    _Pair("full matrix / LoRA, forward and gradient", 4.45, _weights),
)


def ratios(measured: bool = True) -> None:
    """Print each ratio as predicted at the paper's shapes and, at smaller ones, as predicted and
    measured.
    """
    large, small = (128, 768, 12), (32, 64, 4)
    for pair in _PAIRS:
        print(f"  {pair.name}: the paper {pair.theirs}")
        _show("predicted", *_planned(pair, large, CKKSParams(15, 6, 40, 50, 60)), large)
        plans = _planned(pair, small, CKKSParams(14, 5, 40, 50, 60))
        _show("predicted", *plans, small)
        if measured:
            seconds = [_run(c) for c in plans[2:]]
            _show("measured ", seconds[0], seconds[1], *plans[2:], small)


def _show(
    how: str, dear: float, cheap: float, one: Circuit, two: Circuit, size: tuple[int, int, int]
) -> None:
    print(
        f"    {how} {size[0]} x {size[1]}, {size[2]} heads, N = 2^{one.params.log_n}: {dear:.2f} s "
        f"/ {cheap:.2f} s = {dear / cheap:.2f}; rotations {one.ledger.rotations:,} / "
        f"{two.ledger.rotations:,}, products {one.ledger.products:,} / {two.ledger.products:,}",
        flush=True,
    )


def _planned(
    pair: _Pair, size: tuple[int, int, int], ring: CKKSParams
) -> tuple[float, float, Circuit, Circuit]:
    one, two = (_compiled(side.program, ring) for side in pair.sides(*size))
    return one.ledger.seconds, two.ledger.seconds, one, two


def _compiled(program: Program, ring: CKKSParams) -> Circuit:
    """The best plan with one member, in the layouts that are cheapest."""
    plans = [
        Candidate(lowered, ring, None)
        for lowered in lowerings(program, ring, None, KEY_HOLDER, False)
    ]
    return min(plans, key=lambda plan: plan.schedule.seconds).circuit(ring)


def _run(circuit: Circuit) -> float:
    """CPU seconds of a run in this process, plaintexts encoded on the way."""
    rng = np.random.default_rng(0)
    program = circuit.program
    assert program is not None and circuit.publics is not None
    args = [rng.uniform(-0.1, 0.0, v.shape) for v in program.inputs]
    inputs = [np.asarray(a) for a, v in zip(args, program.inputs, strict=True) if v.encrypted]
    operands = circuit.publics.evaluate(args)
    machine = PyfhelMachine.generate(circuit.params, circuit.rotation_steps, circuit.slots)
    started = time.thread_time()
    run_local(circuit, machine, inputs, operands, [])
    return time.thread_time() - started
