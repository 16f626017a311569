"""Sums whose ciphertexts cancel have the error of the encryption of zero that hides the rest."""

from __future__ import annotations

import math
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import hesim
from hesim.noise import formulas, placement
from hesim.noise.cancelled import cancelled
from hesim.noise.profiles import profile

X, Y, W = np.random.default_rng(3).uniform(-1, 1, (3, 4, 8))


@pytest.fixture(scope="module")
def params() -> hesim.CKKSParams:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hesim.CKKSParams(11, 3, 40, 50, 60, security=None)


def compiled(fn: Any, params: hesim.CKKSParams) -> hesim.Circuit:
    program = hesim.trace(fn, X, Y, W, encrypted=(0, 1))
    return hesim.compile(program, params, batch=False)


CANCEL = {
    "difference": lambda x, y, w: x - x,
    "public part": lambda x, y, w: (x + w) - x,
    "straight through": lambda x, y, w: (x + lax.stop_gradient(w - x)) * y,
    "multiples": lambda x, y, w: 2 * (x + w) - x - x,
    "moved": lambda x, y, w: jnp.roll(x + w, 1, 1) - jnp.roll(x, 1, 1),
    "squares": lambda x, y, w: (x * x + w) - jnp.square(x),
    "either order": lambda x, y, w: (x + y) - (y + x),
}

KEEP = {
    "sums": lambda x, y, w: x + y - w,
    "other operands": lambda x, y, w: (x + w) - y,
    "products": lambda x, y, w: (x + w) * y - x * y,
    "moved apart": lambda x, y, w: jnp.roll(x, 1, 1) - jnp.roll(x, 2, 1),
    "multiples": lambda x, y, w: 3 * x - 2 * x,
    "centred": lambda x, y, w: x - x.mean(1, keepdims=True),
}


@pytest.mark.parametrize("name", CANCEL)
def test_sums_that_cancel_whatever_the_data_are_found(name, params):
    assert cancelled(compiled(CANCEL[name], params))


@pytest.mark.parametrize("name", KEEP)
def test_sums_that_do_not_are_left_alone(name, params):
    circuit = compiled(KEEP[name], params)
    assert not {i: n for i, n in cancelled(circuit).items() if n == 2}


@pytest.mark.parametrize("name", ["difference", "public part", "multiples"])
def test_both_tiers_have_the_error_of_an_encryption_of_zero(name, params):
    circuit = compiled(CANCEL[name], params)
    seal, level = profile("seal"), int(circuit.level[-1])
    expected = formulas.value_std(formulas.encrypt(params.n, seal), params, level, seal)
    certified = hesim.certify(circuit, (X, Y, W), keys=16).outputs[0]
    assert certified is not None
    schedule = placement.of_circuit(circuit.program, circuit)
    predicted = hesim.predict(circuit.program, params, (X, Y, W), 16, schedule=schedule).ops[-1]
    for std in (certified.std, predicted.std):
        assert abs(math.log2(std / expected)) < 0.3


def test_what_is_predicted_is_what_happens(params):
    machines = pytest.importorskip("he_backend.machines.pyfhel.machine")
    from he_backend.local import run_local

    steps = range(1, 64)
    machine = machines.PyfhelMachine.generate(params, steps, 64)
    hidden: list[int] = []
    make = machine._zero
    machine._zero = lambda *a: (hidden.append(a[2]), make(*a))[1]

    def every(x, y, w):
        return {name: fn(x, y, w) for name, fn in (*CANCEL.items(), *KEEP.items())}

    circuit = compiled(every, params)
    machine.slots = circuit.slots
    operands = circuit.publics.evaluate([X, Y, W])
    decrypt = sorted({int(c) for tap in circuit.outputs if tap for c in tap.ciphers})
    run_local(circuit, machine, [X, Y], operands, decrypt)
    # A zero of three components is made of two others, which are asked for besides.
    expected = [n for c in cancelled(circuit).values() for n in ([2] if c == 2 else [3, 2, 2])]
    assert sorted(hidden) == sorted(expected)
