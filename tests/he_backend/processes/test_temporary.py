"""A run without a folder of its own leaves nothing behind, however its caller ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from he_backend.processes.temporary import temporary_folders

_SLEEPER = """
import sys, time
from he_backend.processes.temporary import temporary_folders
with temporary_folders(None, None) as folders:
    folders.secret_key.write_bytes(b"secret")
    folders.make_batch()
    (folders.inputs / "0.npy").write_bytes(b"plain")
    print(folders.client, flush=True)
    time.sleep(60)
"""

_RUN = """
import sys, time, warnings
import numpy as np
warnings.simplefilter("ignore")
from hesim.circuit.circuit import Circuit
from he_backend.processes.session import Job, execute
from he_backend.processes.temporary import temporary_folders

def wait(progress):
    print(progress.op, flush=True)
    if not progress.op.startswith(sys.argv[2]):
        return
    time.sleep(60)

circuit = Circuit.load(sys.argv[1])
with temporary_folders(None, None) as folders:
    outputs = [int(c) for c in circuit.outputs[0].ciphers]
    values = np.linspace(-1, 1, circuit.slots)
    execute(Job(circuit, outputs, [values], [], folders, progress=wait, ahead=1))
"""


def started(tmp_path: Path, code: str, *arguments: str) -> subprocess.Popen[str]:
    """A caller that writes its temporary folders into `tmp_path`."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )


def gone(path: Path) -> bool:
    """Whether nothing is in `path`, after a moment in which it may be removed."""
    end = time.monotonic() + 60
    while any(path.iterdir()) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, signal.SIGABRT])
def test_a_signal_to_the_caller_leaves_no_secret(tmp_path, number):
    with started(tmp_path, _SLEEPER) as caller:
        assert caller.stdout is not None
        client = Path(caller.stdout.readline().strip())
        assert (client / "secret.key").read_bytes() == b"secret"
        caller.send_signal(number)
        assert caller.wait() == -number, "the signal does what it did before"
        assert gone(tmp_path)


@pytest.mark.parametrize("when", ["making", "first"])
def test_a_caller_killed_in_a_run_leaves_no_secret(tmp_path, draft, when):
    """While keys are being made, and while client, server and workers are at work."""
    a = draft.input([0.0] * 32)
    circuit = draft.circuit(draft.rotate(draft.refresh(draft.rotate(a, 1), 2), 1))
    circuit.save(tmp_path / "circuit.npz")
    place = tmp_path / "place"
    place.mkdir()
    with started(place, _RUN, str(tmp_path / "circuit.npz"), when) as caller:
        assert caller.stdout is not None
        for line in caller.stdout:
            if line.startswith(when):
                break
        assert list(place.glob("he-run-*/run.client/batches/0/inputs/0.npy"))
        caller.kill()
        caller.wait()
        assert gone(place)


def test_what_nobody_removed_is_found_by_the_next_run(tmp_path, monkeypatch):
    """Everything was killed at once. What is still in use stays."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    orphan = tmp_path / "he-run-orphan"
    (orphan / "run.client").mkdir(parents=True)
    (orphan / "run.client" / "secret.key").write_bytes(b"secret")
    (tmp_path / "other").mkdir()
    with temporary_folders(None, None) as first:
        assert not orphan.exists() and first.client.stat().st_mode & 0o777 == 0o700
        with temporary_folders(None, None) as second:
            assert first.server.exists() and second.server.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_an_error_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ValueError, match="in between"), temporary_folders(None, None):
        raise ValueError("in between")
    assert not list(tmp_path.iterdir())
