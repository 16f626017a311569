"""Kills and full disks at any point: no wrong output, no hang, no lost run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from he_backend.errors import BackendError, StorageError
from he_backend.processes.session import Batch, Session, execute

TOLERANCE = 2.0**-20


def assert_right(job, work, result):
    for c, value in zip(work[3], work[4], strict=True):
        np.testing.assert_allclose(result.vector(c, job.circuit.slots), value, atol=TOLERANCE)
    counts = {k: v for k, v in job.circuit.ledger.counts().items() if v}
    assert {k: v for k, v in result.spent.counts.items() if v} == counts


@pytest.mark.parametrize("name", ["server", "client 0"])
def test_a_disk_that_is_full_on_one_side_ends_the_run_and_it_goes_on(job, work, name):
    """From some task on, one process can write no byte more."""
    full: list[int] = []

    def fill(progress):
        if progress.tasks_done == 6 and not full:
            full.append(progress.processes[name])
            resource.prlimit(full[0], resource.RLIMIT_FSIZE, (0, 0))

    with pytest.raises(StorageError, match="cannot be written .*make room"):
        execute(dataclasses.replace(job, progress=fill))
    result = execute(job)
    assert result.skipped >= 6 and full
    assert_right(job, work, result)


def test_a_disk_that_is_full_when_a_batch_is_noted_as_finished_loses_nothing(job, work):
    """The last that is written is the caller's own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(progress):
        if progress.processes and progress.tasks_done == progress.tasks_total:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))

    try:
        with pytest.raises(StorageError, match=r"journal\.jsonl cannot be written"):
            execute(dataclasses.replace(job, progress=fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    result = execute(job)
    assert result.skipped == result.tasks
    assert_right(job, work, result)


def test_a_caller_that_stops_while_the_server_is_slow_loses_no_task(job, work):
    """It is told to stop with tasks to tell of: these are told to a caller that is still there."""
    stopped: list[int] = []

    def stop(progress):
        if progress.processes and progress.tasks_done >= 6:
            stopped.append(progress.processes["server"])
            os.kill(stopped[0], signal.SIGSTOP)
            time.sleep(0.2)  # workers finish what they have
            threading.Timer(0.3, os.kill, (stopped[0], signal.SIGCONT)).start()
            raise InterruptedError

    with pytest.raises(InterruptedError):
        execute(dataclasses.replace(job, progress=stop, checkpoint_seconds=60.0, ahead=32))
    result = execute(job)
    assert result.skipped >= 6
    assert_right(job, work, result)


@pytest.mark.slow
def test_workers_killed_at_ten_random_points(job, work, tmp_path):
    rng = np.random.default_rng(0)
    for k in range(10):
        victim, task = f"worker {rng.integers(2)}", int(rng.integers(1, 40))
        killed: list[int] = []

        def kill(progress, victim=victim, task=task, killed=killed):
            if not killed and progress.processes and progress.tasks_done >= task:
                killed.append(progress.processes[victim])
                os.kill(killed[0], signal.SIGKILL)

        folders = type(job.folders).of(tmp_path / f"run{k}")
        result = execute(dataclasses.replace(job, folders=folders, progress=kill))
        assert_right(job, work, result)
        assert killed and result.replaced <= 1


@pytest.mark.slow
@pytest.mark.parametrize("side", ["server", "client", "either"])
def test_a_side_killed_again_and_again_gets_to_the_end(job, work, side):
    """Each attempt gets a few tasks further, and nothing that was finished runs again."""
    rng = np.random.default_rng(1)
    before, attempts = 0, 0
    for _ in range(60):
        after = before + int(rng.integers(1, 12))
        names = {"server": ["server"], "client": ["client 0", "client 1"]}
        name = str(rng.choice(names.get(side, ["server", "client 0", "client 1", "worker 0"])))

        def kill(progress, name=name, after=after):
            if progress.processes and progress.tasks_done >= after:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(progress.processes[name], signal.SIGKILL)

        try:
            result = execute(dataclasses.replace(job, progress=kill))
            break
        except BackendError as error:
            assert "ended unexpectedly" in str(error) or "workers died" in str(error), error
        attempts += 1
        before = job.folders.journal.read_bytes().count(b'{"task":')
    else:
        raise AssertionError("it does not get to its end")
    assert attempts > 3
    assert_right(job, work, result)


_CALLER = """
import json, sys, warnings
import numpy as np
warnings.simplefilter("error")
from hesim.circuit.circuit import Circuit
from he_backend.processes.folders import Folders
from he_backend.processes.session import Batch, Session, Setup
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    circuit = Circuit.load(sys.argv[1])
arrays = np.load(sys.argv[2])
outputs = [int(c) for tap in circuit.outputs for c in tap.ciphers]
operands = [arrays[f"w{k}"] for k in range(circuit.operand_count)]
setup = Setup(circuit, outputs, Folders.of(sys.argv[3]), task_seconds=2e-4, ahead=1, several=True,
    checkpoint_seconds=0.0,
    progress=lambda p: print(p.tasks_done, flush=True))
with Session(setup) as session:
    for k in range(3):
        session.run(Batch([arrays["x"] + k, arrays["y"] - k], operands, name=f"b{k}"))
        print("batch", k, flush=True)
"""


@pytest.mark.slow
def test_a_caller_killed_at_ten_random_points_goes_on(job, work, tmp_path):
    """Its processes end by themselves, and what is finished is not run again."""
    rng = np.random.default_rng(2)
    job.circuit.save(tmp_path / "circuit.npz")
    arrays = {f"w{k}": w for k, w in enumerate(job.operands)}
    np.savez(tmp_path / "arrays.npz", x=work[1][0], y=work[1][1], **arrays)
    code = [sys.executable, "-c", _CALLER, str(tmp_path / "circuit.npz")]
    code += [str(tmp_path / "arrays.npz"), str(job.folders.server)]
    kills, ended = 0, False
    for _ in range(40):
        said, after = 0, int(rng.integers(0, 25)) if kills < 10 else 10**9
        with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as caller:
            assert caller.stdout is not None
            for _line in caller.stdout:
                said += 1
                if said >= after:
                    caller.kill()
                    kills += 1
                    break
            else:
                assert caller.wait() == 0
                ended = True
        if ended:
            break
        assert_gone(job.folders)
    assert ended and kills == 10
    x, y = work[1]
    with Session(dataclasses.replace(job.setup, several=True)) as session:
        for k in range(3):
            assert session.done(f"b{k}")
            batch = Batch([x + k, y - k], job.operands, name=f"b{k}")
            result = session.run(batch)
            assert result.skipped == result.tasks
            for j, (c, w) in enumerate(zip(work[3], job.operands, strict=True)):
                value = ((x + k) * (y - k) + (y - k) ** 2) * w
                expected = (0.5 + j) * np.roll(value, -(1 + j % 2))
                np.testing.assert_allclose(result.vector(c, x.size), expected, atol=64 * TOLERANCE)


def assert_gone(folders) -> None:
    """No process that the caller started outlives it for long, whatever it was doing."""
    end = time.monotonic() + 60
    left = ["?"]
    while left and time.monotonic() < end:
        left = [pid for pid in os.listdir("/proc") if pid.isdigit() and _works_in(pid, folders)]
        time.sleep(0.02)
    assert not left


def _works_in(pid: str, folders) -> bool:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/cwd") in (str(folders.server), str(folders.client))
    return False
