"""`Session.steps`: a training that goes on after kills, and says which step failed."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest

import he_backend
from he_backend.processes.folders import digest_of
from he_backend.processes.states.ahead import bound_to
from he_backend.processes.store import Store
from tests.he_backend.test_carrying import close, data, exact, state, traced

__all__ = ["traced"]

COUNT = 4


def opened(traced, folder: Any = None, **options: Any):
    program, circuit = traced
    if options.get("backend") != "slots":
        options["run_dir"] = folder
    return he_backend.session(program, circuit=circuit, **options)


def batches() -> list[tuple]:
    return [data(k) for k in range(COUNT)]


@pytest.mark.parametrize("backend", ["slots", "pyfhel"])
@pytest.mark.parametrize("check", [False, True])
def test_steps_are_those_of_the_function(traced, backend, check):
    """In temporary folders; the count in the state goes on in the clear."""
    with opened(traced, backend=backend) as session:
        found = list(session.steps((state(),), batches(), check=check, read=lambda k: k == 2))
        kept = session.batches
    expected = exact(traced[0], COUNT)
    assert [step.number for step in found] == list(range(COUNT))
    for step, result in zip(found, expected, strict=True):
        close(step.outputs[1:], result[1:])
        assert (step.report.exact is not None) is check
        if step.number == 2:
            close(step.outputs, result)
        else:
            assert step.outputs[0][:2] == (None, None) and step.outputs[0][2] == result[0][2]
    assert kept == ["step-2", "step-3"]


def test_a_training_goes_on_where_it_stood(traced, tmp_path):
    """After an end in the middle of a step, and after one between two."""
    stops: list[int] = []

    def stop(progress):
        if stops and progress.processes and progress.tasks_done >= stops[0]:
            raise InterruptedError

    found: list[he_backend.Step] = []
    with opened(traced, tmp_path / "run", progress=stop) as session:
        steps = session.steps((state(),), batches())
        found += [next(steps), next(steps)]
        stops.append(3)
        with pytest.raises(InterruptedError):
            next(steps)
    stops.clear()
    with opened(traced, tmp_path / "run") as session:
        steps = session.steps((state(),), batches())
        again = next(steps)
        assert again.number == 1 and again.report.skipped == again.report.tasks
        close(again.outputs[1], found[1].outputs[1], 0.0)
        found.append(next(steps))
        assert found[2].number == 2 and found[2].report.skipped >= 3
    with opened(traced, tmp_path / "run") as session:
        found += list(session.steps((state(),), data, count=COUNT))[1:]
        close(session.read("step-3"), exact(traced[0], COUNT)[3])
        assert session.batches == ["step-2", "step-3"]
    for step, result in zip(found, exact(traced[0], COUNT), strict=True):
        close(step.outputs[1:], result[1:])


@pytest.mark.parametrize("check", [False, True])
def test_the_data_of_the_next_step_is_encrypted_while_the_server_works(traced, tmp_path, check):
    """By the client, before the present step ends; a function is asked only if it says so."""
    folder, seen, asked = tmp_path / "run.client" / "ahead", [], []

    def there() -> dict[str, bytes]:
        """What lies there and was not there in the step before, which may not have taken it yet."""
        found = {}
        for path in folder.glob("c*.ct"):
            with contextlib.suppress(FileNotFoundError):
                found[path.name] = path.read_bytes()
        before = seen[-1].values() if seen else ()
        return {name: blob for name, blob in found.items() if blob not in before}

    def look(progress):
        if progress.processes and len(seen) < COUNT - 1 and progress.tasks_done == 1:
            end = time.monotonic() + 60
            while not (found := there()) and time.monotonic() < end:
                time.sleep(0.01)
            seen.append(found)

    def ahead(k):
        asked.append(k)
        return data(k)

    with opened(traced, tmp_path / "run", progress=look) as session:
        found = list(session.steps((state(),), data, count=COUNT, check=check, ahead=ahead))
    assert asked == [1, 2, 3] and all(seen) and not folder.exists()
    every = [blob for files in seen for blob in files.values()]
    assert len(set(every)) == len(every), "no ciphertext serves two steps"
    for k in (2, 3):  # they are what the client looks for when that step's batch begins
        own = sorted((tmp_path / "run.client/batches" / f"step-{k}" / "inputs").glob("*.npy"))
        store = Store(tmp_path / "copy", bound_to(f"step-{k}", [digest_of(p) for p in own]))
        for name, blob in seen[k - 1].items():
            (store.folder / name).write_bytes(blob)
        assert store.ciphers() and all(map(store.holds, store.ciphers()))
        store.delete(store.ciphers())
    for step, result in zip(found, exact(traced[0], COUNT), strict=True):
        close(step.outputs[1:], result[1:])


def test_a_damaged_state_is_gone_behind_or_refused(traced, tmp_path):
    def damage(k: int) -> None:
        path = sorted((tmp_path / "run" / "batches" / f"step-{k}" / "carried").glob("*.ct"))[0]
        path.write_bytes(path.read_bytes()[:-1])

    with opened(traced, tmp_path / "run") as session:
        list(session.steps((state(),), batches(), count=3))
        damage(2)
        with pytest.warns(he_backend.RunFolderWarning, match="state that step 1 left"):
            found = list(session.steps((state(),), batches()))
        assert [step.number for step in found] == [1, 2, 3]
        close(session.read("step-3"), exact(traced[0], COUNT)[3])
        damage(2)
        damage(3)
        with pytest.raises(he_backend.RunFolderError, match=r"no state .*forget step-2, step-3 to"):
            next(session.steps((state(),), batches()))


@pytest.mark.parametrize("backend", ["slots", "pyfhel"])
def test_a_step_that_leaves_its_range_is_named_and_the_state_before_it_kept(
    traced, tmp_path, backend
):
    """By the source line, what to change, and the step's number; with other data it goes on."""
    x, rate = data(1)
    bad = [data(0), (x * 1e9, rate), data(2)]
    with opened(traced, tmp_path / "run", backend=backend) as session:
        steps = session.steps((state(),), bad)
        next(steps)
        with pytest.raises(he_backend.BackendError, match=r"step 1 of the .*step 0 left is kept"):
            next(steps)
        if backend == "pyfhel":
            assert session.batches == ["step-0"] and session.damaged("step-0") is None
            found = list(session.steps((state(),), batches(), count=2))
            close(session.read(found[1].batch), exact(traced[0], 2)[1])


def test_a_caller_who_knows_the_states_chooses_the_steps_that_are_checked(traced):
    """Of a training that began elsewhere, two steps before."""
    results = exact(traced[0], COUNT)
    asked: list[int] = []

    def before(number: int) -> tuple:
        asked.append(number)
        return (results[number - 1][0],)

    with opened(traced, backend="slots") as session:
        steps = session.steps(before, batches(), first=2, check=lambda k: k == 3)
        found = list(steps)
        assert session.batches == ["step-2", "step-3"]
    assert [step.number for step in found] == asked == [2, 3]
    assert [step.report.exact is not None for step in found] == [False, True]
    for step in found:
        close(step.outputs[1:], results[step.number][1:])


def test_what_cannot_be_a_training_is_refused(traced):
    program, circuit = traced
    fixed = he_backend.session(program, params=circuit.params, backend="slots")
    with pytest.raises(he_backend.BackendError, match="what it carries"):
        fixed.steps((state(),), batches())
    with opened(traced, backend="slots") as session:
        with pytest.raises(he_backend.BackendError, match="keep=0"):
            session.steps((state(),), batches(), keep=0)
        with pytest.raises(he_backend.BackendError, match="state=lambda number"):
            session.steps((state(),), batches(), check=lambda k: True)
        with pytest.raises(he_backend.BackendError, match="a state has 1 arguments"):
            next(session.steps(state(), batches()))
