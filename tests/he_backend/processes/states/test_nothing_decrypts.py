"""Over steps that go on from one another, nothing on the server's side decrypts."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import he_backend
import hesim
from tests.he_backend.processes.searching import key_windows, regions

STEPS = 3


def step(state, x, y):
    w, m = state
    error = x @ w - y
    m = 0.5 * m + x.T @ error * 0.25
    return (w - 0.1 * m, m), error


def numbers(values: Any) -> list[bytes]:
    """Values as they would lie in memory or in a file, as float64 and as float32: two at a time,
    since one may occur by chance.
    """
    flat = np.ravel(np.asarray(values, np.float64))
    pairs = [flat[k : k + 2] for k in range(0, len(flat) - 1, 2)]
    return [form for pair in pairs for form in (pair.tobytes(), pair.astype(np.float32).tobytes())]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="the client's memory is its own")
def test_nothing_that_the_server_holds_decrypts(params, tmp_path):
    """Searched for, over several steps: the secret key; data, labels, state and moments before and
    after each step, and decrypted results. The client's memory, where they are, is the control.
    """
    rng = np.random.default_rng(5)
    state = rng.uniform(-1, 1, 4), rng.uniform(-1, 1, 4)
    batches = [(rng.uniform(-1, 1, (4, 4)), rng.uniform(-1, 1, 4)) for _ in range(STEPS)]
    program = hesim.trace(step, state, *batches[0])
    circuit = hesim.compile(program, params, carried={0: 0})
    given = [x for pair in (state, *batches) for x in pair]
    held = state
    exact = []
    for batch in batches:
        held, error = program(held, *batch, precision="float64")
        exact += [*held, error]
    needles = [n for x in given for n in numbers(x)]
    key: list[bytes] = []
    seen: dict[str, int] = {}
    found: list[str] = []

    def search(name: str, data: bytes, wanted: list[bytes]) -> int:
        hits = sum(n in data for n in wanted)
        if hits:
            found.append(name)
        return hits

    def look(progress):
        if not progress.processes or progress.tasks_done % 7:
            return
        if not key:
            key.extend(key_windows(tmp_path / "run.client" / "secret.key"))
        for name, pid in progress.processes.items():
            wanted = [*needles, *key]
            if name.startswith("client"):
                seen[name] = seen.get(name, 0) + sum(
                    n in region for region in regions(pid) for n in wanted
                )
                continue
            seen.setdefault(name, 0)
            for region in regions(pid):
                search(name, region, wanted)

    with he_backend.session(
        program, circuit=circuit, run_dir=tmp_path / "run", progress=look, clients=1
    ) as session:
        decrypted = [session.read(s.batch) for s in session.steps((state,), batches, keep=STEPS)]
    assert not found and {"server", "worker 0", "worker 1", "client 0"} <= set(seen)
    assert seen["client 0"] > len(key), "the client has the key and what it encrypts"
    secrets = needles + key
    for (w, m), error in decrypted:
        secrets += [*numbers(w), *numbers(m), *numbers(error)]
    secrets += [n for x in exact for n in numbers(x)]
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    carried = [path for path in files if path.parent.name == "carried"]
    assert len(carried) == STEPS * len(circuit.carried)
    for path in files:
        search(str(path), path.read_bytes(), secrets)
    assert not found, "of what the server wrote, sent or was sent"
    own = [p.read_bytes() for p in (tmp_path / "run.client").rglob("*") if p.is_file()]
    assert sum(any(n in data for data in own) for n in secrets) > 2 * STEPS
