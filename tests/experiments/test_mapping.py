"""Where the jobs of a study are done: in processes of this host, and what is lost with one."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.studies.tasks import Stopped
from experiments.studies.tradeoff import child
from experiments.studies.tradeoff.mapping import Failed, in_processes, in_this_process
from tests.experiments.chores import Chore, gone, tried, work

ROOT = Path(__file__).resolve().parents[2]


def never() -> bool:
    return False


def within(seconds: float, happens: Callable[[], bool]) -> bool:
    """Whether it happens in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if happens():
            return True
        time.sleep(0.05)
    return False


def chores(folder: Path, *names: str) -> list[Chore]:
    return [(name, folder) for name in names]


def test_a_killed_process_fails_its_own_job_alone(tmp_path: Path):
    jobs = chores(tmp_path, "one", "killed", "refused", "two", "three", "naps")
    found = dict(in_processes(2)(work, jobs, never))
    assert found[2] == Failed("ExperimentError: no such thing")
    assert isinstance(found[1], Failed) and "killed" in found[1].reason
    assert [found[n] for n in (0, 3, 4, 5)] == ["one", "two", "three", "naps"]
    counts = {name: len(tried(tmp_path, name)) for name, _ in jobs}
    assert counts.pop("killed") == 2 and set(counts.values()) == {1}
    again = dict(in_this_process(work, chores(tmp_path, "one", "refused"), never))
    assert again == {0: found[0], 1: found[2]}


def test_a_process_does_a_few_jobs_and_another_one_the_next(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(child, "_TURNS", 3)
    found = [pid for _, pid in in_processes(1)(work, chores(tmp_path, *["PID"] * 7), never)]
    assert [len(list(same)) for _, same in itertools.groupby(found)] == [3, 3, 1]
    assert str(os.getpid()) not in found and all(gone(int(pid)) for pid in found)


def test_processes_end_with_the_one_that_was_killed(tmp_path: Path):
    said = (
        "from pathlib import Path; from tests.experiments.chores import work\n"
        "from experiments.studies.tradeoff.mapping import in_processes\n"
        f"list(in_processes(1)(work, [('sleeps', Path({str(tmp_path)!r}))], lambda: False))\n"
    )
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    caller = subprocess.Popen([sys.executable, "-c", said], env=os.environ | {"PYTHONPATH": path})
    try:
        assert within(120, lambda: bool(tried(tmp_path, "sleeps")))
    finally:
        caller.kill()
        caller.wait()
    (worker,) = tried(tmp_path, "sleeps")
    assert within(60, lambda: gone(worker))


def test_a_stop_ends_a_mapping(tmp_path: Path):
    asked = itertools.count()
    with pytest.raises(Stopped):
        list(in_this_process(work, chores(tmp_path, *["one"] * 3), lambda: next(asked) > 0))
    began = time.monotonic()
    with pytest.raises(Stopped):  # one that would sleep for an hour
        jobs = chores(tmp_path, "sleeps")
        list(in_processes(1)(work, jobs, lambda: bool(tried(tmp_path, "sleeps"))))
    assert time.monotonic() - began < 1800
    assert all(map(gone, tried(tmp_path, "sleeps")))


def test_what_is_left_early_leaves_no_process(tmp_path: Path):
    mapped = in_processes(2)(work, chores(tmp_path, "one", "sleeps"), never)
    assert next(mapped) == (0, "one")
    assert within(60, lambda: bool(tried(tmp_path, "sleeps")))
    del mapped
    assert all(map(gone, tried(tmp_path, "sleeps")))


def test_what_compiles_is_kept_in_the_folder_that_is_given(tmp_path: Path):
    found = list(in_processes(1, tmp_path / "compiled")(_compiled_folder, [None], never))
    assert found == [(0, str(tmp_path / "compiled"))]


def _compiled_folder(job: None) -> str:
    import jax

    return str(jax.config.values["jax_compilation_cache_dir"])
