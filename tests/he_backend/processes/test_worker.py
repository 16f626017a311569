"""A worker's tasks: what it keeps of the ciphertexts that they read and make."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from he_backend.errors import RunFolderError
from he_backend.machines.slots import SlotsMachine
from he_backend.processes.store import Store
from he_backend.processes.tasks import plan
from he_backend.processes.transit import Arena
from he_backend.processes.worker import TaskRunner
from hesim.circuit.plain.execute import Executor


@pytest.fixture
def work(params, new_draft, tmp_path):
    """A chain of sums in several tasks, its input in the store, and a count of reads."""
    draft = new_draft(params, 32)
    first = c = draft.input(np.ones(32))
    for _ in range(12):
        c = draft.add((1, c), (1, first))
    circuit = draft.circuit(c)
    schedule = plan(circuit, [c], target=1e-9)
    machine = SlotsMachine(params, circuit.slots, ())
    store = Store(tmp_path, "run")
    level, scale = int(circuit.level[first]), float(circuit.scale[first])
    store.write(first, machine.to_bytes(machine.encrypt(np.ones(32), level, scale)))
    reads: list[int] = []
    read = store.read
    store.read = lambda cipher: reads.append(cipher) or read(cipher)
    return circuit, schedule, machine, store, reads


def test_what_later_tasks_read_is_kept_until_the_last_of_them(work):
    circuit, schedule, machine, store, reads = work
    runner = TaskRunner(Executor(circuit, machine, []), store, last_tasks=schedule.last_readers)
    tasks = [t for t in schedule.tasks if not t.client]
    assert len(tasks) > 4
    for task in tasks:
        runner.run(task)
        assert len(runner._cache) <= 2  # the input, and the sum so far
    assert reads == [0] and len(runner._cache) == 0
    runner.run(tasks[3])  # as if another worker had died with it
    assert sorted(reads) == sorted([0, *tasks[3].needs])
    result = machine.decrypt(machine.from_bytes(store.read(12), *at(circuit, 12)))
    np.testing.assert_array_equal(result, np.full(32, 13.0))


def test_an_arena_that_the_system_refuses_has_no_room(monkeypatch):
    def refused(number: int, size: int) -> mmap.mmap:
        if size > 1:
            raise OSError("Cannot allocate memory")
        return whole(number, size)

    whole = mmap.mmap
    monkeypatch.setattr(mmap, "mmap", refused)
    arena = Arena(1 << 20)
    assert (arena.limit, arena.take(10), arena.top) == (0, None, 0)


def at(circuit, c: int) -> tuple[int, float, int]:
    return int(circuit.level[c]), float(circuit.scale[c]), int(circuit.components[c])


def test_ciphertexts_pass_through_an_arena_and_files_only_if_there_is_no_room(work):
    circuit, schedule, machine, store, reads = work
    size = machine.cipher_size(2, int(circuit.level[0]))
    arena = Arena(2 * size)
    tasks = [t for t in schedule.tasks if not t.client]
    makers, reader = tasks[:3], tasks[3]
    places = {c: arena.take(size) for t in makers for c in t.gives}
    assert list(places.values()) == [0, size, None]
    known = {c: place for c, place in places.items() if place is not None}
    one, other = (TaskRunner(Executor(circuit, machine, []), store, arena=arena) for _ in range(2))
    for task in makers:
        one.run(task, known)
    assert [store.holds(c) for c in places] == [False, False, True]
    reads.clear()
    other.run(makers[1], known)
    assert makers[1].needs == (0, 1) and reads == [0], "the input is in the store, the sum is not"
    store.path(3).write_bytes(b"cut off")
    with pytest.raises(RunFolderError, match=r"c3\.ct is damaged.* run again"):
        other.run(reader, known)
