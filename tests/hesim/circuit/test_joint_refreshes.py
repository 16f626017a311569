"""Refreshes of several ciphertexts in one: places, contents, and runs that go on from them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hesim
from hesim.circuit import compile as compiling
from hesim.circuit.builder import Builder
from hesim.circuit.circuit import Circuit, Kind
from hesim.circuit.plain.contents import slot_ranges
from hesim.circuit.plain_rows import MaskRows, PlaintextFamily
from hesim.circuit.refresher import BOOTSTRAP_SECONDS
from hesim.circuit.refreshes.contents import PRIME, fingerprints, number
from hesim.circuit.refreshes.joint import Core, core, joined
from hesim.circuit.refreshes.origins import Origin
from hesim.noise.placement import of_circuit
from tests.hesim.circuit.conftest import quiet_params
from tests.hesim.circuit.test_carried import check_carried

COLUMNS = 32
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(16, 4)), RNG.normal(size=16)
BOOTSTRAP = hesim.bootstrap("lattigo_40", min_input_level=2)


def core_of(values: np.ndarray, needed: np.ndarray) -> Core | None:
    """Of whole numbers from 0, in their own ciphertext, number 0."""
    prints = np.stack([values, values * 7 % PRIME])
    return core(prints, needed, [(Origin(0, 1.0, number(1.0)), prints)])


@st.composite
def contents(draw):
    """int (columns,): different numbers and zeros, repeated along some bits of the column."""
    seed = draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    bits = [1 << k for k in range(5) if draw(st.booleans())]
    base = np.arange(COLUMNS)
    for bit in bits:
        base &= ~bit
    values = (
        rng.integers(1, 10**6, COLUMNS)[base] * (rng.random(COLUMNS) < draw(st.just(0.7)))[base]
    )
    return values, rng.random(COLUMNS) < draw(st.sampled_from([0.2, 1.0]))


@settings(max_examples=60, deadline=None)
@given(st.lists(contents(), min_size=1, max_size=6))
def test_what_is_taken_in_comes_out_where_it_was_needed_and_zeros_stay(found):
    cores = [(k, own) for k, (v, needed) in enumerate(found) if (own := core_of(v, needed))]
    joint: dict[int, np.ndarray] = {}
    members = joined(cores)
    assert sorted(m.node for m in members) == [k for k, _ in cores]
    for m in members:
        into = joint.setdefault(m.cipher, np.zeros(COLUMNS, np.int64))
        assert not into[m.place].any()
        into += np.roll(found[m.node][0], m.turned) * m.place
    for m in members:
        values, needed = found[m.node]
        out = np.roll(joint[m.cipher] * m.place, -m.shift)
        for step in m.back:
            out = out + np.roll(out, -step)
        assert np.array_equal(out[needed], values[needed])
        assert not out[values == 0].any()


def test_ciphertexts_that_repeat_are_taken_in_without_a_rotation():
    values = np.tile(np.arange(1, 9), 4)
    own = core_of(values, np.ones(COLUMNS, bool))
    assert own is not None and len(own.columns) == 8
    members = joined([(k, own) for k in range(5)])
    assert [m.cipher for m in members] == [0, 0, 0, 0, 1]
    assert not any(m.turned or m.shift for m in members)


def adam(state, x, y):
    """A step with two moments, and its loss."""
    w, m, v = state
    g = x.T @ (x @ w - y) / 16
    m, v = 0.9 * m + g, 0.9 * v + 0.1 * g * g
    return (w - 0.1 * m, m, v), jnp.sum((x @ w - y) ** 2)


STATE = (np.zeros(4),) * 3
PLANNED: dict[str, Any] = {"refresher": BOOTSTRAP, "interactive": False}


def run(monkeypatch: pytest.MonkeyPatch | None = None, **options: Any) -> Circuit:
    """Three steps of `adam`, held to their exact values; each refreshed alone with monkeypatch."""
    if monkeypatch is not None:
        monkeypatch.setattr(compiling, "with_joint_refreshes", lambda plan: plan)
    options = {"params": quiet_params(levels=12), **PLANNED, **options}
    return check_carried(adam, (STATE, X, Y), encrypted=(0, 2), carried={0: 0}, **options)


def test_a_state_is_bootstrapped_in_one_ciphertext(monkeypatch, tmp_path):
    joint, alone = run(), run(monkeypatch)
    assert (joint.ledger.refreshes, alone.ledger.refreshes) == (1, 3)
    assert joint.ledger.refresh_rounds == alone.ledger.refresh_rounds
    assert joint.ledger.seconds < alone.ledger.seconds - 1.9 * BOOTSTRAP_SECONDS
    assert len(joint.carried) == joint.ledger.carried == 3
    joint.save(tmp_path / "step.npz")
    assert Circuit.load(tmp_path / "step.npz").carried == joint.carried


def test_where_refreshes_cost_little_each_has_its_own(monkeypatch):
    options = {"refresher": hesim.KEY_HOLDER, "interactive": True}
    joint, alone = run(**options), run(monkeypatch, **options)
    assert joint.ledger.counts() == alone.ledger.counts()


def test_each_is_brought_to_the_size_that_bootstraps_are_made_for():
    start = 30.0 * RNG.normal(size=4), 0.001 * RNG.normal(size=4)

    def step(state, x):
        a, b = state
        return (0.9 * a + 0.1 * x[:4], 0.9 * b + 1e-5 * x[4:8]), (a.sum() * x).sum()

    args = start, np.ones(16)
    program = hesim.trace(step, *args, encrypted=(0, 1))
    calibration = hesim.calibrate(program, [args])
    options = PLANNED | {"params": quiet_params(), "calibration": calibration}
    circuit = check_carried(step, args, encrypted=(0, 1), carried={0: 0}, **options)
    (made,) = np.flatnonzero(circuit.kind == Kind.REFRESH).tolist()
    found = slot_ranges(circuit, [*start, np.ones(16)], [])
    assert 0.5 < max(map(abs, found[circuit.operands(made)[0]])) <= 1.0
    stds = [left.std for left in hesim.certify(circuit, args, keys=2).outputs[:2] if left]
    assert stds[1] < 2.0**-9 * stds[0]
    handed_on = of_circuit(circuit.program, circuit).handed_on
    assert [handed_on[k] / std for k, std in enumerate(stds)] == pytest.approx([1.0, 1.0], rel=0.4)


def random_states(seed: int):
    """A function of several tensors that are handed on, and arguments."""
    rng = np.random.default_rng(seed)
    shapes = [tuple(rng.integers(1, 9, rng.integers(1, 3))) for _ in range(rng.integers(2, 5))]
    weights = [rng.normal(size=(s[-1], s[-1])) / s[-1] for s in shapes]
    square = rng.random(len(shapes)) < 0.5

    def step(state, x):
        made = [
            0.5 * s @ w + (0.1 * s * s if q else 0.2 * s) + x[: s.shape[-1]]
            for s, w, q in zip(state, weights, square, strict=True)
        ]
        return tuple(made), sum(s.sum() for s in state)

    return step, (tuple(rng.normal(size=s) for s in shapes), rng.normal(size=8) / 8)


@pytest.mark.parametrize("seed", range(5))
def test_random_states_go_on_as_without(monkeypatch, seed):
    step, args = random_states(seed)
    options = PLANNED | {"params": quiet_params(10, 8), "encrypted": (0, 1), "carried": {0: 0}}
    joint = check_carried(step, args, steps=2, **options)
    monkeypatch.setattr(compiling, "with_joint_refreshes", lambda plan: plan)
    alone = hesim.compile(
        *(hesim.trace(step, *args, encrypted=(0, 1)), quiet_params(10, 8)),
        carried={0: 0},
        **PLANNED,
    )
    assert joint.ledger.refreshes < alone.ledger.refreshes
    assert joint.ledger.seconds < alone.ledger.seconds


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_columns_with_equal_fingerprints_hold_the_same(seed):
    rng = np.random.default_rng(seed)
    b, family = Builder(COLUMNS, 1, 1), np.tile(rng.integers(-1, 4, COLUMNS // 4), 4)[None, :]
    inputs = [PlaintextFamily(0, family, columns=COLUMNS)]
    held: list[np.ndarray] = [np.where(family[0] >= 0, rng.normal(size=4)[family[0]], 0.0)]
    b.begin(-1)
    nodes = b.end([b.input(0, family[0] >= 0)])
    for _ in range(8):
        b.begin(0)
        one, other = rng.integers(len(nodes), size=2)
        kind, x = rng.integers(4), held[one]
        if kind == 0:
            step = int(rng.integers(1, COLUMNS))
            made, value = b.add([(1, b.rotate(nodes[one], step))]), np.roll(x, -step)
        elif kind == 1:
            made, value = b.add([(1, nodes[one]), (-2, nodes[other])]), x - 2 * held[other]
        elif kind == 2:
            made = b.rescale(b.dot([(1, nodes[one], nodes[other])]))
            value = x * held[other]
        else:
            rows = rng.random(COLUMNS) < 0.7
            mask = b.pack(
                PlaintextFamily(-1, MaskRows(rows[None, :]), 0, 1, 1, COLUMNS, 1.0, np.array([0.3]))
            )
            made, value = b.rescale(b.dot_plain([(nodes[one], (mask, 0))])), x * rows * 0.3
        nodes += b.end([made])
        held.append(value)
    prints = fingerprints(b, range(len(b.nodes)), inputs, nodes)
    for n, value in zip(nodes, held, strict=True):
        assert not np.any(value[~prints[n].any(axis=0)])
        for column in range(COLUMNS):
            alike = np.all(prints[n] == prints[n][:, [column]], axis=0)
            assert np.allclose(value[alike], value[column])
    assert np.array_equal(prints[nodes[0]][0] > 0, family[0] >= 0)


def test_members_of_a_batch_stay_side_by_side():
    def step(state, x):
        a, b = state
        return (0.5 * a + x[:, :2], 0.5 * b * b + x[:, 2:4]), 0.5 * x

    args = (RNG.normal(size=(40, 2)), RNG.normal(size=(40, 2))), RNG.normal(size=(40, 8))
    options: dict[str, Any] = {"params": quiet_params(), **PLANNED}
    circuit = check_carried(step, args, encrypted=(0, 1), carried={0: 0}, **options)
    assert (circuit.batch, circuit.ledger.refreshes, circuit.ledger.carried) == (40, 1, 2)
