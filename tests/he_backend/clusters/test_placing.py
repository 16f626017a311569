"""Which worker does what: pieces that wait for each other without circles, few, and spread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from he_backend.clusters.placing import Placement
from he_backend.processes.tasks import Schedule, Task

WORKERS = [f"tcp://w:{k}" for k in range(5)]


def schedule_of(waits: Sequence[Sequence[int]], seconds: float = 1.0) -> Schedule:
    """A task for each, which gives the ciphertext of its number and reads those of others."""
    return Schedule(
        tuple(
            Task(n, "evaluate", (n,), tuple(before), (n,), seconds, -1)
            for n, before in enumerate(waits)
        )
    )


def pieces_of(schedule: Schedule, workers: Sequence[str], longest: float = 3.0):
    placement = Placement(schedule, lambda c: 1, longest)
    return placement.pieces(schedule.tasks, workers)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_piece_comes_after_what_it_waits_for(workers):
    random = np.random.default_rng(workers)
    waits = [
        random.choice(n, min(n, random.integers(4)), replace=False).tolist() for n in range(200)
    ]
    schedule = schedule_of(waits)
    there: set[int] = set()
    for piece in pieces_of(schedule, WORKERS[:workers]):
        assert there.issuperset(piece.needs(schedule))
        there |= {task.id for task in piece.tasks}
        assert len(piece.tasks) <= 3
        read = {c for task in schedule.tasks if task.id not in piece.tasks for c in task.needs}
        assert {task.id for task in piece.tasks} & read >= set(piece.gives(schedule))
    assert len(there) == 200


def test_what_does_not_wait_is_spread_and_what_does_stays():
    apart = pieces_of(schedule_of([()] * 30), WORKERS)
    done = {w: sum(len(p.tasks) for p in apart if p.worker == w) for w in WORKERS}
    assert set(done.values()) == {6}
    chain = pieces_of(schedule_of([(), *((n,) for n in range(29))]), WORKERS, longest=100.0)
    assert [len(piece.tasks) for piece in chain] == [30]


def test_what_is_given_later_goes_where_there_is_less_to_do_or_what_it_reads():
    schedule = schedule_of([(), (), (), (0,)])
    placement = Placement(schedule, lambda c: 1 << 40, 3.0)
    first, second = placement.pieces(schedule.tasks[:2], WORKERS[:2])
    placement.finish(schedule.tasks[1])
    (third,) = placement.pieces(schedule.tasks[2:3], WORKERS[:2])
    assert third.worker == second.worker != first.worker
    placement.finish(schedule.tasks[0])
    (fourth,) = placement.pieces(schedule.tasks[3:], WORKERS[:2])
    assert fourth.worker == first.worker


def test_a_worker_that_is_gone_is_given_nothing():
    schedule = schedule_of([(), (), (0, 1)])
    placement = Placement(schedule, lambda c: 1, 3.0)
    assert len(placement.pieces(schedule.tasks[:2], WORKERS[:2])) == 2
    (piece,) = placement.pieces(schedule.tasks[2:], WORKERS[4:])
    assert piece.worker == WORKERS[4]
