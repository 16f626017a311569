"""Either side killed, or out of room: no wrong result, no hang, and the same call goes on."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import he_backend
import hesim
from he_backend.errors import BackendError, EvaluatorGoneError
from he_backend.processes.folders import clean_environment
from hesim.bundles.bundle import Bundle
from tests.he_backend.owners.conftest import X

pytestmark = pytest.mark.slow

ROUNDS = 8
W = np.linspace(0.8, 1.2, 8, dtype=np.float32)
EXACT = X * W.astype(np.float64) ** ROUNDS

EVALUATE = """
import resource, signal, sys, he_backend, hesim
resource.setrlimit(resource.RLIMIT_FSIZE, (MOST, -1))
with he_backend.Evaluator(hesim.load("whole"), "unix:PLACE/s", "evaluator", workers=2) as found:
    print("serving", flush=True)
    found.serve()
"""

ENCRYPT = """
import os, resource, signal, sys, numpy as np, he_backend, hesim
resource.setrlimit(resource.RLIMIT_FSIZE, (MOST, -1))
def told(progress):
    print("tasks", progress.tasks_done, flush=True)
    if progress.tasks_done == POINT:
        os.kill(os.getpid(), signal.SIGKILL)
half = hesim.load("half")
with he_backend.connect(half, "unix:PLACE/s", "keys", clients=1, progress=told) as session:
    np.save("found.npy", session.run(np.load("x.npy")))
"""


def fn(x, w):
    for _ in range(ROUNDS):
        x = hesim.refresh(x) * w
    return x


@pytest.fixture(scope="module")
def rounds() -> Bundle:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        params = hesim.CKKSParams(10, 2, 40, 50, 60, security=None)
    program = hesim.trace(fn, X.astype(np.float32), W, encrypted=0)
    return hesim.bundle(hesim.compile(program, params), X, W)


@pytest.fixture
def place(rounds, tmp_path) -> Path:
    hesim.save(rounds, tmp_path / "whole")
    hesim.save(rounds.for_key_holder(), tmp_path / "half")
    np.save(tmp_path / "x.npy", X)
    return tmp_path


def started(script: str, place: Path, **values: Any) -> subprocess.Popen[str]:
    for name, value in {"PLACE": place, "MOST": -1, "POINT": -1, **values}.items():
        script = script.replace(name, str(value))
    return subprocess.Popen(
        [sys.executable, "-P", "-c", script],
        cwd=place,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def evaluating(place: Path, **values: Any) -> Iterator[subprocess.Popen[str]]:
    """An evaluator's process; nobody is left of it."""
    process = started(EVALUATE, place, **values)
    try:
        assert process.stdout is not None and process.stdout.readline() == "serving\n"
        yield process
    finally:
        family = descendants(process.pid)
        process.kill()
        process.communicate()
        gone(family)


def descendants(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


def held(place: Path, killed: Any = None) -> tuple[np.ndarray, list[int]]:
    """The result for a key holder in this process, and how many tasks were done at each news."""
    seen: list[int] = []

    def told(progress: he_backend.Progress) -> None:
        seen.append(progress.tasks_done)
        if killed is not None:
            killed(progress.tasks_done)

    half = hesim.load(place / "half")
    with he_backend.connect(
        half, f"unix:{place}/s", place / "keys", clients=1, progress=told
    ) as session:
        return session.run(X), [n for n in seen if n]


@pytest.mark.parametrize("point", [1, 5, 10, 15])
def test_an_evaluator_that_is_killed_goes_on(place, point):
    with evaluating(place) as process:
        family: list[psutil.Process] = []

        def kill(tasks: int) -> None:
            if tasks == point:
                family.extend(descendants(process.pid))
                process.kill()

        with pytest.raises(EvaluatorGoneError, match="same command again"):
            held(place, kill)
        gone(family)
    with evaluating(place):
        found, seen = held(place)
    np.testing.assert_allclose(found, EXACT, atol=1e-5)
    assert seen[0] > point / 2, "finished tasks were kept"


@pytest.mark.parametrize("who", ["server", "worker"])
def test_a_process_of_the_evaluators_that_is_killed(place, who):
    with evaluating(place) as process:
        done: list[int] = []

        def kill(tasks: int) -> None:
            if tasks == 5 and not done:
                done.append(tasks)
                (server,) = psutil.Process(process.pid).children()
                (server if who == "server" else server.children()[0]).kill()

        if who == "server":
            with pytest.raises(EvaluatorGoneError):
                held(place, kill)
        found, _ = held(place, kill)
    np.testing.assert_allclose(found, EXACT, atol=1e-5)


@pytest.mark.parametrize("point", [1, 5, 10, 15])
def test_a_key_holder_that_is_killed_goes_on(place, point):
    with evaluating(place):
        first = started(ENCRYPT, place, POINT=point)
        assert first.stdout is not None
        family: list[psutil.Process] = []
        for line in first.stdout:
            if line.startswith(f"tasks {point - 1}"):
                family = descendants(first.pid)
        assert first.wait(60) == -signal.SIGKILL
        first.communicate()
        gone(family)
        again = started(ENCRYPT, place)
        said, errors = again.communicate(timeout=120)
        assert again.returncode == 0, errors
    counted = [int(n) for n in re.findall(r"tasks (\d+)", said) if int(n)]
    np.testing.assert_allclose(np.load(place / "found.npy"), EXACT, atol=1e-5)
    assert counted[0] > point / 2, "finished tasks were kept"


@pytest.mark.parametrize("limit", [1 << 12, 1 << 15, 1 << 17])
def test_an_evaluator_without_room_says_so_in_its_log_and_goes_on_with_room(place, limit):
    with evaluating(place, MOST=limit), pytest.raises(BackendError):
        held(place)
    log = (place / "evaluator" / "evaluator.log").read_text()
    assert re.search(r"cannot be written \(File too large\)|went away", log)
    with evaluating(place):
        found, _ = held(place)
    np.testing.assert_allclose(found, EXACT, atol=1e-5)


@pytest.mark.parametrize("limit", [1 << 9, 1 << 12, 1 << 16])
def test_a_key_holder_without_room_is_told_and_goes_on_with_room(place, limit):
    with evaluating(place):
        first = started(ENCRYPT, place, MOST=limit)
        _, errors = first.communicate(timeout=120)
        assert first.returncode == 1 and "cannot be written" in errors
        assert not (place / "found.npy").exists()
        again = started(ENCRYPT, place)
        _, errors = again.communicate(timeout=120)
        assert again.returncode == 0, errors
    np.testing.assert_allclose(np.load(place / "found.npy"), EXACT, atol=1e-5)


def test_a_stopped_evaluator_does_not_hold_the_key_holder_for_ever(place, monkeypatch):
    monkeypatch.setattr("he_backend.owners.remote._WELCOME_SECONDS", 2.0)
    with evaluating(place) as process:
        os.kill(process.pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(BackendError):
            held(place)
        assert time.monotonic() - began < 60
        os.kill(process.pid, signal.SIGCONT)


def test_an_evaluator_that_stops_in_a_batch_is_given_up(place, monkeypatch):
    monkeypatch.setattr("he_backend.owners.remote._SILENCES", 0.15)
    with evaluating(place) as process:

        def stop(tasks: int) -> None:
            if tasks == 5:
                for each in (*descendants(process.pid), psutil.Process(process.pid)):
                    each.suspend()

        began = time.monotonic()
        with pytest.raises(EvaluatorGoneError):
            held(place, stop)
        assert time.monotonic() - began < 60
        for each in (*descendants(process.pid), psutil.Process(process.pid)):
            with contextlib.suppress(psutil.NoSuchProcess):  # one that runs again ends the others
                each.resume()
        found, _ = held(place)
    np.testing.assert_allclose(found, EXACT, atol=1e-5)
