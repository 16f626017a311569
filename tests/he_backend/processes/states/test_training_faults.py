"""A training under kills, full disks and lost folders: it goes on, or says why it does not."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

import he_backend
import hesim
from he_backend.processes import folders as folders_of_runs
from tests.he_backend.processes.test_faults import assert_gone
from tests.he_backend.test_carrying import close, data, exact, state, traced

__all__ = ["traced"]

STEPS = 6
KILLS = 15


def opened(traced, folder, **options):
    program, circuit = traced
    return he_backend.session(program, circuit=circuit, run_dir=folder, **options)


def batches() -> list[tuple]:
    return [data(k) for k in range(STEPS)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::he_backend.RunFolderWarning")
def test_a_training_killed_at_fifteen_random_points_ends_as_without(traced, tmp_path):
    """Server, clients and workers, each of them again and again, while the session stays."""
    rng, kills = np.random.default_rng(3), 0
    plan: list[tuple[str, int]] = []

    def kill(progress):
        nonlocal kills
        if not progress.processes or not plan:
            return
        name, left = plan[0]
        plan[0] = name, left - 1
        if left <= 0 and name in progress.processes:
            plan.clear()
            kills += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(progress.processes[name], signal.SIGKILL)

    names = ("server", "client 0", "client 1", "worker 0", "worker 1")
    seen: dict[int, he_backend.Step] = {}
    with opened(traced, tmp_path / "run", progress=kill) as session:
        for _ in range(3 * KILLS):
            if kills < KILLS:
                plan[:] = [(str(rng.choice(names)), int(rng.integers(0, 25)))]
            try:
                for step in session.steps((state(),), batches()):
                    seen[step.number] = step
                    if not plan and kills < KILLS:
                        plan[:] = [(str(rng.choice(names)), int(rng.integers(0, 25)))]
                if kills >= KILLS:
                    break
                for name in session.batches:  # it was done before all kills were: once more
                    session.forget(name)
            except he_backend.BackendError as error:
                assert "ended unexpectedly" in str(error) or "workers died" in str(error), error
                assert "of the training, counted from 0" in str(error)
        assert kills == KILLS and sorted(seen) == list(range(STEPS))
        expected = exact(traced[0], STEPS)
        close(session.read(f"step-{STEPS - 1}"), expected[-1])
    for k, result in enumerate(expected):
        close(seen[k].outputs[1:], result[1:])


_CALLER = """
import sys
sys.path.insert(0, sys.argv[2])
import numpy as np
import he_backend, hesim
from tests.he_backend.conftest import quiet_params
from tests.he_backend.test_carrying import data, state, step
program = hesim.trace(step, state(), *data(0), encrypted=((True, True, False), True, False))
circuit = hesim.compile(program, quiet_params(), carried={0: 0})
with he_backend.session(
    program, circuit=circuit, run_dir=sys.argv[1], progress=lambda p: print("task", flush=True)
) as session:
    for done in session.steps((state(),), data, count=6):
        print("step", done.number, done.report.skipped, flush=True)
"""


@pytest.mark.slow
def test_a_caller_killed_at_five_random_points_goes_on(traced, tmp_path):
    """Its processes end by themselves; each attempt begins at the step that the last one was in."""
    top = os.path.dirname(os.path.dirname(os.path.abspath(hesim.__file__)))
    code = [sys.executable, "-c", _CALLER, str(tmp_path / "run"), top]
    rng, kills, at = np.random.default_rng(4), 0, -1
    held = folders_of_runs.Folders.of(tmp_path / "run")
    for _ in range(12):
        after = int(rng.integers(1, 12)) if kills < 5 else 10**9
        first = None
        with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as caller:
            assert caller.stdout is not None
            for said, line in enumerate(caller.stdout):
                if line.startswith("step"):
                    number = int(line.split()[1])
                    first = number if first is None else first
                    assert number >= at, "what is finished is not made again"
                    at = number
                if said >= after:
                    caller.kill()
                    kills += 1
                    break
            else:
                assert caller.wait() == 0
                break
        assert_gone(held)
    assert kills == 5 and at == STEPS - 1
    with opened(traced, tmp_path / "run") as session:
        close(session.read(f"step-{STEPS - 1}"), exact(traced[0], STEPS)[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["server", "client 0"])
def test_a_disk_that_is_full_ends_a_step_and_the_training_goes_on(traced, tmp_path, name):
    """From some task of the second step on, one process can write no byte more."""
    full: list[int] = []

    def fill(progress):
        if at == [1] and progress.processes and progress.tasks_done >= 2 and not full:
            full.append(progress.processes[name])
            resource.prlimit(full[0], resource.RLIMIT_FSIZE, (0, 0))

    at: list[int] = []
    with opened(traced, tmp_path / "run", progress=fill) as session:
        steps = session.steps((state(),), batches())
        next(steps)
        at.append(1)
        with pytest.raises(he_backend.StorageError, match=r"cannot be written .*step 1 of the"):
            next(steps)
        found = list(session.steps((state(),), batches()))
        assert full and [step.number for step in found] == list(range(STEPS))
        close(session.read(f"step-{STEPS - 1}"), exact(traced[0], STEPS)[-1])


@pytest.mark.slow
def test_a_client_whose_folder_is_gone_is_refused_and_nothing_is_lost(traced, tmp_path):
    with opened(traced, tmp_path / "run") as session:
        list(session.steps((state(),), batches(), count=2))
    shutil.move(tmp_path / "run.client", tmp_path / "elsewhere")
    with pytest.raises(he_backend.RunFolderError, match=r"run\.json is gone"):
        opened(traced, tmp_path / "run").__enter__()
    shutil.rmtree(tmp_path / "run.client", ignore_errors=True)
    shutil.move(tmp_path / "elsewhere", tmp_path / "run.client")
    with opened(traced, tmp_path / "run") as session:
        found = list(session.steps((state(),), batches()))
        assert [step.number for step in found] == [1, 2, 3, 4, 5]
        close(session.read(f"step-{STEPS - 1}"), exact(traced[0], STEPS)[-1])
