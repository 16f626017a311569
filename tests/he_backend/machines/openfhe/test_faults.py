"""What kills a process of a bootstrapped run: the task is given out again, or the run goes on from
its folder.
"""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import he_backend
import hesim
from he_backend.errors import BackendError, WorkerDied
from he_backend.machines.openfhe import interpreter
from hesim.circuit.circuit import Circuit
from hesim.params import CKKSParams

DYING = """
import os, runpy, subprocess
run_module = runpy.run_module
def run(name, **how):
    from he_backend.machines.openfhe.bootstraps import Bootstraps
    whole = Bootstraps.run
    def dying(self, *given):
        number = len(os.listdir(FOLDER))
        open(os.path.join(FOLDER, str(number)), "w").close()
        if number < len(SIGNALS) and SIGNALS[number]:  # in the midst of it, from outside
            os.spawnlp(os.P_NOWAIT, "sh", "sh", "-c", f"sleep 0.02; kill -{SIGNALS[number]} $PPID")
        return whole(self, *given)
    Bootstraps.run = dying
    return run_module(name, **how)
runpy.run_module = run
"""
"""Runs before a module of ours under OpenFHE's Python: bootstraps are counted by files in a folder,
and some of them do not survive.
"""


def squares(x, w):
    for _ in range(20):
        x = (x + w) * (x - w)
    return x


@pytest.fixture(scope="module")
def work() -> tuple[Circuit, tuple[np.ndarray, np.ndarray], np.ndarray]:
    """A Circuit of several bootstraps in sequence, its arguments and its result."""
    args = np.linspace(-1, 1, 16), np.linspace(0.2, 0.9, 16)
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ring = CKKSParams(10, 4, 59, 60, 60, security=None, digits=2)
        refresher = hesim.openfhe_bootstrap(ring, budget=(2, 2), correction=11)
        circuit = hesim.compile(hesim.trace(squares, *args), ring, refresher=refresher)
        return circuit, args, np.asarray(squares(*args))


@pytest.fixture
def dying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs_openfhe: str):
    """From signals, one for each bootstrap that is begun (0: none), the Python that sends them."""

    def make(*signals: int) -> None:
        counted, script, before = tmp_path / "counted", tmp_path / "python", tmp_path / "before.py"
        counted.mkdir(exist_ok=True)
        for file in counted.iterdir():
            file.unlink()
        before.write_text(
            f"FOLDER, SIGNALS = {str(counted)!r}, {tuple(map(int, signals))}\n{DYING}"
        )
        script.write_text(
            f'#!/bin/sh\nif [ "$1" != -c ]; then exec {needs_openfhe} "$@"; fi\n'
            f'shift; code="$1"; shift\nexec {needs_openfhe} -c "$(cat {before})\n$code" "$@"\n'
        )
        script.chmod(0o700)
        monkeypatch.setenv(interpreter.VARIABLE, str(script))

    return make


def run(work: Any, **options: Any) -> he_backend.Report:
    circuit, args, _ = work
    alone = {"workers": 1, "clients": 1, "backend": "openfhe", "circuit": circuit}
    return he_backend.run(circuit.program, *args, **{**alone, **options})


def test_a_worker_that_dies_in_a_bootstrap_is_replaced_and_its_task_given_out_again(work, dying):
    circuit, _, right = work
    assert circuit.ledger.refreshes >= 2
    dying(signal.SIGKILL, 0, signal.SIGSEGV)
    report = run(work)
    assert report.replaced == 2 and not report.interactive
    assert "2 workers died and were replaced" in str(report)
    np.testing.assert_allclose(report.outputs, right, atol=2.0**-14)


@pytest.mark.slow
def test_a_bootstrap_that_always_dies_is_named_and_the_run_goes_on_later(work, dying, tmp_path):
    circuit, _, right = work
    dying(0, *[signal.SIGABRT] * 9)
    with pytest.raises(WorkerDied, match=r"the last by signal 6.*library.*same run_dir") as caught:
        run(work, run_dir=tmp_path / "run")
    assert caught.value.operation in {"add", "mul", "sub"} and "test_faults.py" in str(caught.value)
    dying()
    report = run(work, run_dir=tmp_path / "run")
    assert report.skipped > 0
    np.testing.assert_allclose(report.outputs, right, atol=2.0**-14)


@pytest.mark.slow
@pytest.mark.parametrize("who", ["server", "client 0"])
def test_a_server_or_client_that_is_killed_is_named_and_the_run_goes_on_later(
    who, work, dying, tmp_path
):
    _, _, right = work
    dying()

    def kill(progress: he_backend.Progress) -> None:
        if progress.tasks_done == 2:
            os.kill(progress.processes[who], signal.SIGKILL)

    with pytest.raises(BackendError, match=rf"the {who} process ended unexpectedly \(signal 9\)"):
        run(work, run_dir=tmp_path / "run", progress=kill)
    report = run(work, run_dir=tmp_path / "run")
    assert report.skipped > 0 or who == "server"  # whose memory is lost, but for checkpoints
    np.testing.assert_allclose(report.outputs, right, atol=2.0**-14)
