"""Seconds expected of a schedule: between its longest path and all of its work."""

from __future__ import annotations

import os

import numpy as np
import pytest

import he_backend
from he_backend import expected
from he_backend.processes.tasks import plan


@pytest.fixture
def seconds(broad):
    circuit, _ = broad

    def found(**counts):
        return he_backend.expected_seconds(circuit, task_seconds=1e-9, **counts)

    return found


def bounds(circuit, ends) -> tuple[float, float]:
    """Seconds of the longest path, and of all work, without messages and bytes."""
    schedule = plan(circuit, ends, 1e-9)
    end: dict[int, float] = {}
    for task in schedule.tasks:
        before = max((end[n] for n in schedule.waits_for(task)), default=0.0)
        end[task.id] = before + task.seconds
    return max(end.values()), schedule.seconds


def test_it_lies_between_the_longest_path_and_all_work(broad, seconds):
    path, work = bounds(*broad)
    more = (1, 2, 3, 4, 8, 64)
    found = [seconds(workers=n, clients=n, cores=2 * n) for n in more]
    assert all(after < 1.02 * before for before, after in zip(found, found[1:], strict=False))
    assert path <= found[-1] < 3 * path and work / 2 <= found[0]
    assert found[0] / found[1] > 1.5
    alone = seconds(workers=1, clients=1, cores=1)
    assert alone >= work and alone >= seconds(workers=1, clients=1, cores=2)


def test_a_core_does_no_more_for_many_processes(broad, seconds):
    _, work = bounds(*broad)
    assert seconds(workers=1, cores=1) >= work
    assert seconds(workers=8, clients=8, cores=1) >= work
    assert seconds(workers=8, clients=8, cores=2) >= work / 2


def test_tasks_of_equal_seconds_take_turns(broad, monkeypatch):
    """Eight chains, each of evaluate, refresh, evaluate, refresh, evaluate; a second a task."""
    circuit, ends = broad
    monkeypatch.setattr(
        expected, "_work", lambda circuit, schedule, task, *_: float(task.side == "worker")
    )
    monkeypatch.setattr(expected, "plan", lambda *args, **_: plan(circuit, ends, 1e-9))
    tasks = [t for t in plan(circuit, ends, 1e-9).tasks if t.side == "worker"]
    for workers in (1, 2, 4, 8):
        found = he_backend.expected_seconds(circuit, workers=workers, clients=1, cores=64)
        assert found == pytest.approx(len(tasks) / workers)
        shared = he_backend.expected_seconds(circuit, workers=workers, clients=1, cores=1)
        assert shared == pytest.approx(len(tasks))


def test_a_later_batch_has_vectors_that_are_encoded(draft, rng):
    w = rng.uniform(-1, 1, draft.slots)
    x = draft.input(rng.uniform(-1, 1, draft.slots))
    circuit = draft.circuit(draft.rescale(draft.dot_plain((x, w))))
    first, later = (he_backend.expected_seconds(circuit, again=again) for again in (False, True))
    assert later < first
    assert np.isfinite(first)


def test_cores_are_those_of_the_machine(broad, seconds, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert seconds() == seconds(cores=1)


@pytest.mark.parametrize("counts", [{"workers": 0}, {"clients": 1.5}, {"cores": True}])
def test_counts_that_cannot_be_are_refused(seconds, counts):
    (name,) = counts
    with pytest.raises(he_backend.BackendError, match=f"{name}=.*at least 1"):
        seconds(**counts)
