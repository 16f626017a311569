"""Damaged, shared and foreign run folders: made good, or refused; never another run's numbers."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_backend.errors import (
    BackendError,
    BlobError,
    ProtocolError,
    RunFolderError,
    RunFolderWarning,
    StorageError,
)
from he_backend.processes import children
from he_backend.processes.folders import Folders, clean_environment
from he_backend.processes.keys import MadeKeys
from he_backend.processes.session import Job, execute
from he_backend.processes.store import Journal, bound_line, read_values, write_values
from hesim.circuit.costs.table import CostTable
from hesim.files import write_whole

_KEYS = ("keys/public.key", "keys/relin.key", "keys/keys.json")
_NOTHING = {"wall": 1.0, "counts": {}, "seconds": {}}


@pytest.fixture
def job(draft, rng, tmp_path):
    x, w = rng.uniform(-1, 1, (2, draft.slots))
    a = draft.input(x)
    b = draft.rescale(draft.dot_plain((a, w)))
    made = draft.circuit(b)
    folders = Folders.of(tmp_path / "run", tmp_path / "client")
    return Job(made, [b], [x], draft.operands, folders, workers=1, clients=1)


def assert_right(job, result, operand=None):
    expected = job.inputs[0] * (job.operands[0] if operand is None else operand)
    vector = result.vector(job.decrypt[0], job.circuit.slots)
    np.testing.assert_allclose(vector, expected, atol=2.0**-20)


def changed(job, **changes):
    return dataclasses.replace(job, **changes)


def reopen(job):
    """As if the run had been killed before it noted that it is finished."""
    lines = job.folders.journal.read_bytes().splitlines(keepends=True)
    assert b"finished" in lines[-1]
    job.folders.journal.write_bytes(b"".join(lines[:-1]))


def test_a_client_folder_serves_one_run_only(job, tmp_path):
    """Its keys and values are of that run: another one would overwrite them, or read them."""
    assert_right(job, execute(job))
    other = Folders.of(tmp_path / "other", job.folders.client)
    with pytest.raises(RunFolderError, match="holds the keys of the run in"):
        execute(changed(job, operands=[job.operands[0] + 1], folders=other))
    again = execute(job)
    assert again.skipped == again.tasks
    assert_right(job, again)


def test_tasks_cut_by_other_costs_are_not_taken_for_those_that_are_done(job, tmp_path, monkeypatch):
    execute(job)
    shipped = CostTable.shipped()
    path = tmp_path / "costs.json"
    dataclasses.replace(shipped, base_bytes=shipped.base_bytes + 1).save(path)
    monkeypatch.setenv("HESIM_COSTS", str(path))
    with pytest.raises(RunFolderError, match="table of costs"):
        execute(job)


def test_a_client_folder_of_a_removed_run_is_used_again(job, tmp_path):
    execute(job)
    job.folders.server.rename(tmp_path / "elsewhere")
    operand = job.operands[0] + 1
    folders = Folders.of(tmp_path / "other", job.folders.client)
    with pytest.warns(RunFolderWarning, match="client holds the keys of a run that is no longer"):
        result = execute(changed(job, operands=[operand], folders=folders))
    assert result.skipped == 0
    assert_right(job, result, operand)
    with pytest.raises(RunFolderError, match="holds the keys of the run in"):
        execute(changed(job, folders=Folders.of(tmp_path / "elsewhere", job.folders.client)))


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_lost_identity_is_named_and_nothing_is_lost(job, side):
    """Without a run.json nobody knows what journal and keys belong to."""
    execute(job)
    reopen(job)
    gone = getattr(job.folders, side) / "run.json"
    kept = gone.read_bytes()
    gone.unlink()
    with pytest.raises(RunFolderError, match=f"{gone} is gone.*put it back, or .*remove"):
        execute(changed(job, operands=[job.operands[0] + 1]))
    gone.write_bytes(kept)
    again = execute(job)
    assert again.skipped == again.tasks and again.key_seconds == 0


@pytest.mark.parametrize("name", ["circuit", "operands", "inputs"])
@pytest.mark.parametrize("how", ["delete", "truncate", "alter"])
def test_damaged_job_files_are_written_anew(job, name, how):
    execute(job)
    job.folders.journal.write_bytes(b"{}")
    found = getattr(job.folders, name)
    (path,) = found.glob("*.npy") if found.is_dir() else [found]
    damage(path, how)
    with pytest.warns(RunFolderWarning, match="tasks that were finished run again"):
        result = execute(job)
    assert_right(job, result)


@pytest.mark.parametrize("how", ["delete", "truncate", "alter"])
def test_damaged_values_are_decrypted_again(job, how):
    execute(job)
    damage(job.folders.values / f"v{job.decrypt[0]}.f64", how)
    with pytest.warns(RunFolderWarning, match="tasks that were finished run again"):
        result = execute(job)
    assert result.skipped < result.tasks
    assert_right(job, result)


@pytest.mark.parametrize("how", ["truncate", "alter"])
@pytest.mark.parametrize("name", ["secret.key", "public.key"])
def test_damaged_client_keys_are_named_and_can_be_made_again(job, name, how):
    execute(job)
    damage(job.folders.client / name, how)
    finished = execute(job)
    assert finished.skipped == finished.tasks, "it needs no keys any more"
    reopen(job)
    with pytest.raises(BlobError, match=f"{name} .*remove .*keys.json"):
        execute(job)
    job.folders.client_keys.unlink()
    with pytest.warns(RunFolderWarning, match="keys.json is gone.* tasks .* run again"):
        result = execute(job)
    assert result.skipped == 0 and result.key_seconds > 0
    assert_right(job, result)


def test_new_keys_discard_what_was_computed_under_the_old_ones(job):
    execute(job)
    reopen(job)
    job.folders.key_manifest.unlink()
    with pytest.warns(RunFolderWarning, match=f"{job.folders.key_manifest} is gone"):
        result = execute(job)
    assert result.skipped == 0
    assert_right(job, result)


def test_files_of_another_run_are_not_used(job, tmp_path):
    """Neither keys, nor values, nor the journal, whatever digests they carry."""
    execute(job)
    folders = Folders.of(tmp_path / "second", tmp_path / "second.client")
    execute(changed(job, folders=folders))
    theirs, ours = folders.values / "v2.f64", job.folders.values / "v2.f64"
    theirs.replace(ours)
    folders.journal.replace(job.folders.journal)
    result = execute(job)
    assert result.skipped == 0 and result.key_seconds == 0
    assert_right(job, result)
    reopen(job)
    for side, names in (("server", _KEYS), ("client", ("secret.key", "public.key", "keys.json"))):
        for name in names:
            place = getattr(job.folders, side) / name
            kept = place.read_bytes()
            (getattr(folders, side) / name).replace(place)
            place.with_suffix(".kept").write_bytes(kept)
        with pytest.raises(BackendError, match=r"keys\.json"):
            execute(job)
        for name in names:
            place = getattr(job.folders, side) / name
            place.with_suffix(".kept").replace(place)
    again = execute(job)
    assert again.skipped == again.tasks and again.key_seconds == 0


def test_damaged_json_says_which_file_and_what_to_do(job):
    """Bytes that are no JSON, JSON of another shape, and one digit."""
    execute(job)
    reopen(job)
    for path in (
        job.folders.identity,
        job.folders.client_identity,
        job.folders.batch_identity,
        job.folders.own_identity,
        job.folders.key_manifest,
        job.folders.client_keys,
    ):
        kept = path.read_bytes()
        digit = next(k for k in range(len(kept) // 2, len(kept)) if kept[k : k + 1].isdigit())
        changed = kept[:digit] + bytes([kept[digit] ^ 1]) + kept[digit + 1 :]
        shapes = [b"[1, 2]", b"{}", b'{"files": {"public.key": 3}}', b'{"files": {}}', b"[" * 5000]
        for content in (b"\x00\xff{", *shapes, changed):
            path.write_bytes(content)
            with pytest.raises(BackendError, match=r"remove .*(keys\.json|folder)"):
                execute(job)
        path.write_bytes(kept)
    again = execute(job)
    assert again.skipped == again.tasks and again.key_seconds == 0


@pytest.mark.parametrize("name", ["circuit.new", "keys/relin.key", "store/c0.ct"])
def test_a_file_that_cannot_be_written_is_named(job, name):
    """As on a full disk: by the caller, the key process and the server. Then the run goes on."""
    room = {"circuit.new": 1 << 10, "keys/relin.key": 250_000, "store/c0.ct": 60_000}[name]
    job = changed(job, checkpoint_seconds=0.0)
    if name.startswith("store"):
        execute(job)
        job.folders.journal.unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(StorageError, match=f"{name} cannot be written .*: .*make room"):
            execute(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_right(job, execute(job))


def test_a_secret_key_is_private_whatever_was_there_before(job):
    job.folders.secret_key.write_bytes(b"old")
    job.folders.secret_key.chmod(0o644)
    execute(job)
    assert job.folders.secret_key.stat().st_mode & 0o777 == 0o600


def test_damaged_journal_lines_cost_their_tasks_only(tmp_path):
    path = tmp_path / "journal.jsonl"
    good = [bound_line("run", path.name, {"task": k, **_NOTHING}) for k in (0, 1, 2, 3, 5, 99)]
    good[1] = good[1].replace("1.0", "1.5")
    good[2] = bound_line("other run", path.name, {"task": 2, **_NOTHING})
    good[3] = bound_line("run", "other file", {"task": 3, **_NOTHING})
    strange: list[Any] = [[1], 7, {"task": 1}, dict(_NOTHING)]
    odd = [bound_line("run", path.name, record) for record in strange]
    path.write_text("".join((*odd, *good, "[1]\n", "7\n", '{"task": 1}\n', "\x00\x00\n")))
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n" + b"[" * 5000 + b"\n")
    journal = Journal(path, "run")
    journal.keep(6)
    assert sorted(journal.records) == [0, 5] and journal.damaged == 13


def test_values_carry_a_digest(tmp_path):
    vector = np.arange(4.0)
    write_values(tmp_path, "run", 3, vector)
    write_values(tmp_path, "run", 4, vector + 1)
    found = read_values(tmp_path, "run", 3)
    assert found is not None
    np.testing.assert_array_equal(found, vector)
    assert read_values(tmp_path, "other run", 3) is None
    damage(tmp_path / "v3.f64", "alter")
    assert read_values(tmp_path, "run", 3) is None and read_values(tmp_path, "run", 5) is None
    (tmp_path / "v4.f64").replace(tmp_path / "v3.f64")
    assert read_values(tmp_path, "run", 3) is None, "under another's name"


@pytest.mark.parametrize(
    "counts", [{"workers": 0}, {"workers": -1}, {"clients": 0}, {"workers": 1.5}]
)
def test_a_run_without_processes_is_refused(job, counts):
    (name,) = counts
    with pytest.raises(BackendError, match=f"{name}=.*at least 1"):
        changed(job, **counts)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file.* cannot be made"):
        Folders.of(tmp_path / "file")


def test_a_long_folder_of_temporary_files(job, tmp_path, monkeypatch):
    """A socket's path has room for about a hundred characters."""
    place = tmp_path / ("t" * 120)
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    assert_right(job, execute(job))


def test_a_key_process_whose_parent_is_gone_makes_no_keys(job):
    message = '{"parent": 1, "keys": "k", "client": "c", "params": {}, "steps": []}'
    done = subprocess.run(
        [sys.executable, "-P", "-m", "he_backend.processes.keys"],
        input=message,
        capture_output=True,
        text=True,
        env=clean_environment(),
        check=False,
    )
    assert done.returncode and "has ended" in done.stderr


@pytest.mark.parametrize("gone", [False, True])
def test_a_failing_process_leaves_its_last_words(gone, job, monkeypatch):
    """The folder of a temporary run is gone by the time that its error is read. gone: the process
    has ended before anything is said to it.
    """
    whole = children.Processes._spawn

    def spawn(self, *given):
        link = whole(self, *given)
        self.children[-1].process.wait()
        return link

    if gone:
        monkeypatch.setattr(children.Processes, "_spawn", spawn)
    log = job.folders.server / "server.log"
    log.write_text("Traceback (most recent call last)\nOldError: of an earlier attempt\n")
    monkeypatch.setattr(
        "he_backend.processes.children.module_command", lambda *_: [sys.executable, "-c", "1/0"]
    )
    monkeypatch.setattr("he_backend.processes.session.ensure_keys", lambda *_: MadeKeys())
    with pytest.raises(BackendError, match="server process ended .*ZeroDivisionError"):
        execute(job)


_ODD_SERVER = """
import json, socket, time
from he_backend.processes.messages import receive, send
control = socket.socket(fileno=0)
receive(control)
send(control, json.loads(%r))
time.sleep(60)
"""


@pytest.mark.parametrize(
    "message",
    [
        {"type": "error", "error": [1]},
        {"type": "error", "error": {"kind": "MissingRotationKey", "step": "five"}},
        {"type": "ready"},
        {"type": "ready", "processes": [1], "jax": False},
        {"error": {}},
    ],
)
def test_a_server_that_says_something_else_is_named(job, monkeypatch, message):
    code = _ODD_SERVER % json.dumps(message)
    monkeypatch.setattr(children, "module_command", lambda *_: [sys.executable, "-c", code])
    monkeypatch.setattr(children, "_STOP_SECONDS", 0.1)
    monkeypatch.setattr("he_backend.processes.session.ensure_keys", lambda *_: MadeKeys())
    with pytest.raises(ProtocolError, match="the server process sent a message"):
        execute(job)


def test_a_killed_process_is_said_to_be_killed(job):
    def kill(progress):
        if progress.processes:
            os.kill(progress.processes["server"], signal.SIGKILL)

    with pytest.raises(BackendError, match=r"server process ended unexpectedly \(signal 9\)"):
        execute(changed(job, progress=kill, ahead=1))


def test_idle_workers_that_die_count_too(job, monkeypatch):
    """Killed and buried before the clients are ready, hence before there is any task."""
    whole = children.Processes._tell
    killed = []

    def alive(pid):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True

    def tell(self, link, header):
        if header.get("type") == "begin":
            killed.extend(pid for k, pid in self.pids.items() if k.startswith("worker"))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            while any(alive(pid) for pid in killed):
                time.sleep(0.01)
        return whole(self, link, header)

    monkeypatch.setattr(children.Processes, "_tell", tell)
    result = execute(changed(job, workers=2, worker_deaths=2))
    assert_right(job, result)
    assert len(killed) == result.replaced == 2


def test_the_socket_goes_with_the_server(job, tmp_path, monkeypatch):
    """The caller may have been killed: then it removes nothing."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("he_backend.processes.children.shutil.rmtree", lambda *_, **__: None)
    execute(job)
    assert not list(tmp_path.glob("he-*"))


def damage(path: Path, how: str) -> None:
    if how == "delete":
        path.unlink()
        return
    data = bytearray(path.read_bytes())
    if how == "truncate":
        del data[len(data) // 2 :]
    else:
        data[-5] ^= 16
    write_whole(path, bytes(data))
    os.chmod(path, 0o600)
