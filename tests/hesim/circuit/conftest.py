"""Runs a function through trace, compile and the slot machine, and holds it to its exact values."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from jax import tree_util

from he_backend.exact import evaluate
from he_backend.local import run_local
from he_backend.machines.slots import SlotsMachine
from hesim.circuit.circuit import Circuit, Kind
from hesim.circuit.compile import compile
from hesim.params import CKKSParams
from hesim.trace import trace

TOLERANCE = 1e-9

Check = Callable[..., Circuit]


def quiet_params(log_n: int = 11, levels: int = 6) -> CKKSParams:
    """A small ring without security, and without the warning about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CKKSParams(log_n, levels, 40, 50, 60, security=None)


def run_slots(circuit: Circuit, args: tuple) -> tuple[list[np.ndarray | None], dict[int, Any]]:
    """(outputs, taps by operation), from the slot machine with the rotation keys announced."""
    program = circuit.program
    flat = program.flatten(args)
    secret = [np.asarray(a, np.float64) for a, v in zip(flat, program.inputs) if v.encrypted]
    operands = circuit.publics.evaluate(flat)
    machine = SlotsMachine(circuit.params, circuit.slots, circuit.rotation_steps)
    results = [tap for tap in circuit.outputs if tap is not None]
    deliver = sorted({int(c) for tap in (*results, *circuit.taps) for c in tap.ciphers})
    vectors, spent = run_local(circuit, machine, secret, operands, deliver)
    spend = {k: n for k, n in spent.counts.items() if n}
    assert spend == {k: n for k, n in circuit.ledger.counts().items() if n}
    outputs = [None if tap is None else tap.read(vectors) for tap in circuit.outputs]
    return outputs, {tap.op: tap.read(vectors) for tap in circuit.taps}


def consistent(circuit: Circuit) -> None:
    """Facts that hold for every Circuit: levels in range, operands alike, scales canonical."""
    params, kind, level, scale = circuit.params, circuit.kind, circuit.level, circuit.scale
    assert level.min(initial=0) >= 0
    assert level.max(initial=0) <= params.levels
    for i in range(len(circuit)):
        part = circuit.args(i)
        used = circuit.arg[part]
        if kind[i] == Kind.DOT:
            used = np.concatenate([used, circuit.arg2[part]])
        assert np.all(used < i)
        if kind[i] in (Kind.INPUT, Kind.REFRESH, Kind.RESCALE):
            assert scale[i] == params.scale(int(level[i]))
        elif kind[i] != Kind.DROP:
            assert np.all(level[used] == level[i])
        if kind[i] == Kind.RESCALE:
            assert np.all(level[used] == level[i] + 1)
        if kind[i] == Kind.ADD:
            assert np.all(scale[used] == scale[i])
    counts = {Kind.ROTATE: circuit.ledger.rotations, Kind.REFRESH: circuit.ledger.refreshes}
    for which, count in counts.items():
        assert np.sum(kind == which) == count


def close(found: np.ndarray, exact: np.ndarray, what: str, tolerance: float) -> None:
    """Same shape, and the same values up to `tolerance` relative to the largest."""
    assert found.shape == exact.shape, f"{what}: shape {found.shape} instead of {exact.shape}"
    if not exact.size:
        return
    error = np.abs(found - exact).max() / max(1.0, np.abs(exact).max())
    assert error <= tolerance, f"{what}: relative error {error:.3g}"


def check_function(
    fn: Callable[..., Any],
    *args: Any,
    encrypted: Any = (0,),
    params: CKKSParams | None = None,
    tolerance: float = TOLERANCE,
    **options: Any,
) -> Circuit:
    """Asserts that the Circuit of `fn` computes its float64 values, operation by operation.

    Args:
      fn, args, encrypted: as for `hesim.trace`.
      options: as for `hesim.compile`.
    """
    program = trace(fn, *args, encrypted=encrypted)
    circuit = compile(program, params or quiet_params(), **options)
    consistent(circuit)
    exact = evaluate(program, args)
    outputs, taps = run_slots(circuit, args)
    for number, found in taps.items():
        if number >= 0:
            close(found, exact.ops[number], str(program.ops[number]), tolerance)
    wanted = tree_util.tree_leaves(exact.outputs)
    assert len(outputs) == len(wanted)
    secret = [getattr(v, "encrypted", False) for v in program.outputs]
    for k, (found, want, is_secret) in enumerate(zip(outputs, wanted, secret, strict=True)):
        assert (found is not None) == is_secret
        if found is not None:
            close(found, want, f"output {k}", tolerance)
    return circuit


@pytest.fixture(scope="session")
def check() -> Check:
    """`check_function`."""
    return check_function


@pytest.fixture(scope="session")
def small_params() -> Callable[..., CKKSParams]:
    """`quiet_params`."""
    return quiet_params
