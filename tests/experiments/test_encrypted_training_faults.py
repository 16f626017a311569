"""`hesim encrypted-finetune` under kills, full disks and damaged states: it ends at the adapters of
a run without, up to fresh noise, or says why it does not. On a small ring, which is not secure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments.encrypted_training import running
from experiments.encrypted_training.running import Running
from experiments.encrypted_training.settings import EncryptedJob
from experiments.errors import ExperimentError
from experiments.validation.folder import RunFolder
from he_backend import RunFolderWarning
from hesim.params import CKKSParams
from tests.experiments.test_encrypted_training import encoder, job, metrics, run, settings

__all__ = ["encoder", "job", "settings"]

STEPS, KILLS = 6, 8
ENCRYPTED = Running(workers=2)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]


def on_a_small_ring(job: EncryptedJob) -> EncryptedJob:
    """The job without security, in a second a step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ring = CKKSParams(12, 4, 40, 50, 60, security=None)
    how = dataclasses.replace(job.how, ckks=ring, range_rows=64)
    return dataclasses.replace(job, how=how, steps=STEPS, save_every=0)


@pytest.fixture(scope="module")
def insecure(job: EncryptedJob) -> EncryptedJob:
    return on_a_small_ring(job)


@pytest.fixture
def told(monkeypatch) -> Callable[[Callable], None]:
    """Has a function called with (step, progress) at every task."""

    def tell(fn: Callable) -> None:
        before = running._Run._told

        def both(self, p) -> None:
            before(self, p)
            fn(self.number, p)

        monkeypatch.setattr(running._Run, "_told", both)

    return tell


def assert_trained(folder: RunFolder) -> None:
    """All steps are there, as far from the exact ones as fresh noise makes it, and no key is."""
    rows = metrics(folder.path)
    assert list(rows) == list(range(1, STEPS + 1))
    for row in rows.values():
        assert float(row["loss"]) == pytest.approx(float(row["exact_loss"]), abs=2**-14)
    assert folder.figures("encrypted")["error_bits"] < -16
    assert (folder.path / "model").is_dir() and (folder.path / "report.html").exists()
    assert not [*folder.path.glob("encrypted.server"), *folder.path.glob("encrypted.client")]


def carried(out: Path, number: int) -> list[Path]:
    """Files of the state that a step left."""
    batch = out / "encrypted.server" / "batches" / f"step-{number}"
    return sorted((batch / "carried").glob("*.ct"))


def test_processes_killed_at_random_points_change_nothing(insecure, glue, tmp_path, told):
    """Server, clients and workers; where one cannot be replaced, the same command goes on."""
    rng, killed = np.random.default_rng(0), []
    names = ("server", "client 0", "client 1", "worker 0", "worker 1")
    plan: list[tuple[str, int]] = []

    def kill(number: int, p) -> None:
        if len(killed) == KILLS or not p.processes:
            return
        if not plan:
            plan.append((str(rng.choice(names)), int(rng.integers(0, 25))))
        name, left = plan.pop()
        if left > 0 or name not in p.processes:
            plan.append((name, left - 1))
            return
        killed.append(name)
        with contextlib.suppress(ProcessLookupError):
            os.kill(p.processes[name], signal.SIGKILL)

    told(kill)
    for _ in range(2 * KILLS):
        try:
            done, folder = run(insecure, tmp_path / "run", ENCRYPTED, glue)
            break
        except ExperimentError as error:
            assert "ended unexpectedly" in str(error) or "workers died" in str(error), error
            assert f"of {STEPS} failed" in str(error) and "same command goes on" in str(error)
    else:
        raise AssertionError("it does not get to its end")
    assert done and len(killed) == KILLS and len(set(killed)) > 2
    assert_trained(folder)


_COMMAND = """
import dataclasses, sys, warnings
sys.path.insert(0, {top!r})
from experiments.encrypted_training.run import run_encrypted_training
from experiments.encrypted_training.running import Running
from tests.experiments.test_encrypted_training_faults import on_a_small_ring
from experiments.encrypted_training.settings import read_job
job = on_a_small_ring(read_job({settings!r}))
run_encrypted_training(job, {out!r}, Running(workers=2), data_dir={glue!r})
"""


def test_the_command_killed_at_random_points_goes_on(settings, insecure, glue, tmp_path):
    """It holds the client's side: whatever it was at is done again by the same command."""
    top = str(Path(running.__file__).parents[2])
    out = tmp_path / "run"
    code = _COMMAND.format(top=top, settings=str(settings), out=str(out), glue=str(glue))
    rng, kills = np.random.default_rng(1), 0
    for _ in range(12):
        with (
            open(tmp_path / "log", "a", encoding="utf-8") as log,
            subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log) as command,
        ):
            wait = rng.uniform(0.0, 9.0)
            while command.poll() is None and (kills == 4 or wait > 0.0):
                if any(carried(out, number) for number in range(kills, STEPS)):
                    wait -= 0.05  # each gets a step further than the one before
                time.sleep(0.05)
            if command.poll() is None:
                command.kill()
                kills += 1
                continue
        assert command.returncode == 0, (tmp_path / "log").read_text()
        break
    assert kills >= 2
    assert_trained(RunFolder.find(out))


@pytest.mark.parametrize("name", ["server", "client 0"])
def test_a_disk_that_is_full_ends_a_step_and_the_command_goes_on(
    insecure, glue, tmp_path, told, name
):
    full: list[int] = []

    def fill(number: int, p) -> None:
        if number == 1 and p.processes and p.tasks_done >= 2 and not full:
            full.append(p.processes[name])
            resource.prlimit(full[0], resource.RLIMIT_FSIZE, (0, 0))

    told(fill)
    with pytest.raises(ExperimentError, match=r"step 2 of 6 failed: .*cannot be written"):
        run(insecure, tmp_path / "run", ENCRYPTED, glue)
    assert list(metrics(tmp_path / "run")) == [1]
    _, folder = run(insecure, tmp_path / "run", ENCRYPTED, glue)
    assert_trained(folder)


def stopped(told: Callable, number: int) -> list[bool]:
    """The command is stopped in the middle of a step, once."""
    at: list[bool] = []

    def stop(step: int, p) -> None:
        if step == number and p.processes and p.tasks_done >= 3 and not at:
            at.append(True)
            raise KeyboardInterrupt

    told(stop)
    return at


def test_a_damaged_state_is_gone_behind_and_two_are_refused(insecure, glue, tmp_path, told):
    out = tmp_path / "run"
    stopped(told, 3)
    with pytest.raises(KeyboardInterrupt):
        run(insecure, out, ENCRYPTED, glue)
    last, before = carried(out, 2)[0], carried(out, 1)[0]
    whole = last.read_bytes(), before.read_bytes()
    last.write_bytes(whole[0][:-1])
    before.write_bytes(b"")
    with pytest.raises(ExperimentError, match=r"no state .* is whole: .*step-2.*--fresh"):
        run(insecure, out, ENCRYPTED, glue)
    before.write_bytes(whole[1])
    with pytest.warns(RunFolderWarning, match=r"step-2/carried.*state that step 1 left"):
        _, folder = run(insecure, out, ENCRYPTED, glue)
    assert_trained(folder)


def test_where_no_encrypted_state_is_whole_it_begins_with_the_saved_one(
    insecure, glue, tmp_path, told
):
    """That of the model that the key holder has; stopped once more on the way."""
    out, every = tmp_path / "run", dataclasses.replace(ENCRYPTED, every=2)
    at = stopped(told, 3)
    with pytest.raises(KeyboardInterrupt):
        run(insecure, out, every, glue)
    for number in (1, 2):
        carried(out, number)[0].write_bytes(b"")
    at.clear()
    with pytest.raises(KeyboardInterrupt):
        run(insecure, out, every, glue)
    assert (out / "encrypted-again.json").exists() and list(metrics(out)) == [1, 2, 3]
    _, folder = run(insecure, out, every, glue)
    assert_trained(folder)


def test_a_step_that_would_leave_a_domain_is_not_run_and_the_state_before_it_is_kept(
    insecure, glue, tmp_path
):
    """Step, site and option are named: the scores of attention grow as it is trained."""
    fit = dataclasses.replace(insecure.how.fit, ranges=(("exp", (-1.2, 0.0)),))
    narrow = dataclasses.replace(insecure, how=dataclasses.replace(insecure.how, fit=fit))
    with pytest.raises(
        ExperimentError, match=r"step 3 would leave .* layer0\.attention\.exp: .* exp = .* \[twin\]"
    ):
        run(narrow, tmp_path / "run", ENCRYPTED, glue)
    assert list(metrics(tmp_path / "run")) == [1, 2] and carried(tmp_path / "run", 1)


def test_values_that_a_level_does_not_hold_are_named(insecure, glue, tmp_path):
    """By the operation's line, with the bits that the first prime lacks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ring = CKKSParams(12, 4, 40, 41, 60, security=None)
    small = dataclasses.replace(insecure, how=dataclasses.replace(insecure.how, ckks=ring))
    with pytest.raises(
        ExperimentError,
        match=r"step 1 of 6 failed: `.*` at .*\.py:\d+ .* level 0 .* first_bits=4\d",
    ):
        run(small, tmp_path / "run", ENCRYPTED, glue)
