"""Batch after batch under one set of keys: what is kept, what is made anew, what must not be."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket

import numpy as np
import pytest

from he_backend.errors import BackendError, RunFolderError, RunFolderWarning
from he_backend.processes.folders import read_manifest
from he_backend.processes.messages import receive, send
from he_backend.processes.session import Batch, Session
from he_backend.processes.store import read_finished

TOLERANCE = 2.0**-20


@pytest.fixture
def setup(job):
    return dataclasses.replace(job.setup, several=True, workers=1, clients=1, ahead=32)


@pytest.fixture
def batches(job, rng):
    """A batch by its number: inputs of its own; `changed` operands are others."""

    def batch(number, *changed):
        inputs = [rng.uniform(-1, 1, x.shape) for x in job.inputs]
        operands = [-w / k if k in changed else w for k, w in enumerate(job.operands)]
        return Batch(inputs, operands, name=f"b{number}")

    return batch


def assert_right(setup, batch, result):
    """Outputs are those of the `work` fixture, for the inputs and operands of this batch."""
    x, y = batch.inputs
    for k, c in enumerate(setup.decrypt):
        expected = (0.5 + k) * np.roll((x * y + y * y) * batch.operands[k], -(1 + k % 2))
        np.testing.assert_allclose(result.vector(c, setup.circuit.slots), expected, atol=TOLERANCE)


def test_plaintexts_stay_encoded_until_their_operand_changes(setup, batches):
    plan = [batches(0), batches(1), batches(2, 3), batches(3, 3), batches(4, 3, 5)]
    with Session(setup) as session:
        results = [session.run(batch) for batch in plan]
    for batch, result in zip(plan, results, strict=True):
        assert_right(setup, batch, result)
    encoded = [result.spent.encoded for result in results]
    # All, none, by the workers what changed, once more for good, and again by the workers.
    assert encoded == [len(plan[0].operands), 0, 1, 1, 1]
    assert [result.key_seconds > 0 for result in results] == [True, False, False, False, False]
    key_process = read_manifest(setup.folders.key_manifest)["peak"]
    assert 0 < key_process < min(result.peak_bytes for result in results[:1])


def test_processes_stay_and_neither_workers_nor_memory_nor_what_was_asked_do(setup, batches):
    """Resident memory of server and clients, at the end of each batch."""
    pids: dict[str, int] = {}
    noting = dataclasses.replace(setup, progress=lambda p: pids.update(p.processes))
    seen, sizes, names = [], [], []
    with Session(noting) as session:
        for number in range(6):
            names.append(session.run(batches(number, 1 + number % 3)).run)
            seen.append(dict(pids))
            sizes.append(sum(resident(pid) for name, pid in pids.items() if "worker" not in name))
    for name, pid in seen[0].items():
        assert (seen[1][name] == pid) is not name.startswith("worker"), name
    assert sizes[-1] < sizes[1] + (4 << 20), [f"{size / 1e6:.1f} MB" for size in sizes]
    folders = [setup.folders.of_batch(f"b{k}") for k in range(6)]
    records = [each.exchange.read_bytes() for each in folders]
    asked = [record.count(b'{"kind":') for record in records]
    assert asked[0] == asked[1] > 0
    assert not set(records[0].splitlines()) & set(records[1].splitlines()), "each is bound"
    journal = folders[-1].journal
    assert read_finished(journal, names[-1]) and not read_finished(journal, "another")
    with journal.open("ab") as file:
        file.write(b"{}\n")
    assert read_finished(journal, names[-1]) is None


@pytest.mark.parametrize("name", ["server", "client 0"])
def test_a_process_killed_between_batches_is_started_again(setup, batches, name):
    pids: dict[str, int] = {}
    noting = dataclasses.replace(setup, progress=lambda p: pids.update(p.processes))
    with Session(noting) as session:
        session.run(batches(0))
        os.kill(pids[name], signal.SIGKILL)
        assert session._processes is not None
        for child in session._processes.children:
            if child.name == name:
                child.process.wait()
        batch = batches(1)
        result = session.run(batch)
    assert_right(setup, batch, result)
    assert result.key_seconds == 0 and result.skipped == 0


def test_finished_batches_are_read_back_without_keys_or_processes(setup, batches):
    batch = batches(0)
    with Session(setup) as session:
        session.run(batch)
    setup.folders.key_manifest.unlink()
    with Session(setup) as session:
        assert session.done("b0") and not session.done("b1")
        result = session.run(batch)
        assert session._processes is None
        assert_right(setup, batch, result)
        other = batches(1)
        fresh = session.run(other)  # no work is lost, so nothing is to be said about new keys
        assert fresh.key_seconds > 0
        assert_right(setup, other, fresh)
        assert session.done("b0")


def test_a_batch_that_lost_a_value_is_not_done(setup, batches):
    batch = batches(0)
    with Session(setup) as session:
        session.run(batch)
        (setup.folders.of_batch("b0").values / f"v{setup.decrypt[0]}.f64").unlink()
        assert not session.done("b0")
        with pytest.warns(RunFolderWarning, match="tasks that were finished run again"):
            assert_right(setup, batch, session.run(batch))


def test_a_batch_whose_identity_is_lost_is_refused_and_the_others_run(setup, batches):
    with Session(setup) as session:
        session.run(batches(0))
        folders = setup.folders.of_batch("b0")
        for side in (folders.work, folders.own):
            (side / "run.json").rename(side / "elsewhere")
            assert not session.done("b0")
            with pytest.raises(RunFolderError, match=r"run\.json is gone.*put it back, or remove"):
                session.run(batches(0))
            (side / "elsewhere").rename(side / "run.json")
        assert session.done("b0")
        (folders.own / "run.json").unlink()
        batch = batches(1)
        assert_right(setup, batch, session.run(batch))
        session.forget("b0")
        session.run(batches(0))


def test_batches_of_two_runs_do_not_mix(setup, batches, tmp_path):
    """Even where both sides of the other's batch are put in its place."""
    others = type(setup.folders).of(tmp_path / "other")
    other = dataclasses.replace(setup, folders=others)
    for each in (setup, other):
        with Session(each) as session:
            session.run(batches(0))
    mine, theirs = setup.folders.of_batch("b0"), others.of_batch("b0")
    for side in ("work", "own"):
        getattr(mine, side).rename(tmp_path / side)
        getattr(theirs, side).rename(getattr(mine, side))
    with Session(setup) as session:
        assert not session.done("b0")
        with pytest.raises(RunFolderError, match="batches of different runs"):
            session.run(batches(0))


def test_what_is_forgotten_leaves_nothing_but_what_others_have(setup, batches):
    operands = setup.folders.operands
    with Session(setup) as session:
        for number, changed in enumerate([(), (3,), (5,), (5,)]):
            session.run(batches(number, *changed))
        whole = len(list(operands.glob("*.npy")))
        assert whole == 3, "the operands of `work` are all the same"
        session.forget("b1")
        session.forget("b2")
        assert len(list(operands.glob("*.npy"))) == whole - 1  # b3 has the other changed one
        assert setup.folders.batches == ["b0", "b3"]
        assert not any(setup.folders.of_batch("b1").own.glob("**/*"))
        batch = batches(4, 3)  # written again
        assert_right(setup, batch, session.run(batch))


def test_a_session_that_is_not_entered_runs_nothing(setup, batches):
    with pytest.raises(BackendError, match="not open"):
        Session(setup).run(batches(0))


def resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_client_without_a_batch_serves_nothing(started, tmp_path, monkeypatch):
    """What came before the caller said which batch it is of is refused, and that is the end."""
    monkeypatch.chdir(tmp_path)
    start, _ = started
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        listener.listen()
        control = start("client")
        link, _ = listener.accept()
    assert receive(link)[0]["type"] == "hello" and receive(control)[0]["type"] == "ready"
    send(link, {"type": "input", "instructions": [0]})
    assert receive(link)[0] == {"type": "refused"}
    assert "before there is a batch" in receive(control)[0]["error"]["text"]
    link.close()
