"""A run of a Circuit with refreshes and many small tasks, and its processes."""

from __future__ import annotations

import shutil
import socket
import subprocess

import pytest

from he_backend.processes.folders import Folders, clean_environment, digest_of, module_command
from he_backend.processes.identity import claim_batch
from he_backend.processes.keys import ensure_keys
from he_backend.processes.messages import receive, send
from he_backend.processes.session import Job


@pytest.fixture
def job(work, tmp_path):
    """It waits for `progress` after every task, so that a test can end it where it wants to, and
    keeps what was done before.
    """
    circuit, inputs, operands, outputs, _ = work
    folders = Folders.of(tmp_path / "run")
    shared = {"ahead": 1, "task_seconds": 2e-4, "checkpoint_seconds": 0.0}
    return Job(circuit, outputs, inputs, operands, folders, **shared)


@pytest.fixture(scope="module")
def made_keys(params, tmp_path_factory) -> Folders:
    folders = Folders.of(tmp_path_factory.mktemp("keys") / "run")
    ensure_keys(folders, params, (1, 2))
    return folders


@pytest.fixture
def started(job, made_keys, tmp_path):
    """Files and keys of a job, and a function that starts one of its processes with a link."""
    import dataclasses

    folders, circuit = job.folders, job.circuit
    circuit.save(folders.circuit)
    claimed = claim_batch(folders, "run", job.operands, job.inputs, job.decrypt)
    assert sorted(circuit.rotation_steps) == [1, 2]
    shutil.copytree(made_keys.keys, folders.keys, dirs_exist_ok=True)
    for name in ("secret.key", "public.key", "keys.json"):
        shutil.copy(made_keys.client / name, folders.client / name)
    started: list[subprocess.Popen] = []

    def start(module, config):
        ours, theirs = socket.socketpair()
        child = subprocess.Popen(
            module_command(module), stdin=theirs.fileno(), env=clean_environment(), cwd=tmp_path
        )
        started.append(child)
        theirs.close()
        ours.settimeout(30)
        send(ours, {"socket": "s", **config})
        return ours

    client = {
        "circuit": str(folders.circuit),
        "client": str(folders.client),
        "params": dataclasses.asdict(circuit.params),
        "circuit_digest": digest_of(folders.circuit),
    }
    server = {
        "run": str(folders.server),
        "workers": 1,
        "worker_deaths": 0,
        "decrypt": [int(c) for c in job.decrypt],
        "task_seconds": 0.1,
        "ahead": 32,
        "circuit_digest": digest_of(folders.circuit),
        "operands": claimed.operands,
    }

    def begin(side, control):
        """Let it serve the batch, once it is ready."""
        assert receive(control)[0]["type"] == "ready"
        known = {"type": "batch", "batch": folders.batch, "name": claimed.name}
        own = {"inputs": claimed.inputs, "ranges": {}}
        send(control, {**known, **(own if side == "client" else {"operands": claimed.operands})})
        assert receive(control)[0]["type"] == "batch"
        if side == "server":
            send(control, {"type": "begin"})

    yield (
        lambda side: start(f"he_backend.processes.{side}", client if side == "client" else server),
        begin,
    )
    for child in started:
        child.kill()
        child.wait()
