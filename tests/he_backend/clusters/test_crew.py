"""The workers as a coordinator has them: what reaches them, what moves, what becomes of it."""

# ruff: noqa: E402  what is tested imports Dask
from __future__ import annotations

import select
import shutil
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

distributed = pytest.importorskip("distributed", reason="Dask's distributed is not installed")

from he_backend.clusters import crew, evaluating, placing, supplies, waves
from he_backend.errors import BackendError, BlobError, ClusterError, MissingRotationKey
from he_backend.processes.folders import Folders, digest_of
from he_backend.processes.pending import Pending
from he_backend.processes.store import ArrayFile, Journal, Store
from he_backend.processes.tasks import plan
from hesim.circuit.circuit import Kind

TARGET = 2e-4


class Side:
    """A session without processes: the test is coordinator and key holder at once."""

    def __init__(self, client, work, folders, machine, holder=None, steps=(1, 2)):
        self.circuit, self.inputs, self.operands, self.outputs, _ = work
        self.folders = folders
        self.holder: Any = holder
        self.circuit.save(folders.circuit)
        files = sorted(p for p in folders.keys.iterdir() if p.suffix == ".key")
        self.keys = {p.name: (p.stat().st_size, digest_of(p)) for p in files}
        self.schedule = plan(self.circuit, self.outputs, TARGET)
        name = folders.circuit.name
        evaluation = evaluating.Evaluation(
            "hesim-test", machine, name, list(self.keys), list(steps), repeated=True
        )
        self.crew = crew.Crew(client, evaluation, patience=20.0)
        size, digest = folders.circuit.stat().st_size, digest_of(folders.circuit)
        self.crew.supply("hesim-test-keys", folders.keys, self.keys)
        self.crew.supply("hesim-test-circuit", folders.server, {name: (size, digest)})
        self._batches = 0

    def batch(self) -> dict[int, bytes]:
        """Ciphertexts of the outputs."""
        self._batches += 1
        name, order = f"hesim-test-batch-{self._batches}", []
        for values in self.operands:
            file = ArrayFile(values)
            order.append(f"{file.digest}.npy")
            file.write(self.folders.operand(file.digest))
        folder = self.folders.operands
        files = {f: ((folder / f).stat().st_size, f.removesuffix(".npy")) for f in order}
        self.crew.supply(name, folder, files if self._batches == 1 else {}, order)
        self.placement = placing.Placement(self.schedule, self._size, 2 * TARGET)
        self.crew.begin(name, self.placement)
        self.order: list[int] = []
        return self._served()

    def _served(self) -> dict[int, bytes]:
        tasks, blobs = self.schedule.tasks, dict[int, bytes]()
        place = self.folders.server / f"b{self._batches}"
        pending = Pending(self.schedule, Journal(place.with_suffix(".j"), "r"), Store(place, "r"))
        left = waves.Waves(pending)
        others = {t.id: t for t in tasks if t.side != "worker"}
        here = {c for t in others.values() for c in t.needs}
        while pending.waiting:
            sizes = (self._size, here.__contains__)
            self.crew.give(self.schedule, left.take(), blobs.__getitem__, *sizes)
            for number in [n for n in others if n in pending.waiting and not pending.waiting[n]]:
                if all(c in blobs for c in others[number].needs):
                    blobs.update(self._answer(others[number], blobs))
                    self.crew.release(pending.finish(others[number]))
                    left.finish(others.pop(number))
                    break
            else:
                for event in self._events():
                    if isinstance(event, crew.Failed):
                        raise event.error
                    if isinstance(event, crew.Arrived):
                        blobs.update(event.blobs)
                    if isinstance(event, crew.Done):
                        for number in event.tasks:
                            self.order.append(number)
                            self.placement.finish(tasks[number])
                            self.crew.release(pending.finish(tasks[number]))
        return {c: blobs[c] for c in self.outputs}

    def _size(self, c: int) -> int:
        return self.holder.cipher_size(int(self.circuit.components[c]), int(self.circuit.level[c]))

    def _answer(self, task, blobs) -> dict[int, bytes]:
        circuit, machine = self.circuit, self.holder
        if task.kind == "decrypt":
            return {}
        found = {}
        for i in task.instructions:
            level, scale = int(circuit.level[i]), float(circuit.scale[i])
            if circuit.kind[i] == Kind.INPUT:
                values = self.inputs[circuit.input_rows[int(circuit.param[i])][0]]
            else:
                (c,) = circuit.operands(i)
                held = machine.from_bytes(blobs[c], int(circuit.level[c]), float(circuit.scale[c]))
                values = machine.decrypt(held)
            found[i] = machine.to_bytes(machine.encrypt(values, level, scale))
        return found

    def _events(self) -> Iterator[crew.Event]:
        assert select.select([self.crew.link], [], [], 30)[0], "nothing happens"
        yield from self.crew.events()

    def values(self, blobs) -> list[np.ndarray]:
        levels, scales = self.circuit.level, self.circuit.scale
        opened = (
            self.holder.from_bytes(b, int(levels[c]), float(scales[c])) for c, b in blobs.items()
        )
        return [self.holder.decrypt(cipher) for cipher in opened]


@pytest.fixture
def side(threads, work, tmp_path, pyfhel, monkeypatch):
    """On Pyfhel, on workers that do not see the coordinator's folders."""
    monkeypatch.setattr(supplies, "sees", lambda *_: False)
    monkeypatch.setattr(crew, "sees", lambda *_: False)
    monkeypatch.setattr(waves, "_SMALL", 0)  # as if all were large: each parcel has its own readers
    folders = Folders.of(tmp_path / "run")
    names = [folders.keys / f"{name}.key" for name in ("public", "relin", "rotation")]
    pyfhel.save_keys(*names, folders.client / "secret.key")
    found = Side(threads, work, folders, "pyfhel", pyfhel, steps=(1, 2, 5))
    yield found
    found.crew.close()


def received(client, name: str) -> list[int]:
    found = client.run(lambda dask_worker: getattr(dask_worker.plugins.get(name), "received", -1))
    return sorted(found.values())


def test_keys_are_sent_once_and_two_batches_are_right(side, threads, work):
    size = sum(size for size, _ in side.keys.values())
    assert received(threads, "hesim-test-keys") == [size, size]
    shutil.rmtree(side.folders.keys)  # workers have their own
    for _ in range(2):
        for found, value in zip(side.values(side.batch()), work[4], strict=True):
            np.testing.assert_allclose(found, value, atol=2.0**-20)
        assert received(threads, "hesim-test-keys") == [size, size]
    assert received(threads, "hesim-test-batch-2") == [0, 0]
    with distributed.Client(threads.cluster, set_as_default=False) as other:
        side.crew.close()
        end = time.monotonic() + 10
        while received(other, "hesim-test-keys") != [-1, -1] and time.monotonic() < end:
            time.sleep(0.05)
        assert received(other, "hesim-test") == received(other, "hesim-test-keys") == [-1, -1]


def test_nothing_stays_on_the_cluster_that_nobody_reads(side, threads):
    side.batch()
    end, held = time.monotonic() + 10, {}
    while time.monotonic() < end:
        held = threads.run(lambda dask_worker: [k for k in dask_worker.data if "hesim" in str(k)])
        if not any(held.values()):
            return
        time.sleep(0.05)
    raise AssertionError(f"workers still hold {held}")


def test_a_worker_that_does_not_see_the_files_is_sent_them(side, threads, work, monkeypatch):
    """All seemed to see them, as where one joins later that does not."""
    client, other = hidden(side, threads, work, monkeypatch)
    for found, value in zip(other.values(other.batch()), work[4], strict=True):
        np.testing.assert_allclose(found, value, atol=2.0**-20)
    assert received(client, "hesim-test-keys")[0] > 0
    other.crew.close()


def test_files_that_are_gone_when_a_worker_needs_them_end_the_batch(
    side, threads, work, monkeypatch
):
    _, other = hidden(side, threads, work, monkeypatch)
    shutil.rmtree(side.folders.keys)
    with pytest.raises(ClusterError, match="gave up .FileNotFoundError"):
        other.batch()
    other.crew.close()


def hidden(side, threads, work, monkeypatch) -> tuple[Any, Side]:
    """A client, and another session on it whose files no worker sees, though all seemed to."""
    monkeypatch.setattr(crew, "sees", lambda *_: True)
    side.crew.close()
    client = distributed.Client(threads.cluster, set_as_default=False)
    other = Side(client, work, side.folders, "pyfhel", side.holder, steps=(1, 2, 5))
    client.run(_hide)
    return client, other


def _hide(dask_worker):
    for plugin in dask_worker.plugins.values():
        if isinstance(plugin, supplies.Supply):
            plugin.folder = "/nowhere"


def test_keys_that_were_altered_on_a_worker_are_refused(side, threads):
    def alter(dask_worker):
        plugin = dask_worker.plugins["hesim-test-keys"]
        path = plugin._place / "relin.key"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    threads.run(alter)
    with pytest.raises(BlobError, match="is not what the coordinator has"):
        side.batch()


def test_an_error_of_a_worker_names_the_operation(threads, work, tmp_path, pyfhel):
    """The keys rotate by fewer steps than the circuit does."""
    folders = Folders.of(tmp_path / "run")
    names = [folders.keys / f"{name}.key" for name in ("public", "relin", "rotation")]
    pyfhel.save_keys(*names, folders.client / "secret.key")
    side = Side(threads, work, folders, "pyfhel", pyfhel, steps=(5,))
    with pytest.raises(MissingRotationKey, match="model.py:10|model.py:20"):
        side.batch()
    side.crew.close()


def test_what_the_same_tasks_read_travels_together(work):
    """Large ciphertexts, that is; of small ones it is those for the coordinator, and the others."""
    circuit, _, _, outputs, _ = work
    schedule = plan(circuit, outputs, 5e-3)
    read = {c for t in schedule.tasks if t.side != "worker" for c in t.needs}
    several = 0
    for task in schedule.tasks:
        readers = schedule.consumers.get
        large = waves.grouped(task.gives, readers, lambda c: 1 << 30, read.__contains__)
        small = waves.grouped(task.gives, readers, lambda c: 1, read.__contains__)
        several += len(large) > len(small)
        for parts in (large, small):
            assert sorted(c for part in parts for c in part) == sorted(task.gives)
            assert all(len({c in read for c in part}) == 1 for part in parts)
        assert all(len({schedule.consumers.get(c, ()) for c in part}) == 1 for part in large)
        assert len(small) <= 2
    assert several


def test_small_ciphertexts_that_travel_together_come_to_the_same(side, work, monkeypatch):
    monkeypatch.setattr(waves, "_SMALL", 1 << 30)
    for found, value in zip(side.values(side.batch()), work[4], strict=True):
        np.testing.assert_allclose(found, value, atol=2.0**-20)


def test_a_wave_waits_for_the_key_holder_only(work, tmp_path):
    circuit, _, _, outputs, _ = work
    schedule = plan(circuit, outputs, TARGET)
    pending = Pending(schedule, Journal(tmp_path / "j", "r"), Store(tmp_path / "s", "r"))
    left, given = waves.Waves(pending), set()
    first = left.take()
    assert first == []  # nothing is known before the inputs
    for task in schedule.tasks:
        if task.side == "worker":
            assert task.id in given
        else:
            pending.finish(task)
            left.finish(task)
            given |= {t.id for t in left.take()}
    assert given == {t.id for t in schedule.tasks if t.side == "worker"}


def test_a_worker_that_keys_fill_says_how_much_it_needs(side, monkeypatch):
    monkeypatch.setattr(evaluating, "_HELD", 1e-6)
    with pytest.raises(BackendError, match="no room: .* GB are held, .* at least .* GB each"):
        side.batch()
