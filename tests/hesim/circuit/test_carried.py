"""Results that are arguments of the next run: the same places, levels and scales, run after run."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hesim
from benchmarks.lora_step import lora_step
from he_backend.local import run_local
from he_backend.machines.slots import SlotsMachine
from hesim import LevelError, compile, trace
from hesim.circuit.circuit import Circuit, Kind
from hesim.circuit.packing import search
from hesim.circuit.plain.errors import ValueRangeError
from hesim.errors import ArgumentError, LayoutError
from tests.hesim.circuit.conftest import close, consistent, quiet_params
from tests.hesim.circuit.packing.test_random_plans import program as random_program

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(16, 4)), RNG.normal(size=16)


def momentum(state, x, y):
    """A step of gradient descent with momentum, and its loss."""
    w, m = state
    m = 0.9 * m + x.T @ (x @ w - y) / 16
    return (w - 0.1 * m, m), jnp.sum((x @ w - y) ** 2)


def run_carried(
    circuit: Circuit, steps: list[tuple], made: type = SlotsMachine
) -> list[list[np.ndarray | None]]:
    """Outputs of runs in this process, each going on from the ciphertexts of the one before.

    steps: arguments of each. made: the machine, that of plain vectors by default.
    """
    program, state, found = circuit.program, {}, []
    machine = made.generate(circuit.params, circuit.rotation_steps, circuit.slots)
    results = [tap for tap in circuit.outputs if tap is not None]
    decrypt = sorted({int(c) for tap in results for c in tap.ciphers})
    for number, args in enumerate(steps):
        flat = program.flatten(args)
        secret = [np.asarray(a, np.float64) for a, v in zip(flat, program.inputs) if v.encrypted]
        if number:  # what is carried is not looked at
            secret = [np.full_like(a, np.nan) if c else a for a, c in zip(secret, given(circuit))]
        operands = circuit.publics.evaluate(flat)
        vectors, spent = run_local(circuit, machine, secret, operands, decrypt, state=state)
        assert spent.counts["inputs"] == circuit.ledger.inputs - len(circuit.carried) * bool(number)
        found.append([None if t is None else t.read(vectors) for t in circuit.outputs])
    return found


def given(circuit: Circuit) -> list[bool]:
    """By encrypted input, whether all of its ciphertexts are carried."""
    rows = {int(circuit.param[i]) for _, i in circuit.carried}
    made = {int(p) for p, k in zip(circuit.param, circuit.kind) if k == Kind.INPUT}
    first = np.cumsum([0, *(len(family) for family in circuit.inputs)])
    own = [made & set(range(a, b)) for a, b in zip(first, first[1:])]
    return [bool(r) and r <= rows for r in own]


def check_carried(fn, args: tuple, *, encrypted: Any, carried: dict[int, int], steps: int = 3, **o):
    """Asserts that runs on carried ciphertexts compute what the function computes of its own
    results.
    """
    program = trace(fn, *args, encrypted=encrypted)
    circuit = compile(program, o.pop("params", None) or quiet_params(), carried=carried, **o)
    consistent(circuit)
    assert circuit.carried
    for c, i in circuit.carried:
        assert circuit.kind[i] == Kind.INPUT
        assert circuit.level[c] == circuit.level[i]
        assert circuit.scale[c] == circuit.scale[i]
    calls, exact = [tuple(args)], []
    with jax.enable_x64(True):
        for _ in range(steps):
            out = program(*calls[-1], precision="float64")
            exact.append(jax.tree.leaves(out))
            results = out if type(out) is tuple else (out,)
            again = {a: results[r] for a, r in carried.items()}
            calls.append(tuple(again.get(k, arg) for k, arg in enumerate(calls[-1])))
    for k, found in enumerate(run_carried(circuit, calls[:steps])):
        for number, (x, y) in enumerate(zip(found, exact[k], strict=True)):
            if x is not None:
                close(x, np.asarray(y), f"result {number} of run {k}", 1e-9)
    return circuit


def test_a_state_goes_on_from_run_to_run_where_it_is(tmp_path):
    state = np.zeros(4), np.zeros(4)
    circuit = check_carried(
        momentum, (state, X, Y), encrypted=(0, 2), carried={0: 0}, steps=6, params=quiet_params()
    )
    assert [circuit.kind[c] for c, _ in circuit.carried] == [Kind.REFRESH] * 2
    circuit.save(tmp_path / "step.npz")
    assert Circuit.load(tmp_path / "step.npz").carried == circuit.carried


@pytest.mark.slow
def test_a_training_step_goes_on_from_its_adapters_and_moments():
    program, args = lora_step(sentences=1)
    params = hesim.CKKSParams(14, 4, 40, 50, 60)
    circuit = compile(program, params, carried={0: 0, 1: 1})
    calls, exact = [args], []
    with jax.enable_x64(True):
        for _ in range(3):
            out = program(*calls[-1], precision="float64")
            exact.append(jax.tree.leaves(out))
            calls.append((*out[:2], *args[2:]))
    for k, found in enumerate(run_carried(circuit, calls[:3])):
        for x, y in zip(found, exact[k], strict=True):
            if x is not None:
                close(x, np.asarray(y), f"run {k}", 1e-9)


def test_what_is_carried_may_change_places_and_stay_as_it_is():
    def swapped(a, b, c, x):
        return 0.5 * b * x, a + x, c

    args = tuple(RNG.normal(size=6) for _ in range(4))
    check_carried(swapped, args, encrypted=(0, 1, 2, 3), carried={0: 0, 1: 1, 2: 2})


def test_members_of_a_batch_are_carried_side_by_side():
    w = RNG.normal(size=(5, 5)) / 3
    circuit = check_carried(
        lambda h, x: (h @ w + x) * (h @ w + x) * 0.2,
        (RNG.normal(size=(40, 5)), RNG.normal(size=(40, 5))),
        encrypted=(0, 1),
        carried={0: 0},
    )
    assert circuit.batch == 40


def test_a_bootstrap_of_limited_reach_is_planned_for():
    refresher = hesim.bootstrap("lattigo_40", depth=3)
    circuit = check_carried(
        momentum,
        ((np.zeros(4), np.zeros(4)), X, Y),
        encrypted=(0, 2),
        carried={0: 0},
        params=quiet_params(levels=7),
        refresher=refresher,
        interactive=False,
    )
    assert max(circuit.level[i] for _, i in circuit.carried) <= refresher.highest(7)


def random_step(seed: int):
    """A function whose first result has the shape of its first argument, and arguments."""
    fn, args = random_program(seed)
    shape, weights = args[0].shape, {}

    def step(*values):
        x, y = fn(*values)
        size = math.prod(x.shape)
        if size not in weights:
            w = np.random.default_rng(seed).normal(size=(size, math.prod(shape)))
            weights[size] = w / max(size, 1) / 2
        return x.reshape(-1) @ weights[size] + 0.5 * values[0].reshape(-1), y

    return (lambda *v: (step(*v)[0].reshape(shape), step(*v)[1])), args


def check_random(seed: int) -> None:
    fn, args = random_step(seed)
    try:
        check_carried(
            *(fn, tuple(args)),
            encrypted=tuple(range(len(args))),
            carried={0: 0},
            steps=2,
            params=quiet_params(10, 6),
            batch=bool(seed % 2),
        )
    except ValueRangeError:
        pytest.skip("numbers that a ciphertext does not hold")


@pytest.mark.parametrize("seed", range(8))
def test_random_steps_go_on_from_their_results(seed):
    check_random(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8, 120))
def test_many_random_steps_go_on_from_their_results(seed):
    check_random(seed)


@pytest.mark.parametrize(
    ("carried", "told"),
    [
        ({3: 0}, "argument 3"),
        ({0: 2}, "result 2"),
        ({1: 1}, "has shape"),
        ({0: 1}, "same structure"),
        ({"state": 0}, "argument 'state'"),
    ],
)
def test_what_cannot_be_carried_is_said(carried, told):
    program = trace(momentum, (np.zeros(4), np.zeros(4)), X, Y, encrypted=(0, 2))
    with pytest.raises(ArgumentError, match=told):
        compile(program, quiet_params(), carried=carried)


def test_what_is_encrypted_at_one_end_only_is_said():
    program = trace(lambda h, x: (h * 2, x + 1), np.ones(3), np.ones(3), encrypted=(1,))
    with pytest.raises(ArgumentError, match="is public and the result"):
        compile(program, quiet_params(), carried={0: 1})


def test_without_a_key_holder_nothing_is_brought_back_to_its_level():
    program = trace(momentum, (np.zeros(4), np.zeros(4)), X, Y, encrypted=(0, 2))
    with pytest.raises(LevelError, match="interactive=False"):
        compile(program, quiet_params(), carried={0: 0}, interactive=False)


def test_an_operation_without_a_layout_is_named():
    square = np.zeros((512, 512), np.float32)
    program = trace(lambda h, x: (h @ h) * 0.01 + x, square, square)
    with pytest.raises(LayoutError, match=r"dot_general at .*test_carried.py:\d+.*\(512, 512\)"):
        compile(program, quiet_params(12, 3), carried={0: 0})


def test_a_result_that_cannot_get_back_is_named(monkeypatch):
    monkeypatch.setattr(search, "relay", lambda out, into: None)
    program = trace(lambda h, g, x: (h + x, g * 0.5), *(np.ones(8),) * 3)
    with pytest.raises(LayoutError, match=r"what is carried \(args\[0\]\)"):
        compile(program, quiet_params(), carried={0: 0, 1: 1})


def test_a_running_sum_of_very_many_is_refused_before_it_takes_all_memory():
    program = trace(lambda h: jnp.cumsum(h) * 0.5, np.zeros(2**16, np.float32))
    with pytest.raises(LayoutError, match="cumsum at"):
        compile(program, quiet_params(12, 3), carried={0: 0}, memory=1e9)
