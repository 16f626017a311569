"""Executing whole Circuits: every instruction kind, counts, grouping, errors with their place."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import numpy as np
import pytest

from he_backend.errors import BackendError, MissingRotationKey, ValueRangeError
from he_backend.local import run_local, twin_ranges
from he_backend.machines.slots import SlotsMachine
from hesim.circuit.circuit import Circuit, Kind
from hesim.circuit.plain.execute import Executor, scalar_groups
from hesim.circuit.plain_rows import MapRows, MaskRows

TOLERANCE = 2.0**-20


def everything(draft, rng):
    """A Circuit with all ten kinds, and the value of its two outputs."""
    x, y = rng.uniform(-1, 1, (2, draft.slots))
    w = rng.uniform(-1, 1, draft.slots)
    a, b = draft.input(x), draft.input(y)
    product = draft.rescale(draft.relinearize(draft.dot((2, a, b), (-1, a, a))))
    draft.op = 1
    mixed = draft.rescale(draft.dot_plain((a, w), (b, 0.25)))
    both = draft.add((1, product), (-3, mixed))
    rotated = draft.rotate(draft.add_plain(both, w), 5)
    low = draft.drop(rotated, 0)
    again = draft.refresh(low, 1)
    last = draft.rescale(draft.dot_plain((again, 1.5)))
    first = np.roll(2 * x * y - x * x - 3 * (w * x + 0.25 * y) + w, -5)
    return draft.circuit(rotated, last), (x, y), (first, 1.5 * first)


def check(circuit, machine, inputs, operands, expected):
    outputs = [int(tap.cipher[0]) for tap in circuit.outputs]
    vectors, spent = run_local(circuit, machine, inputs, operands, outputs)
    for tap, value in zip(circuit.outputs, expected, strict=True):
        np.testing.assert_allclose(tap.read(vectors), value, atol=TOLERANCE)
    assert {k: v for k, v in spent.counts.items() if v} == {
        k: v for k, v in circuit.ledger.counts().items() if v
    }
    return spent


def test_every_kind(draft, rng, machine):
    circuit, inputs, expected = everything(draft, rng)
    assert set(circuit.kind.tolist()) == set(range(10))
    spent = check(circuit, machine, inputs, draft.operands, expected)
    assert set(spent.seconds) == {-1, 0, 1} and all(s >= 0 for s in spent.seconds.values())


def test_saved_circuit_runs_the_same(draft, rng, machine, tmp_path):
    circuit, inputs, expected = everything(draft, rng)
    circuit.save(tmp_path / "c.npz")
    check(Circuit.load(tmp_path / "c.npz"), machine, inputs, draft.operands, expected)


def test_three_components_through_add_rescale_and_drop(draft, rng, machine):
    x, y = rng.uniform(-1, 1, (2, draft.slots))
    a, b = draft.input(x), draft.input(y)
    pair = draft.add((1, draft.dot((1, a, b))), (-1, draft.dot((1, b, b))))
    c = draft.relinearize(draft.drop(draft.rescale(pair), 1))
    circuit = draft.circuit(c)
    assert circuit.components.tolist() == [2, 2, 3, 3, 3, 3, 3, 2]
    check(circuit, machine, (x, y), [], (x * y - y * y,))


def matrix_circuit(draft, rng, rows=5, columns=6):
    x = rng.uniform(-1, 1, (columns, draft.slots))
    w = rng.uniform(-1, 1, (rows, columns))
    w[1] = 0.0
    ciphers = [draft.input(v) for v in x]
    outputs = [
        draft.rescale(draft.dot_plain(*((c, float(v)) for c, v in zip(ciphers, row, strict=True))))
        for row in w
    ]
    return draft.circuit(*outputs), x, w


def test_matrix_by_scalars_is_grouped(draft, rng, machine):
    circuit, x, w = matrix_circuit(draft, rng)
    groups = scalar_groups(circuit, range(len(circuit)))
    assert sorted(groups) == np.flatnonzero(circuit.kind == Kind.DOT_PLAIN).tolist()
    assert len({id(g) for g in groups.values()}) == 1
    check(circuit, machine, x, [], tuple(w @ x))


def test_executor_keeps_no_more_than_asked(draft, rng, params):
    circuit, x, _ = matrix_circuit(draft, rng)
    machine = SlotsMachine(params, draft.slots)
    ciphers = {i: machine.encrypt(v, 3, params.scale(3)) for i, v in enumerate(x)}
    work = [i for i in range(len(circuit)) if circuit.kind[i] != Kind.INPUT]
    wanted = {int(tap.cipher[0]) for tap in circuit.outputs}
    Executor(circuit, machine, []).run(work, ciphers, wanted.__contains__)
    assert set(ciphers) == wanted, "operands go with their last use, too"


class Counting(SlotsMachine):
    """Counts the encoded vectors that are held at a time."""

    def __init__(self, params, slots):
        super().__init__(params, slots)
        self.held, self.most, self.made = 0, 0, 0

    def encode(self, values, level, scale):
        plain = super().encode(values, level, scale)
        self.made += 1
        self.held += 1
        self.most = max(self.most, self.held)
        weakref.finalize(plain, self._let_go)
        return plain

    def _let_go(self):
        self.held -= 1


def test_plaintexts_of_a_long_sum_are_held_one_at_a_time(draft, rng, params):
    x, w = rng.uniform(-1, 1, (2, 30, draft.slots))
    ciphers = [draft.input(v) for v in x]
    circuit = draft.circuit(draft.rescale(draft.dot_plain(*zip(ciphers, w, strict=True))))
    machine = Counting(params, draft.slots)
    check(circuit, machine, x, draft.operands, ((w * x).sum(0),))
    assert machine.made == 30
    assert machine.most <= 2


def read_in_turn(draft, rng, params, room):
    """Three ciphertexts times the same five vectors each, and how often one was encoded."""
    x = rng.uniform(-1, 1, (3, draft.slots))
    w = rng.uniform(-1, 1, (5, draft.slots))
    ciphers = [draft.input(v) for v in x]
    made = [draft.dot_plain(*((c, v) for v in w)) for c in ciphers]
    circuit = draft.circuit(*(draft.rescale(c) for c in made))
    # Plaintext k of every sum is the same one.
    plain = (
        circuit.kind[np.repeat(np.arange(len(circuit)), np.diff(circuit.arg_ptr))] == Kind.DOT_PLAIN
    )
    circuit.arg2[plain] %= 5
    machine = Counting(params, draft.slots)
    executor = Executor(circuit, machine, draft.operands, room * 8 * draft.slots)
    held = {i: machine.encrypt(v, 3, params.scale(3)) for i, v in enumerate(x)}
    executor.run([i for i in range(len(circuit)) if circuit.kind[i] != Kind.INPUT], held)
    for tap, v in zip(circuit.outputs, x, strict=True):
        found = machine.decrypt(held[int(tap.cipher[0])])
        np.testing.assert_allclose(found, v * w.sum(0), atol=TOLERANCE)
    assert executor._encoded.held == 0, "after their last use"
    return machine


@pytest.mark.parametrize("room", [0, 1, 2, 4, 5])
def test_plaintexts_that_have_room_are_encoded_once(draft, rng, params, room):
    machine = read_in_turn(draft, rng, params, room)
    assert machine.made == room + 3 * (5 - room)
    assert machine.most <= room + 2


@pytest.mark.parametrize("kind", [MapRows, MaskRows])
def test_plaintexts_by_rule_are_those_of_the_table(draft, rng, machine, kind, tmp_path):
    n = draft.slots
    x, values = rng.uniform(-1, 1, n), rng.uniform(-1, 1, n)
    if kind is MapRows:
        key, part = np.arange(n)[None] % 3 - 1, np.arange(n)[None]
        none = np.zeros(1, int)
        rows = MapRows(key, part, key, 0 * part, none, none, none, none + 3)
        place = np.arange(n) - 3
        weights = np.where((place % n) % 3 > 0, values[place], 0.0)
    else:
        held = rng.uniform(size=(1, n)) < 0.5
        rows, weights = MaskRows(held), np.where(held[0], values[0], 0.0)
    circuit = draft.circuit(draft.rescale(draft.dot_plain((draft.input(x), values))))
    packs = tuple(dataclasses.replace(pack, rows=rows) for pack in circuit.packs)
    dataclasses.replace(circuit, packs=packs).save(tmp_path / "c.npz")
    check(Circuit.load(tmp_path / "c.npz"), machine, [x], draft.operands, (weights * x,))


def test_what_a_run_leaves_is_freed_at_once(draft, rng, params):
    """Without waiting for the garbage collector: a machine holds keys of hundreds of megabytes."""
    circuit, inputs, _ = everything(draft, rng)
    machine = SlotsMachine(params, draft.slots)
    held = weakref.ref(machine)
    gc.collect()
    gc.disable()
    try:
        run_local(circuit, machine, inputs, draft.operands, [0])
        del machine
        assert held() is None
    finally:
        gc.enable()


def test_missing_key_names_operation_and_source(draft, rng, machine):
    a = draft.input(rng.uniform(-1, 1, draft.slots))
    draft.op = 1
    circuit = draft.circuit(draft.rotate(a, 3))
    with pytest.raises(MissingRotationKey, match=r"`second` at model.py:20.*step 3") as caught:
        run_local(circuit, machine, draft.input_values, [], [1])
    assert caught.value.operation == "second" and caught.value.source == "model.py:20 (second)"


def test_a_wrong_scale_in_the_circuit_is_refused(draft, rng, machine):
    a = draft.input(rng.uniform(-1, 1, draft.slots))
    c = draft.rescale(draft.dot_plain((a, 0.5)))
    circuit = draft.circuit(c)
    circuit.scale[c] *= 1.001
    with pytest.raises(BackendError, match="`first` at model.py:10.*scales differ"):
        run_local(circuit, machine, draft.input_values, [], [c])


def test_refresh_refuses_values_out_of_range(draft, rng, machine):
    x = rng.uniform(-1, 1, draft.slots)
    a = draft.drop(draft.input(x), 0)
    circuit = draft.circuit(draft.refresh(a, 2))
    run_local(circuit, machine, [x], [], [2], ranges={a: (-1.1, 1.1)})
    with pytest.raises(ValueRangeError, match="`first` at model.py:10.*calibrated range"):
        run_local(circuit, machine, [x], [], [2], ranges={a: (-0.1, 0.1)})


def test_nan_input_names_its_leaf(draft, rng, machine):
    x = rng.uniform(-1, 1, draft.slots)
    x[4] = np.nan
    circuit = draft.circuit(draft.input(x))
    with pytest.raises(BackendError, match=r"input args\[0\].*NaN"):
        run_local(circuit, machine, [x], [], [0])


def test_observed_ranges_widen():
    assert twin_ranges({3: (-1.0, 3.0)}) == {3: (-2.0 - 2.0**-10, 4.0 + 2.0**-10)}
