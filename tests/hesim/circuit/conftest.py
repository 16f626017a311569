"""Runs a function through trace, compile and the slot machine, and holds it to its exact values."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from he_backend.local import run_local
from he_backend.machines.slots import SlotsMachine
from hesim.circuit.circuit import Circuit, Kind
from hesim.circuit.compile import compile
from hesim.circuit.plain.contents import slot_ranges
from hesim.params import CKKSParams
from hesim.program import Program, widened
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
    decrypt = sorted({int(c) for tap in (*results, *circuit.taps) for c in tap.ciphers})
    vectors, spent = run_local(circuit, machine, secret, operands, decrypt)
    spend = {k: n for k, n in spent.counts.items() if n}
    assert spend == {k: n for k, n in circuit.ledger.counts().items() if n}
    outputs = [None if tap is None else tap.read(vectors) for tap in circuit.outputs]
    return outputs, {tap.op: tap.read(vectors) for tap in circuit.taps}


def refreshed_sizes(circuit: Circuit, args: tuple) -> list[float]:
    """Largest absolute slot of each ciphertext that is refreshed."""
    program = circuit.program
    flat = program.flatten(args)
    secret = [np.asarray(a, np.float64) for a, v in zip(flat, program.inputs) if v.encrypted]
    found = slot_ranges(circuit, secret, circuit.publics.evaluate(flat))
    made = np.flatnonzero(circuit.kind == Kind.REFRESH).tolist()
    return [max(map(abs, found[circuit.operands(i)[0]])) for i in made]


def consistent(circuit: Circuit) -> None:
    """Facts that hold for every Circuit: levels in range, operands alike, scales canonical."""
    params, kind, level, scale = circuit.params, circuit.kind, circuit.level, circuit.scale
    assert level.min(initial=0) >= 0
    assert level.max(initial=0) <= params.levels
    # Masked products are at triple scale, and rescaled twice, relinearized in between.
    first = np.append(circuit.arg, -1)[circuit.arg_ptr[:-1]]
    between = first[kind == Kind.RESCALE]
    halfway = {int(first[i]) if kind[i] == Kind.RELINEARIZE else int(i) for i in between}
    for i in range(len(circuit)):
        part = circuit.args(i)
        used = circuit.arg[part]
        if kind[i] == Kind.DOT:
            used = np.concatenate([used, circuit.arg2[part]])
        assert np.all(used < i)
        if kind[i] in (Kind.INPUT, Kind.REFRESH, Kind.RESCALE):
            assert i in halfway or scale[i] == params.scale(int(level[i]))
        elif kind[i] != Kind.DROP:
            assert np.all(level[used] == level[i])
        if kind[i] == Kind.RESCALE:
            assert np.all(level[used] == level[i] + 1)
        if kind[i] == Kind.ADD:
            assert np.all(scale[used] == scale[i])
    counts = {Kind.ROTATE: circuit.ledger.rotations, Kind.REFRESH: circuit.ledger.refreshes}
    for which, count in counts.items():
        assert np.sum(kind == which) == count


def exact_values(program: Program, args: tuple) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(outputs, first result of each operation) in float64, compiled once for speed."""
    flat = widened(program.flatten(args), program.inputs)
    known = program.public_values(flat)

    def run(flat, known):
        results = []

        def hook(equation, found):
            results.append(found[0])
            return found

        return program.evaluate(flat, hook, wide=True, known=known), results

    with jax.enable_x64(True):
        compiled = jax.jit(run).lower(flat, known).compile({"xla_backend_optimization_level": "0"})
        outputs, results = compiled(flat, known)
    return [np.asarray(x) for x in outputs], [np.asarray(x) for x in results]


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
    wanted, operations = exact_values(program, args)
    outputs, taps = run_slots(circuit, args)
    for number, found in taps.items():
        if number >= 0:
            what, want = str(program.ops[number]), operations[number]
            assert found.shape == want.shape, what
            computed = ~np.isnan(found)  # what no result depends on is not
            assert computed.any() or not found.size, what
            close(found[computed], want[computed], what, tolerance)
    assert len(outputs) == len(wanted)
    secret = [getattr(v, "encrypted", False) for v in program.outputs]
    for k, (found, want, is_secret) in enumerate(zip(outputs, wanted, secret, strict=True)):
        assert (found is not None) == is_secret
        if found is not None:
            close(found, want, f"output {k}", tolerance)
    return circuit


class Draw:
    """Random shapes, numbers and layouts out of hypothesis' `data()`."""

    def __init__(self, data: st.DataObject):
        self.data = data
        self.rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))

    def __call__(self, strategy: st.SearchStrategy[Any], label: str | None = None) -> Any:
        return self.data.draw(strategy, label=label)

    def shape(self, least: int = 1, most: int = 4) -> tuple[int, ...]:
        """A shape of `least` to `most` axes, of at most 96 elements."""
        sizes = st.lists(st.integers(1, 5), min_size=least, max_size=most)
        return tuple(self(sizes.filter(lambda s: np.prod(s) <= 96), "shape"))

    def axis(self, shape: tuple[int, ...]) -> int:
        return self(st.integers(0, len(shape) - 1), "axis")

    def axes(self, shape: tuple[int, ...], least: int = 0) -> tuple[int, ...]:
        """Some of the axes, in random order."""
        some = st.lists(st.sampled_from(range(len(shape))), unique=True, min_size=least)
        return tuple(self(some if shape else st.just([]), "axes"))

    def array(self, *shape: int) -> np.ndarray:
        """Normal numbers, half of the time with exact zeros among them."""
        values = self.rng.normal(size=shape)
        if self.rng.random() < 0.5:
            values = np.where(self.rng.random(shape) < 0.3, 0.0, values)
        return np.asarray(values)

    def options(self, *shapes: tuple[int, ...]) -> dict[str, Any]:
        """Options of `compile`: layouts of the encrypted inputs, or the compiler's own."""
        batch = self(st.booleans(), "batch")
        if batch:
            return {}
        if not self(st.booleans(), "layouts given"):
            return {"batch": False}
        return {"batch": False, "layouts": [self.axes(shape) for shape in shapes]}


@pytest.fixture(scope="session")
def drawing() -> type[Draw]:
    """`Draw`."""
    return Draw


@pytest.fixture(scope="session")
def check() -> Check:
    """`check_function`."""
    return check_function


@pytest.fixture(scope="session")
def small_params() -> Callable[..., CKKSParams]:
    """`quiet_params`."""
    return quiet_params


@pytest.fixture(scope="session", name="run_slots")
def run_slots_fixture() -> Callable[..., tuple[list[np.ndarray | None], dict[int, Any]]]:
    """`run_slots`."""
    return run_slots
