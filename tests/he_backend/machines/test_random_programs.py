"""Random programs on every machine, against JAX in float64: cancellation, aliasing, public parts,
zeros, negative factors, reductions and moves, in any order.
"""

from __future__ import annotations

import copy
import functools
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import hesim
from he_backend.local import run_local
from he_backend.machines.openfhe.remote import RemoteMachine
from he_backend.machines.table import MACHINES
from hesim.circuit.circuit import Circuit

SIZE = 4
"""Every value is a square matrix of so many rows, so that each operation fits each."""
SLOTS = 64
TOLERANCE = 2.0**-22

Rng = np.random.Generator


def _linear(rng: Rng, x, y, w, v) -> Any:
    match rng.integers(0, 8):
        case 0:
            return x + y
        case 1:
            return y - x
        case 2:
            return -x
        case 3:
            return 3 * x - 2 * y
        case 4:
            return x * w + y
        case 5:
            return w - x * jnp.where(v > 0, v, 0.0)
        case 6:
            return jnp.where(w > 0, x, y - w)
        case _:
            return x / 3.0 - y * 0.7


def _cancelling(rng: Rng, x, y, w, v) -> Any:
    """Sums in which ciphertexts cancel, with or without something public or encrypted left over."""
    match rng.integers(0, 12):
        case 0:
            return x - x
        case 1:
            return (x + w) - x
        case 2:
            return x + lax.stop_gradient(w - x)
        case 3:
            return (x + w) - x + y
        case 4:
            return (x + w) * y - x * y
        case 5:
            return x * y - y * x
        case 6:
            return (x * y + w) - x * y
        case 7:
            return 2 * (x + v) - x - x
        case 8:
            return (x + w) * v - x * v
        case 9:
            return (x.T + w) - x.T + v
        case 10:
            return (x * x + v) - jnp.square(x) + w * y
        case _:
            return (jnp.roll(x + w, 1, 0) - jnp.roll(x, 1, 0)) @ v


def _products(rng: Rng, x, y, w, v) -> Any:
    match rng.integers(0, 9):
        case 0:
            return x * x
        case 1:
            return x * y
        case 2:
            return x @ w
        case 3:
            return w @ x - x
        case 4:
            return x @ y * 0.5
        case 5:
            return x @ x.T * 0.5
        case 6:
            return x * x - 2 * x * y + y * y
        case 7:
            return x * y * x * 0.5
        case _:
            return jnp.einsum("ij,kj->ki", x, w)


def _zeros(rng: Rng, x, y, w, v) -> Any:
    match rng.integers(0, 7):
        case 0:
            return x * 0.0
        case 1:
            return x * jnp.zeros((SIZE, 1)) + y
        case 2:
            return x * jnp.eye(SIZE) - y
        case 3:
            return jnp.zeros_like(x) - y
        case 4:
            return jnp.zeros((SIZE, SIZE)) @ x + w
        case 5:
            return x * (w - w) + y * 1e-14
        case _:
            return jnp.tril(x) - jnp.triu(x)


def _reductions(rng: Rng, x, y, w, v) -> Any:
    axis = int(rng.integers(0, 2))
    match rng.integers(0, 6):
        case 0:
            return x - x.mean(axis, keepdims=True)
        case 1:
            return y + x.sum(axis, keepdims=True) * 0.25
        case 2:
            return jnp.cumsum(x, axis) * 0.5
        case 3:
            return y * (x * w).sum() * 0.1
        case 4:
            return jnp.broadcast_to((x + x).sum(axis, keepdims=True) * -0.125, x.shape) + v
        case _:
            return x[:, :2].prod(1, keepdims=True) + y


def _moves(rng: Rng, x, y, w, v) -> Any:
    axis, step = int(rng.integers(0, 2)), int(rng.integers(1, SIZE))
    match rng.integers(0, 9):
        case 0:
            return x.T
        case 1:
            return jnp.roll(x, step, axis)
        case 2:
            return jnp.flip(x, axis)
        case 3:
            return jnp.concatenate([x[step:], w[:step]])
        case 4:
            return lax.pad(x, jnp.asarray(0.5, x.dtype), [(1, -1, 0), (-1, 1, 0)])
        case 5:
            return x[rng.integers(0, SIZE, SIZE)]
        case 6:
            return x.at[step].add(y[0])
        case 7:
            return x.at[:, step].set(v[:, 0])
        case _:
            return jnp.repeat(x[:, ::2], 2, axis=1) - x


KINDS: tuple[Callable[..., Any], ...] = (
    *(_linear, _cancelling, _cancelling, _products, _zeros, _reductions, _moves),
)


def program_of(seed: int) -> Callable[..., Any]:
    """A function of two encrypted and two public matrices; what it does depends on `seed` only."""

    def fn(x, y, w, v):
        rng = np.random.default_rng(seed)
        values = [x, y]
        for _ in range(rng.integers(2, 7)):
            a, b = (values[i] for i in rng.integers(max(0, len(values) - 4), len(values), 2))
            p, q = (w, v) if rng.random() < 0.5 else (v, jnp.sin(w) - v)
            values.append(KINDS[rng.integers(0, len(KINDS))](rng, a, b, p, q))
        return values[-1], values[-2] * values[2]

    fn.__name__ = f"program_{seed}"
    return fn


@functools.lru_cache(maxsize=32)
def compiled(seed: int, ring: hesim.CKKSParams) -> tuple[Circuit, tuple, list[np.ndarray]]:
    """The Circuit of a random program, its arguments, and its results in JAX in float64."""
    rng = np.random.default_rng([seed, 1])
    args = tuple(rng.uniform(-1, 1, (4, SIZE, SIZE)))
    if rng.random() < 0.25:  # exact zeros and equal operands
        args = (args[0], args[0], np.where(rng.random((SIZE, SIZE)) < 0.5, 0.0, args[2]), args[3])
    fn = program_of(seed)
    with jax.enable_x64(True):
        program = hesim.trace(fn, *args, encrypted=(0, 1))
        circuit = hesim.compile(program, ring, batch=bool(rng.random() < 0.5))
        return circuit, args, [np.asarray(r) for r in fn(*map(jnp.asarray, args))]


def run(seed: int, ring: hesim.CKKSParams, machine: Any) -> tuple[float, hesim.Program]:
    """The largest error on a machine relative to the largest value, or to 1, and the Program."""
    circuit, args, right = compiled(seed, ring)
    assert circuit.slots <= SLOTS, f"seed {seed}: {circuit.slots} slots"
    if isinstance(machine, RemoteMachine):  # the same keys, vectors of another length
        machine = machine.resized(circuit.slots)
    else:
        machine = copy.copy(machine)
        machine.slots = circuit.slots
    encrypted = [(tap, r) for tap, r in zip(circuit.outputs, right, strict=True) if tap is not None]
    decrypt = sorted({int(c) for tap, _ in encrypted for c in tap.ciphers})
    operands = circuit.publics.evaluate(circuit.program.flatten(args))
    vectors, spent = run_local(circuit, machine, list(args[:2]), operands, decrypt)
    assert spent.counts == Counter(circuit.ledger.counts())
    errors = [
        np.max(np.abs(tap.read(vectors) - r)) / max(1.0, np.max(np.abs(r))) for tap, r in encrypted
    ]
    return float(max(errors)), circuit.program


@pytest.fixture(scope="module")
def with_keys(params, digit_params) -> Callable[[str], Any]:
    """Gives a machine with all keys, by its name, for vectors of up to SLOTS values."""

    @functools.cache
    def made(name: str) -> Any:
        ring = digit_params if name == "openfhe" else params
        return MACHINES[name].load().generate(ring, range(1, SLOTS), SLOTS)

    return made


@pytest.fixture
def keyed(request, name, with_keys) -> Any:
    """The machine of that name; skipped where its library is not installed."""
    if name == "openfhe":
        request.getfixturevalue("needs_openfhe")
    return with_keys(name)


def check(name: str, seeds: range, machine: Any) -> None:
    wrong = []
    for seed in seeds:
        error, program = run(seed, machine.params, machine)
        if not error <= TOLERANCE:
            wrong.append(f"seed {seed}: off by {error:.2g}\n{program}")
    assert not wrong, f"{len(wrong)} of {len(seeds)} programs are wrong on {name}:\n" + "\n".join(
        wrong
    )


@pytest.mark.parametrize("name", MACHINES)
def test_random_programs_are_right_on_every_machine(name, keyed):
    check(name, range(8 if name == "openfhe" else 24), keyed)


@pytest.mark.slow
@pytest.mark.parametrize("name", MACHINES)
def test_many_random_programs_are_right_on_every_machine(name, keyed):
    """HE_RANDOM_PROGRAMS: how many, 400 by default."""
    count = int(os.environ.get("HE_RANDOM_PROGRAMS", "400"))
    check(name, range(1000, 1000 + count), keyed)
