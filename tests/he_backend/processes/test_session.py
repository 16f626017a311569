"""Encrypted runs across processes: results, resuming, kills, altered files, where the key is."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from he_backend.errors import (
    BackendError,
    BlobError,
    EncodeError,
    MissingRotationKey,
    ProtocolError,
    RunFolderError,
    RunFolderWarning,
    ValueRangeError,
    WorkerDied,
)
from he_backend.machines.table import find
from he_backend.processes import children
from he_backend.processes.folders import Folders
from he_backend.processes.messages import packed
from he_backend.processes.session import execute
from tests.he_backend.processes.searching import key_windows, regions

TOLERANCE = 2.0**-20


class Interrupted(Exception):
    pass


def assert_right(job, work, result):
    for c, value in zip(work[3], work[4], strict=True):
        np.testing.assert_allclose(result.vector(c, job.circuit.slots), value, atol=TOLERANCE)
    counts = {k: v for k, v in job.circuit.ledger.counts().items() if v}
    assert {k: v for k, v in result.spent.counts.items() if v} == counts


def with_(job, **changes):
    import dataclasses

    return dataclasses.replace(job, **changes)


def test_encrypted_run(job, work):
    seen = []
    result = execute(with_(job, progress=seen.append))
    assert_right(job, work, result)
    assert result.tasks > 20 and result.skipped == 0 and not result.imported_jax
    assert result.peak_bytes > 1 << 20 and result.key_seconds > 0
    assert "making 2 rotation keys" in seen[0].op
    assert [p.tasks_done for p in seen] == list(range(result.tasks + 1))
    assert seen[-1].fraction == pytest.approx(1.0)
    assert not list(job.folders.store.glob("*.ct")), "every ciphertext was collected"


def test_secret_key_is_with_the_client_only(job):
    """Searches memory, arguments, environment, descriptors and files on the server's side."""
    windows: list[bytes] = []
    looked: set[str] = set()

    def look(progress):
        if progress.processes and not windows:
            windows.extend(key_windows(job.folders.secret_key))
        for name, pid in progress.processes.items():
            if name in looked:
                continue
            if name.startswith("client"):
                assert Path(f"/proc/{pid}/mem").stat().st_uid == 0, "the user may not look into it"
            if os.geteuid() == 0 or not name.startswith("client"):
                found = any(window in memory for memory in regions(pid) for window in windows)
                assert found == name.startswith("client"), name
            if not name.startswith("client"):
                key = str(job.folders.secret_key).encode()
                proc = Path(f"/proc/{pid}")
                assert key not in (proc / "cmdline").read_bytes()
                environment = (proc / "environ").read_bytes()
                assert key not in environment
                for variable, value in find(job.machine).environment:
                    # glibc ends its strings at each colon where they are
                    given = f"{variable}={value}".partition(":")[0]
                    assert given.encode() in environment.split(b"\0")
                opened = [os.readlink(fd) for fd in (proc / "fd").iterdir() if fd.is_symlink()]
                assert not any(str(job.folders.client) in path for path in opened)
            looked.add(name)

    execute(with_(job, progress=look))
    assert looked == {"server", "worker 0", "worker 1", "client 0", "client 1"}
    for path in job.folders.server.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(window in data for window in windows), path
    assert job.folders.client.stat().st_mode & 0o777 == 0o700
    assert job.folders.secret_key.stat().st_mode & 0o777 == 0o600


def test_a_client_that_crashes_leaves_no_core(job, monkeypatch):
    """A core file would hold the secret key."""
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (limits[1], limits[1]))

    def crash(progress):
        if progress.processes:
            pid = progress.processes["client 0"]
            limit = Path(f"/proc/{pid}/limits").read_text()
            assert re.search(r"Max core file size +0 ", limit)
            os.kill(pid, signal.SIGABRT)

    try:
        with pytest.raises(BackendError, match=r"client 0 .*\(signal 6\)"):
            execute(with_(job, progress=crash))
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, limits)
    assert not list(job.folders.client.glob("core*"))


def test_killed_worker_is_replaced(job, work):
    killed: list[int] = []

    def kill(progress):
        if not killed and progress.tasks_done >= 2:
            killed.append(progress.processes["worker 0"])
            os.kill(killed[0], signal.SIGKILL)

    result = execute(with_(job, progress=kill))
    assert_right(job, work, result)
    assert killed and result.replaced == 1


def test_too_many_killed_workers_end_the_run(job):
    def kill(progress):
        for name, pid in progress.processes.items():
            if name.startswith("worker"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    with pytest.raises(WorkerDied, match="signal 9.*run_dir to resume"):
        execute(with_(job, worker_deaths=1, progress=kill))


def interrupt(after):
    def stop(progress):
        if progress.tasks_done >= after:
            raise Interrupted

    return stop


def test_interrupted_run_resumes(job, work):
    with pytest.raises(Interrupted):
        execute(with_(job, progress=interrupt(5)))
    result = execute(job)
    assert result.skipped >= 5 and result.key_seconds == 0
    assert_right(job, work, result)
    again = execute(job)
    assert again.skipped == again.tasks
    assert_right(job, work, again)


@pytest.mark.parametrize("ahead", [1, 3])
def test_the_run_waits_for_a_slow_caller(job, ahead):
    """However late `progress` returns, no more is begun than `ahead` and what runs already."""
    finished: list[int] = []

    def look(progress):
        if not progress.processes:  # the keys are made yet
            return
        time.sleep(0.05)
        lines = job.folders.journal.read_text().count('{"task":')
        finished.append(lines - progress.tasks_done + 1)

    result = execute(with_(job, progress=look, ahead=ahead))
    busy = job.workers + job.clients
    assert len(finished) == result.tasks and max(finished) < ahead + busy


def test_resuming_after_the_server_was_killed(job, work):
    def kill(progress):
        if progress.tasks_done >= 4:
            os.kill(progress.processes["server"], signal.SIGKILL)

    with pytest.raises(BackendError, match="server process ended unexpectedly"):
        execute(with_(job, progress=kill))
    with open(job.folders.journal, "a") as file:
        file.write('{"task": 7, "wa')
    with warnings.catch_warnings():
        warnings.simplefilter("error", RunFolderWarning)  # nothing is lost to a kill
        result = execute(job)
    assert result.skipped >= 4
    assert_right(job, work, result)


def test_lost_and_damaged_ciphertexts_are_made_again(job, work):
    """Gone, cut off, altered in a residue or in the header, or under each other's name."""
    with pytest.raises(Interrupted):
        execute(with_(job, progress=interrupt(16)))
    stored = sorted(job.folders.store.glob("c*.ct"))
    assert len(stored) >= 6
    stored[0].unlink()
    stored[1].write_bytes(stored[1].read_bytes()[:-8])
    for path, place in ((stored[2], -40), (stored[3], 20)):
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)
    first, second = stored[4].read_bytes(), stored[5].read_bytes()
    stored[4].write_bytes(second)
    stored[5].write_bytes(first)
    with pytest.warns(RunFolderWarning, match="tasks that were finished run again"):
        result = execute(job)
    assert 0 <= result.skipped < result.tasks
    assert_right(job, work, result)


def test_files_that_are_damaged_during_a_run_matter_to_the_next_only(job, work):
    def damage(progress):
        for path in job.folders.store.glob("c*.ct"):
            with contextlib.suppress(FileNotFoundError):
                path.write_bytes(path.read_bytes()[:-1])
        if progress.tasks_done == 30:
            raise Interrupted

    with pytest.raises(Interrupted):
        execute(with_(job, progress=damage))
    with pytest.warns(RunFolderWarning, match="tasks that were finished run again"):
        result = execute(with_(job, progress=None))
    assert_right(job, work, result)


def test_without_a_later_attempt_nothing_is_written_to_the_store(job, work):
    seen: set[str] = set()

    def look(progress):
        seen.update(path.name for path in job.folders.store.iterdir())

    result = execute(with_(job, progress=look, durable=False))
    assert_right(job, work, result)
    assert not seen


def test_what_the_client_does_not_know_that_it_served_is_served_again(job, work):
    with pytest.raises(Interrupted):
        execute(with_(job, progress=interrupt(16)))
    job.folders.exchange.unlink()
    result = execute(job)
    assert result.key_seconds == 0 and result.skipped < 16
    assert_right(job, work, result)


@pytest.mark.parametrize("name", ["relin.key", "rotation.key", "public.key"])
def test_altered_key_is_refused(job, name):
    with pytest.raises(Interrupted):
        execute(with_(job, progress=interrupt(2)))
    path = job.folders.keys / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(BlobError, match=f"{name} was altered"):
        execute(job)


def test_run_folder_of_another_computation(job, rng):
    with pytest.raises(Interrupted):
        execute(with_(job, progress=interrupt(1)))
    for changed in (
        with_(job, inputs=[rng.uniform(-1, 1, 32), job.inputs[1]]),
        with_(job, operands=[rng.uniform(-1, 1, 32), *job.operands[1:]]),
    ):
        with pytest.raises(RunFolderError, match="another program, parameters or arguments"):
            execute(changed)


def test_client_and_server_folders_must_be_apart(tmp_path):
    with pytest.raises(RunFolderError, match="must be apart"):
        Folders.of(tmp_path / "run", tmp_path / "run" / "client")


def test_range_error_names_the_operation_to_the_caller_only(job):
    circuit = job.circuit
    refresh = int(np.flatnonzero(circuit.kind == 9)[1])
    argument = int(circuit.arg[circuit.args(refresh)][0])
    with pytest.raises(ValueRangeError, match="`second` at model.py:20.*calibrated range"):
        execute(with_(job, ranges={argument: (-1e-9, 1e-9)}))
    told = (job.folders.server / "server.log").read_text() + job.folders.journal.read_text()
    assert "range" not in told and "model.py" not in told


def test_nan_input_is_refused_by_the_client(job):
    bad = [np.array(x) for x in job.inputs]
    bad[1][3] = np.nan
    with pytest.raises(EncodeError, match=r"input args\[1\].*NaN"):
        execute(with_(job, inputs=bad))


def test_missing_rotation_key_names_the_operation(job):
    with pytest.raises(Interrupted):
        execute(with_(job, progress=interrupt(1)))
    manifest = job.folders.keys / "keys.json"
    keys = json.loads(manifest.read_text())
    with_one = with_(job)
    with_one.circuit.__dict__["rotation_steps"] = (1,)
    keys["steps"] = [1]
    manifest.write_text(json.dumps(keys))
    with pytest.raises(MissingRotationKey, match="`second` at model.py:20.*step 2"):
        execute(with_one)


def test_two_runs_never_share_a_folder(job):
    def again(progress):
        if progress.tasks_done == 1:
            with pytest.raises(RunFolderError, match="another run is using"):
                execute(with_(job, progress=None))
            raise Interrupted

    with pytest.raises(Interrupted):
        execute(with_(job, progress=again))


def test_the_client_goes_by_the_circuit_of_the_caller(job, work, monkeypatch):
    """Not by the one in the server's folder, which the server may exchange for a freer one."""
    whole = children.Processes._tell
    held = []

    def exchanged(self, link, header):
        if "client" in header:  # until the server has read its own
            held.append((link, header))
            return
        if header.get("type") == "connect" and held:
            job.folders.circuit.write_bytes(b"another")
            while held:
                whole(self, *held.pop())
        whole(self, link, header)

    monkeypatch.setattr(children.Processes, "_tell", exchanged)
    assert_right(job, work, execute(job))


def test_strangers_neither_hang_nor_end_a_run(job, work, tmp_path, monkeypatch):
    """Others of the same user, who can reach the socket: silent, rude, or without the token."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    links = []

    def visit(progress):
        if progress.processes and not links:
            (place,) = tmp_path.glob("he-*/s")
            for words in (b"", b"heM1", b"GET / HTTP/1.1\r\n\r\n", hello):
                link = socket.socket(socket.AF_UNIX)
                link.connect(str(place))
                link.sendall(words)
                links.append(link)

    hello = packed({"type": "hello", "role": "client"})
    result = execute(with_(job, progress=visit))
    assert_right(job, work, result)
    assert len(links) == 4
    for link in links:
        link.close()


def test_a_client_that_falls_silent_is_named(job, monkeypatch):
    monkeypatch.setattr(children, "_STOP_SECONDS", 0.5)

    def stop(progress):
        if progress.tasks_done == 1:
            os.kill(progress.processes["client 0"], signal.SIGSTOP)

    with pytest.raises(ProtocolError, match="client 0 has not answered for 1 seconds"):
        execute(with_(job, progress=stop, clients=1, silence_seconds=1.0))


def test_a_killed_client_ends_the_run_and_it_resumes(job, work):
    def kill(progress):
        if progress.tasks_done == 5:
            os.kill(progress.processes["client 0"], signal.SIGKILL)

    with pytest.raises(BackendError, match=r"client 0 process ended unexpectedly \(signal 9\)"):
        execute(with_(job, progress=kill))
    result = execute(job)
    assert result.skipped >= 5
    assert_right(job, work, result)
