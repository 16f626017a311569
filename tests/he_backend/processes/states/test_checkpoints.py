"""What of a batch is on the disk at which time, and what a later attempt makes of it."""

from __future__ import annotations

import pytest

from he_backend.processes import tasks
from he_backend.processes.pending import Pending
from he_backend.processes.states import checkpoints
from he_backend.processes.states.checkpoints import Checkpoints
from he_backend.processes.store import Journal, Store
from he_backend.processes.transit import Arena, Transit

SIZE = 16


class Attempt:
    """The server's books of one attempt at a batch, in which tasks only say that they are done."""

    def __init__(self, circuit, folder, room=1 << 12, seconds: float | None = 10.0):
        outputs = [len(circuit) - 1]
        self.schedule = tasks.plan(circuit, outputs, 1e-9)
        self.store = Store(folder / "store", "run")
        self.journal = Journal(folder / "journal", "run")
        self.pending = Pending(self.schedule, self.journal, self.store)
        self.arena = Arena(room)
        self.transit = Transit(self.store, self.arena, lambda c: SIZE)
        parts = self.schedule, self.journal, self.transit
        self.checkpoints = Checkpoints(*parts, self.pending.done, seconds)

    def go(self, count: int) -> None:
        for _ in range(count):
            sides = (self.pending.take(side) for side in ("client", "worker", "server"))
            task = next(task for task in sides if task is not None)
            for c in task.needs:
                assert self.transit.read(c) == bytes([c] * SIZE)
            for c in task.gives:
                self.transit.write(c, bytes([c] * SIZE))
            self.journal.finish(task.id, {"counts": {}, "seconds": {}})
            self.checkpoints.finish(task, self.pending.finish(task))

    def checkpoint(self) -> None:
        while self.checkpoints.advance():
            pass


@pytest.fixture
def circuit(draft, rng):
    """A chain of sums, each also read two sums later."""
    a = draft.input(rng.uniform(-1, 1, draft.slots))
    c, before = draft.add((1, a), (1, a)), a
    for _ in range(20):
        c, before = draft.add((1, c), (1, before)), c
    return draft.circuit(c)


@pytest.fixture
def at_once(monkeypatch):
    """Checkpoints are due whenever there is something to write."""
    monkeypatch.setattr(checkpoints, "_SHARE", 0.0)
    return 1e-9


def test_what_is_read_soon_is_not_written(circuit, tmp_path):
    attempt = Attempt(circuit, tmp_path)
    attempt.go(len(attempt.schedule.tasks))
    assert not attempt.checkpoints.advance() and not attempt.pending.waiting
    assert not attempt.store.ciphers() and attempt.arena.top <= 4 * SIZE
    attempt.checkpoints.clear()
    again = Attempt(circuit, tmp_path)
    assert again.pending.skipped == len(again.schedule.tasks) and again.pending.redone == 0


@pytest.mark.parametrize("room", [0, 3 * SIZE, 1 << 12])
@pytest.mark.parametrize("during", [False, True])
def test_a_later_attempt_goes_on_from_the_last_checkpoint(circuit, tmp_path, at_once, room, during):
    """What was done since runs again, without a word; what was kept does not."""
    first = Attempt(circuit, tmp_path, room, at_once)
    first.go(6)
    first.checkpoint()
    kept = len(first.pending.done)
    if during:  # the next checkpoint has begun, and is not at its end
        first.go(1)
        first.checkpoints.advance()
    first.go(5)  # it is killed here
    again = Attempt(circuit, tmp_path, room, at_once)
    assert again.pending.redone == 0 and again.pending.skipped >= kept
    assert set(range(kept)) <= again.pending.done
    again.go(len(again.pending.waiting))
    again.checkpoints.clear()
    assert not again.store.ciphers()


def test_what_is_damaged_after_a_checkpoint_is_told(circuit, tmp_path, at_once):
    first = Attempt(circuit, tmp_path, seconds=at_once)
    first.go(6)
    first.checkpoint()
    first.store.path(max(first.store.ciphers())).write_bytes(b"cut off")
    again = Attempt(circuit, tmp_path)
    assert again.pending.redone >= 1
    again.go(len(again.pending.waiting))


def test_places_of_what_is_being_written_are_free_only_afterwards(circuit, tmp_path, at_once):
    attempt = Attempt(circuit, tmp_path, seconds=at_once)
    attempt.go(6)
    assert attempt.checkpoints.advance()  # one of them
    held = attempt.store.ciphers()
    attempt.go(4)
    attempt.checkpoint()
    for c in attempt.store.ciphers() | held:
        if attempt.store.holds(c):
            assert attempt.store.read(c) == bytes([c] * SIZE)
    attempt.go(len(attempt.pending.waiting))
    attempt.checkpoint()
    assert not attempt.store.ciphers()
    assert not attempt.transit.places(range(len(circuit))), "all places are free again"


def test_a_batch_without_a_later_attempt_keeps_what_has_no_room_and_nothing_else(circuit, tmp_path):
    attempt = Attempt(circuit, tmp_path, room=SIZE, seconds=None)
    attempt.go(8)
    assert attempt.checkpoints.patience is None
    attempt.checkpoints.complete()
    assert 0 < len(attempt.store.ciphers()) <= 4
    attempt.go(len(attempt.pending.waiting))
    assert not attempt.store.ciphers()


def test_a_checkpoint_takes_a_small_part_of_the_time(circuit, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: clock[0])
    attempt = Attempt(circuit, tmp_path, seconds=10.0)
    write = attempt.store.write

    def slow(c, blob):
        clock[0] += 2.0
        write(c, blob)

    monkeypatch.setattr(attempt.store, "write", slow)
    attempt.go(5)
    assert attempt.checkpoints.patience == 10.0 and not attempt.checkpoints.advance()
    clock[0] = 10.0
    attempt.checkpoint()
    taken = clock[0] - 10.0
    assert taken >= 2.0 and attempt.checkpoints.patience is None, "nothing is done since"
    attempt.go(1)
    assert attempt.checkpoints.patience == 30.0 * taken
