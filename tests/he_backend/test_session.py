"""Encrypted runs across processes: results, resuming, kills, altered files, where the key is."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
from pathlib import Path

import numpy as np
import pytest

from he_backend.errors import (
    BackendError,
    BlobError,
    EncodeError,
    MissingRotationKey,
    RunFolderError,
    ValueRangeError,
    WorkerDied,
)
from he_backend.folders import Folders
from he_backend.session import Job, execute

TOLERANCE = 2.0**-20


class Interrupted(Exception):
    pass


@pytest.fixture
def work(draft, rng):
    """A Circuit with refreshes and many small tasks; inputs, operands, outputs."""
    x, y = rng.uniform(-1, 1, (2, draft.slots))
    w = rng.uniform(-1, 1, draft.slots)
    a, b = draft.input(x), draft.input(y)
    outputs, values = [], []
    for k in range(6):
        draft.op = k % 2
        c = draft.rescale(draft.relinearize(draft.dot((1, a, b), (1, b, b))))
        c = draft.rotate(draft.rescale(draft.dot_plain((c, w))), 1 + k % 2)
        d = draft.refresh(c, 1)
        outputs.append(draft.rescale(draft.dot_plain((d, 0.5 + k))))
        values.append((0.5 + k) * np.roll((x * y + y * y) * w, -(1 + k % 2)))
    return draft.circuit(*outputs), [x, y], draft.operands, outputs, values


@pytest.fixture
def job(work, tmp_path):
    circuit, inputs, operands, outputs, _ = work
    folders = Folders.of(tmp_path / "run")
    return Job(circuit, outputs, inputs, operands, folders, task_seconds=1e-3)


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
    assert result.tasks > 8 and result.skipped == 0 and not result.imported_jax
    assert result.peak_bytes > 1 << 20 and result.key_seconds > 0
    assert [p.tasks_done for p in seen] == list(range(1, result.tasks + 1))
    assert seen[-1].fraction == pytest.approx(1.0)
    assert not list(job.folders.store.glob("*.ct")), "every ciphertext was collected"


def test_secret_key_is_with_the_client_only(job):
    """Searches memory, arguments, environment, descriptors and files on the server's side."""
    windows: list[bytes] = []
    looked: set[str] = set()

    def look(progress):
        if not windows:
            windows.extend(key_windows(job.folders.secret_key))
        for name, pid in progress.processes.items():
            if name in looked:
                continue
            found = any(window in memory for memory in regions(pid) for window in windows)
            assert found == name.startswith("client"), name
            if not name.startswith("client"):
                key = str(job.folders.secret_key).encode()
                proc = Path(f"/proc/{pid}")
                assert key not in (proc / "cmdline").read_bytes()
                assert key not in (proc / "environ").read_bytes()
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


def key_windows(path: Path) -> list[bytes]:
    """Pieces of 32 bytes out of the secret key's residues."""
    data = path.read_bytes()
    return [data[start : start + 32] for start in range(len(data) // 8, len(data), len(data) // 4)]


def regions(pid: int):
    """Readable memory of a process, region by region."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) (r\S+) \S+ \S+ (\d+)\s*(\S*)", line)
            if not match or match[5] in ("[vvar]", "[vsyscall]", "[vdso]", "[vvar_vclock]"):
                continue
            first, last = int(match[1], 16), int(match[2], 16)
            try:
                memory.seek(first)
                yield memory.read(last - first)
            except OSError:
                continue


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


def test_resuming_after_the_server_was_killed(job, work):
    def kill(progress):
        if progress.tasks_done >= 4:
            os.kill(progress.processes["server"], signal.SIGKILL)

    with pytest.raises(BackendError, match="server process ended unexpectedly"):
        execute(with_(job, progress=kill))
    with open(job.folders.journal, "a") as file:
        file.write('{"task": 7, "wa')
    result = execute(job)
    assert result.skipped >= 4
    assert_right(job, work, result)


def test_a_lost_ciphertext_is_made_again(job, work):
    with pytest.raises(Interrupted):
        execute(with_(job, progress=interrupt(6)))
    for path in job.folders.store.glob("*.ct"):
        path.unlink()
    result = execute(job)
    assert 0 <= result.skipped < result.tasks
    assert_right(job, work, result)


@pytest.mark.parametrize("how", ["truncate", "residue", "identity"])
def test_altered_ciphertext_is_refused(job, how):
    with pytest.raises(Interrupted):
        execute(with_(job, progress=interrupt(4)))
    for path in job.folders.store.glob("c*.ct"):
        blob = bytearray(path.read_bytes())
        if how == "truncate":
            blob = blob[:-8]
        elif how == "residue":
            blob[-8:] = struct.pack("<Q", 2**63)
        else:
            blob[20] ^= 1
        path.write_bytes(blob)
    with pytest.raises(BlobError):
        execute(job)


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
