"""Two processes of two users over TLS: the same results, and nothing of the one with the other.

It takes the rights of the superuser to become two others.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import he_backend
import hesim
from he_backend.owners.certificates import make_pair
from tests.he_backend.owners.conftest import MASK, X
from tests.he_backend.processes.searching import key_windows, regions

TOP = Path(__file__).resolve().parents[3]
EVALUATOR, HOLDER = 12_001, 12_002
W = np.linspace(0.5, 1.5, 8, dtype=np.float32)

ROUNDS = 8


def fn(x, w, mask):
    """Round trips enough that one can be waited for."""
    h = x * mask.astype(w.dtype)[:, None]
    for _ in range(ROUNDS):
        h = hesim.refresh(h) * w
    return {"out": h, "w": w}


SCRIPT = """
import os, signal, sys, numpy as np
import he_backend, hesim
half, data = hesim.load("half"), np.load("data.npz")
def told(progress):
    clients = [pid for name, pid in progress.processes.items() if name.startswith("client")]
    if progress.tasks_done == WAIT:
        for pid in clients:
            os.kill(pid, signal.SIGSTOP)
        print("waiting", flush=True)
        sys.stdin.readline()
        for pid in clients:
            os.kill(pid, signal.SIGCONT)
with he_backend.connect(half, ADDRESS, "state", certificates="certificates", backend=MACHINE,
                        progress=told) as session:
    found = session.run(data["x"], data["mask"])
np.savez("result.npz", **found)
print("imported", sorted({"jax", "jaxlib", "flax", "models", "experiments"} & set(sys.modules)))
"""


def interpreter() -> str:
    """A Python of this version that other users may run."""
    found = (sys.executable, shutil.which(f"python3.{sys.version_info[1]}", path="/usr/bin"))
    for path in filter(None, found):
        with contextlib.suppress(OSError):
            if not subprocess.run(
                [path, "-c", ""], user=HOLDER, group=HOLDER, check=False
            ).returncode:
                return path
    pytest.skip("no Python that other users may run")


@pytest.fixture(scope="module")
def python() -> str:
    if os.geteuid() != 0:
        pytest.skip("only the superuser becomes two others")
    return interpreter()


def environment() -> dict[str, str]:
    paths = (str(TOP), sysconfig.get_paths()["purelib"])
    return {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(paths), "TMPDIR": "/tmp"}


@pytest.fixture(scope="module")
def homes(tmp_path_factory) -> Iterator[dict[int, Path]]:
    """The folders of both users, 0700, with what each is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        params = hesim.CKKSParams(11, 2, 40, 50, 60, security=None)
    program = hesim.trace(fn, X.astype(np.float32), W, MASK, encrypted=0)
    circuit = hesim.compile(program, params)
    bundle = hesim.bundle(circuit, X, W, MASK, open=2)
    top = Path("/tmp") / f"he-two-users-{os.getpid()}"
    top.mkdir(mode=0o755)
    homes = {user: top / str(user) for user in (EVALUATOR, HOLDER)}
    for side, home in zip(make_pair(top / "both"), homes.values(), strict=True):
        home.mkdir(mode=0o700)
        shutil.move(side, home / "certificates")
    hesim.save(bundle, homes[EVALUATOR] / "whole")
    hesim.save(bundle.for_key_holder(), homes[HOLDER] / "half")
    np.savez(homes[HOLDER] / "data.npz", x=X, mask=MASK)
    for user, home in homes.items():
        for path in (home, *home.rglob("*")):
            os.chown(path, user, user)
    yield homes
    shutil.rmtree(top, ignore_errors=True)


@contextlib.contextmanager
def started(user: int, home: Path, command: list[str]) -> Iterator[subprocess.Popen[str]]:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(
        command,
        user=user,
        group=user,
        extra_groups=[],
        cwd=home,
        env=environment(),
        text=True,
        **pipes,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def until(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.search(pattern, line):
            return match
    raise AssertionError(f"{pattern!r} was not said; it ended with {process.wait()}")


def pieces(array: np.ndarray) -> list[bytes]:
    """Runs of four numbers out of an array, as NumPy has them in float64 and float32."""
    flat = np.asarray(array, np.float64).reshape(-1)
    kinds = (flat, flat.astype(np.float32))
    return [x[at : at + 4].tobytes() for x in kinds for at in range(0, len(x) - 3, 4)]


def found_in(pid: int, windows: list[bytes]) -> bool:
    return any(window in memory for memory in regions(pid) for window in windows)


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["slots", "pyfhel"])
def test_the_result_is_that_of_one_process_and_the_evaluator_has_seen_nothing(
    python, homes, machine
):
    ours, theirs = homes[EVALUATOR], homes[HOLDER]
    serve = [python, "-P", "-m", "experiments", "serve", "whole", "--listen", "127.0.0.1:0"]
    serve += ["--folder", f"state-{machine}", "--certificates", "certificates"]
    with started(EVALUATOR, ours, [*serve, "--backend", machine]) as evaluator:
        address = until(evaluator, r"serving at (\S+);")[1]
        script = SCRIPT.replace("ADDRESS", repr(address)).replace("MACHINE", repr(machine))
        shutil.rmtree(theirs / "state", ignore_errors=True)
        command = [python, "-P", "-c", script.replace("WAIT", "1")]
        with started(HOLDER, theirs, command) as holder:
            until(holder, "waiting")
            servers = [
                evaluator.pid,
                *(c.pid for c in psutil.Process(evaluator.pid).children(True)),
            ]
            secret = pieces(X)
            if machine == "pyfhel":
                assert len(servers) >= 3  # the service, a server, workers
                secret += key_windows(theirs / "state" / "own" / "secret.key")
                holders = [c.pid for c in psutil.Process(holder.pid).children(True)]
                assert any(found_in(pid, secret[-3:]) for pid in holders), "the search finds keys"
                for pid in servers:
                    assert not found_in(pid, secret), pid
                assert found_in(servers[0], pieces(W)), "the search finds what is there"
            assert holder.stdin is not None
            holder.stdin.write("\n")
            holder.stdin.flush()
            assert until(holder, r"imported (.*)")[1] == "[]"
            assert holder.wait(60) == 0
        with np.load(theirs / "result.npz") as result:
            out = result["out"]
        if machine == "pyfhel":
            windows = [*secret, *pieces(out)]
            for pid in servers:
                with contextlib.suppress(FileNotFoundError):  # workers have ended
                    assert not found_in(pid, windows), pid
            assert found_in(evaluator.pid, pieces(W))
            for path in (p for p in ours.rglob("*") if p.is_file()):
                assert not any(window in path.read_bytes() for window in windows), path
        assert evaluator.poll() is None
    np.testing.assert_allclose(out, X * MASK[:, None] * W.astype(np.float64) ** ROUNDS, atol=1e-6)
    if machine == "slots":
        np.testing.assert_array_equal(out, in_one_process())
    for user, other in ((EVALUATOR, theirs), (HOLDER, ours)):
        look = subprocess.run(
            ["ls", other], user=user, group=user, capture_output=True, check=False
        )
        assert look.returncode != 0, "a folder is its owner's own"


def in_one_process() -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        params = hesim.CKKSParams(11, 2, 40, 50, 60, security=None)
    program = hesim.trace(fn, X.astype(np.float32), W, MASK, encrypted=0)
    circuit = hesim.compile(program, params)
    report = he_backend.run(program, X, W, MASK, circuit=circuit, backend="slots")
    return report.outputs["out"]
