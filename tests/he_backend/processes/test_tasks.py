"""The task plan: covers the Circuit, never waits in a circle, cuts and merges."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hesim
from he_backend.expected import bytes_seconds, decrypted_outputs
from he_backend.processes import tasks
from he_backend.processes.pending import unserved
from he_backend.processes.tasks import plan, predicted_seconds
from hesim.circuit.circuit import Kind
from hesim.circuit.costs.table import CostTable


def random_circuit(draft, seed: int, length: int):
    """Instructions that take any earlier results of the same level, operations interleaved."""
    rng = np.random.default_rng(seed)
    top = draft.params.levels
    ids = [draft.input(np.zeros(draft.slots)) for _ in range(3)]
    draft.names = [f"op{k}" for k in range(5)]
    for _ in range(length):
        draft.op = int(rng.integers(0, 5))
        a = int(rng.choice(ids))
        if draft.level(a) == 0 or rng.random() < 0.2:
            ids.append(draft.refresh(a, top))
        else:
            same = [c for c in ids if draft.level(c) == draft.level(a)]
            b = int(rng.choice(same))
            ids.append(draft.rescale(draft.relinearize(draft.dot((1, a, b)))))
    return draft.circuit(*ids[-3:])


def assert_sound(circuit, schedule, decrypted):
    done: set[int] = set()
    made: set[int] = set()
    for task in schedule.tasks:
        assert schedule.waits_for(task) <= done
        assert set(task.needs) <= made
        if task.kind != "decrypt":
            for i in task.instructions:
                assert set(circuit.operands(i)) <= set(task.needs) | set(task.instructions)
                assert (circuit.kind[i] in (Kind.INPUT, Kind.REFRESH)) == task.client
            made |= set(task.gives)
        done.add(task.id)
    work = [t for t in schedule.tasks if t.kind != "decrypt"]
    assert sorted(i for t in work for i in t.instructions) == list(range(len(circuit)))
    decryptions = [c for t in schedule.tasks if t.kind == "decrypt" for c in t.instructions]
    assert sorted(decryptions) == sorted(decrypted)


@given(
    seed=st.integers(0, 10**6), length=st.integers(1, 60), target=st.sampled_from([1e-4, 0.01, 1.0])
)
@settings(max_examples=60, deadline=None)
def test_random_circuits_are_planned_soundly(params, new_draft, seed, length, target):
    circuit = random_circuit(new_draft(params, 32), seed, length)
    decrypted = {int(tap.cipher[0]) for tap in circuit.outputs if tap is not None}
    schedule = plan(circuit, decrypted, target)
    assert_sound(circuit, schedule, decrypted)
    assert schedule == plan(circuit, decrypted, target)


@pytest.mark.parametrize(("target", "fewest", "most"), [(1e-6, 30, 10**9), (1e9, 1, 6)])
def test_target_decides_the_size(params, new_draft, target, fewest, most):
    draft = new_draft(params, 32)
    ids = [draft.input(np.zeros(32)) for _ in range(4)]
    outputs = [draft.rescale(draft.dot_plain((c, 0.5))) for c in ids for _ in range(8)]
    tasks = plan(draft.circuit(*outputs), [], target).tasks
    assert fewest <= len(tasks) <= most


def test_what_can_be_done_at_once_is_shared_out(params, new_draft):
    draft = new_draft(params, 32)
    c = draft.input(np.zeros(32))
    turned = [draft.rotate(c, k) for k in range(1, 9)]
    sums = [draft.dot_plain(*((t, 0.1 * k) for t in turned)) for k in range(1, 17)]
    circuit = draft.circuit(*(draft.rescale(x) for x in sums))
    whole = float(predicted_seconds(circuit).sum())
    schedule = plan(circuit, [], target=whole / 2)
    assert_sound(circuit, schedule, [])
    first = [t for t in schedule.tasks if not t.client and schedule.waits_for(t) == {0}]
    assert len(first) == 4  # rotations
    second = [t for t in schedule.tasks if any(t2.id in schedule.waits_for(t) for t2 in first)]
    assert len(second) >= 4 and all(t.seconds < whole / 3 for t in second)


def test_what_is_done_lets_nobody_pass_who_waits_behind_it(params, new_draft):
    draft = new_draft(params, 32)
    c = draft.refresh(draft.add((1, draft.input(np.zeros(32)))), 1)
    schedule = plan(draft.circuit(c), [c])
    assert [t.kind for t in schedule.tasks] == ["input", "evaluate", "refresh", "decrypt"]
    assert unserved(schedule, set()) == {0: set(), 1: {0}, 2: {1}, 3: {2}}
    assert unserved(schedule, {1})[2] == {0}, "the client has forgotten the input"
    assert unserved(schedule, {0, 1, 2})[3] == set()


def test_a_chain_is_cut_and_ciphertexts_die(params, new_draft):
    draft = new_draft(params, 32)
    c = draft.input(np.zeros(32))
    first = c
    for _ in range(40):
        c = draft.add((1, c), (1, c))
    circuit = draft.circuit(c)
    schedule = plan(circuit, [c], target=1e-5)
    assert len(schedule.tasks) > 4
    assert_sound(circuit, schedule, [c])
    assert schedule.consumers[first] == (1,)
    assert schedule.tasks[schedule.consumers[c][0]].kind == "decrypt"


def test_what_most_work_waits_for_comes_first(params, new_draft):
    draft = new_draft(params, 32)
    short, long = (draft.input(np.zeros(32)) for _ in range(2))
    sums = [draft.add((1, short), (k, short)) for k in range(2, 6)]
    for _ in range(8):
        long = draft.rotate(long, 1)
    circuit = draft.circuit(*sums, long)
    schedule = plan(circuit, [], target=1e-9)
    kinds = {t.id: circuit.kind[t.instructions[0]] for t in schedule.tasks if not t.client}
    turns = [n for n, kind in kinds.items() if kind == Kind.ROTATE]
    inputs = [t.instructions for t in schedule.tasks if t.kind == "input"]
    assert inputs == [(1,), (0,)], "the one that is turned eight times, by itself"
    assert turns[:7] == list(range(1, 8)) and len(turns) == 8


def test_what_ends_many_branches_comes_before_what_begins_others(params, new_draft):
    """As gradients do, each summed over what few of the sums before it have at hand."""
    draft = new_draft(params, 32)
    inputs = [draft.input(np.zeros(32)) for _ in range(2)]
    turned = [[draft.rotate(c, 1 + k) for k in range(24)] for c in inputs]
    sums = []
    for k in range(24):
        c = draft.add((1, turned[0][k]), (1, turned[1][k]))
        sums.append(draft.rotate(draft.rotate(c, 1), 2))
    circuit = draft.circuit(*sums)
    assert tasks._AMONG == (16, None)
    orders = {}
    for among in tasks._AMONG:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tasks, "_AMONG", (among,))
            orders[among] = plan(circuit, sums, target=1e-9)
    assert len({schedule.digest for schedule in orders.values()}) == 2
    best = min(schedule.most_bytes(circuit) for schedule in orders.values())
    chosen = plan(circuit, sums, target=1e-9)
    assert chosen.most_bytes(circuit) == best
    assert chosen.digest == plan(circuit, sums, target=1e-9).digest
    assert_sound(circuit, chosen, sums)


def test_ciphertexts_on_their_way_are_counted_until_their_last_reader(params, new_draft):
    draft = new_draft(params, 32)
    c = draft.input(np.zeros(32))
    first, second = draft.rotate(c, 1), draft.rotate(c, 2)
    circuit = draft.circuit(draft.add((1, first), (1, second)))
    fresh = params.ciphertext_bytes(int(circuit.level[c]), 2)
    apart = plan(circuit, [3], target=1e-9)
    assert len(apart.tasks) == 5 and apart.most_bytes(circuit) == 3 * fresh
    together = plan(circuit, [3], target=1e9)
    assert len(together.tasks) <= 5 and together.most_bytes(circuit) <= 3 * fresh
    assert plan(draft.circuit(c), [c]).most_bytes(draft.circuit(c)) == fresh


def test_what_is_carried_is_cut_alike_in_a_first_batch_and_in_later_ones(params, new_draft):
    """An argument may be another one at the next run, refreshed as it came."""
    draft = new_draft(params, 32)
    a, b, x = (draft.input(np.zeros(32)) for _ in range(3))
    turned = draft.refresh(b, draft.params.levels)
    out = draft.rescale(draft.dot_plain((draft.add((1, a), (1, x)), 0.5)))
    carried = ((turned, a), (a, b))
    circuit = dataclasses.replace(draft.circuit(out), carried=carried)
    first, later = (plan(circuit, [out], target=1e9, follows=f) for f in (False, True))
    cut = [(t.instructions, t.needs, t.gives) for t in first.tasks]
    assert cut == [(t.instructions, t.needs, t.gives) for t in later.tasks]
    kinds: list[dict[str, tuple[int, ...]]] = [{}, {}]
    for found, schedule in zip(kinds, (first, later), strict=True):
        for t in schedule.tasks:
            found[t.kind] = tuple(sorted((*found.get(t.kind, ()), *t.instructions)))
    assert kinds[0]["refresh"] == kinds[1]["refresh"] == (turned,)
    assert (kinds[1]["carry"], kinds[1]["input"]) == ((a, b), (x,)) and "carry" not in kinds[0]
    assert kinds[0]["keep"] == kinds[1]["keep"] == (a, turned)
    assert {t.side for t in later.tasks} == {"worker", "client", "server"}


def test_seconds_of_a_ring_with_digits_are_those_that_it_was_compiled_with(digit_params):
    circuit = hesim.compile(hesim.trace(lambda x: x * x, np.ones(2)), digit_params)
    assert predicted_seconds(circuit).sum() == pytest.approx(circuit.ledger.seconds)
    (end,), _ = decrypted_outputs(circuit)
    level, log_n = int(circuit.level[end]), digit_params.log_n
    moved = CostTable.shipped(digits=True).seconds("transport", level, log_n)
    assert bytes_seconds(circuit, [end]) == moved
