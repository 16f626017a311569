"""Batches that go on from one another: what is carried stays encrypted, and what that says."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import he_backend
import hesim

TOLERANCE = 2.0**-16


def step(state, x, rate):
    """A step of gradient descent with momentum, counted in the clear, and its loss."""
    w, m, count = state
    error = x @ w - 0.5
    m = 0.5 * m + x.T @ error * 0.25
    return (w - rate * m, m, count + 1), error, count * 2


def state(k: int = 0) -> tuple[np.ndarray, np.ndarray, np.int32]:
    rng = np.random.default_rng(k)
    return rng.uniform(-1, 1, 4), np.zeros(4), np.int32(k)


def data(k: int) -> tuple[np.ndarray, np.float32]:
    return np.random.default_rng(100 + k).uniform(-1, 1, (4, 4)), np.float32(0.1 / (k + 1))


@pytest.fixture(scope="module")
def traced(params):
    encrypted = ((True, True, False), True, False)
    program = hesim.trace(step, state(), *data(0), encrypted=encrypted)
    return program, hesim.compile(program, params, carried={0: 0})


def exact(program, steps: int) -> list[Any]:
    """Results of steps in the clear, from state 0 on."""
    held, found = state(), []
    for k in range(steps):
        found.append(program(held, *data(k), precision="float64"))
        held = found[-1][0]
    return found


def close(found: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance)


@pytest.mark.parametrize("backend", ["slots", "pyfhel"])
def test_a_batch_goes_on_from_what_another_left(traced, backend):
    program, circuit = traced
    expected = exact(program, 3)
    with he_backend.session(program, circuit=circuit, backend=backend) as session:
        first = session.run(state(), *data(0), batch="a")
        ends = [first, session.run(expected[0][0], *data(1), batch="b", after="a")]
        blind = (None, None, np.int32(2))
        zeros = (np.zeros(4), np.zeros(4), np.int32(2))
        ends.append(session.run(zeros, *data(2), batch="c", after="b", check=False))
        again = session.run(expected[0][0], *data(1), batch="d", after="a")
        read = [session.read(name) for name in "abcd"]
    for report, result in zip(ends, expected, strict=True):
        assert report.outputs[0][:2] == blind[:2], "nobody decrypted it"
        assert report.outputs[0][2] == result[0][2] and report.outputs[2] == result[2]
        close(report.outputs[1], result[1])
        inputs = circuit.ledger.inputs - len(circuit.carried) * (report is not first)
        assert report.counts == circuit.ledger.counts() | {"inputs": inputs}
    for found, result in zip(read, (*expected, expected[1]), strict=True):
        close(found, result)
    close(again.outputs[1], expected[1][1])
    assert ends[2].exact is None and np.isnan(ends[2].max_error) and "not checked" in str(ends[2])
    assert ends[1].max_error < TOLERANCE


def test_a_batch_goes_on_in_another_process_and_is_read_there(traced, tmp_path):
    """As far as another process sees it: a session of its own, in the same folders."""
    program, circuit = traced
    expected = exact(program, 2)

    def opened():
        return he_backend.session(program, circuit=circuit, run_dir=tmp_path / "run")

    with opened() as session:
        session.run(state(), *data(0), batch=0)
    with opened() as session:
        second = session.run(expected[0][0], *data(1), batch=1, after=0)
        session.forget(0)
        assert session.done(1) and not session.done(0)
        back = session.run(expected[0][0], *data(1), batch=1, after=0)
        assert back.skipped == back.tasks and second.skipped == 0
        close(session.read(1), expected[1])
        with pytest.raises(he_backend.RunFolderError, match="no batch '0' in .* to go on from"):
            session.run(state(), *data(1), batch=2, after=0)
    client = tmp_path / "run.client" / "batches" / "1"
    sizes = {path.name: np.load(path).size for path in (client / "inputs").glob("*.npy")}
    assert sizes == {"0.npy": 0, "1.npy": 0, "2.npy": 16}, "what is carried is not encrypted again"


def test_what_cannot_be_gone_on_from_is_refused_by_name(traced, tmp_path):
    program, circuit = traced

    def stop(progress):
        if stops and progress.tasks_done:
            raise InterruptedError

    stops: list[bool] = []
    with he_backend.session(
        program, circuit=circuit, run_dir=tmp_path / "run", progress=stop
    ) as session:
        session.run(state(), *data(0), batch="first")
        stops.append(True)
        with pytest.raises(InterruptedError):
            session.run(state(1), *data(1), batch="begun")
        stops.clear()
        with pytest.raises(he_backend.RunFolderError, match="'begun' in .* is not finished"):
            session.run(state(), *data(2), batch="next", after="begun")
        with pytest.raises(he_backend.RunFolderError, match="no batch 'none' .*begun, first"):
            session.run(state(), *data(2), batch="next", after="none")
        session.run(state(), *data(2), batch="next", after="first")
        with pytest.raises(he_backend.RunFolderError, match="another: .*encrypted arguments"):
            session.run(state(), *data(2), batch="next")
        for path in (tmp_path / "run" / "batches" / "next" / "carried").glob("c*.ct"):
            path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(he_backend.RunFolderError, match=r"next/carried/c\d+\.ct, which .*gone"):
            session.run(state(), *data(3), batch="last", after="next")
        with pytest.raises(he_backend.RunFolderError, match="gone or damaged"):
            session.read("next")
        session.forget("first")
        session.run(state(), *data(0), batch="first")
        with pytest.raises(he_backend.RunFolderError, match="another: batch that it goes on from"):
            session.run(state(), *data(2), batch="next", after="first")
    fixed = hesim.compile(program, circuit.params)
    with he_backend.session(program, circuit=fixed, backend="slots") as session:
        session.run(state(), *data(0))
        with pytest.raises(he_backend.BackendError, match="carries nothing: hesim.compile"):
            session.run(state(), *data(1), after=0)
    with he_backend.session(program, circuit=circuit, backend="slots") as session:
        with pytest.raises(he_backend.BackendError, match="no batch '0' was run to go on from"):
            session.run(state(), *data(1), after=0)
        with pytest.raises(he_backend.BackendError, match="leave check=True"):
            session.run(state(), *data(1), check=False, compare=True)
        session.run(state(), *data(0))
        with pytest.raises(he_backend.BackendError, match=r"args\[0\].* of it is public"):
            session.run(None, *data(1), after=0, check=False)


def test_new_keys_lose_what_was_left_under_the_old_ones(traced, tmp_path):
    program, circuit = traced
    with he_backend.session(program, circuit=circuit, run_dir=tmp_path / "run") as session:
        session.run(state(), *data(0))
    (tmp_path / "run" / "keys" / "keys.json").unlink()
    with he_backend.session(program, circuit=circuit, run_dir=tmp_path / "run") as session:
        with (
            pytest.warns(he_backend.RunFolderWarning, match="1 batches left to go on from is lost"),
            pytest.raises(he_backend.RunFolderError, match="left to go on from, is gone"),
        ):
            session.run(state(), *data(1), batch=1, after=0)
        assert session.done(0), "its results had been decrypted"


def test_a_comparison_is_of_one_batch_alone(traced):
    """It starts from what the one before left, as decrypted, whatever the caller believes that."""
    program, circuit = traced
    with he_backend.session(program, circuit=circuit, keys=4) as session:
        session.run(state(), *data(0))
        (w, m, count), _, _ = exact(program, 1)[0]
        wrong = w + 0.01, m, count
        compared = session.run(wrong, *data(1), after=0, compare=True)
        plain = session.run(wrong, *data(1), after=0)
    assert compared.compared and compared.max_error < TOLERANCE < plain.max_error
    assert compared.as_predicted


def test_a_comparison_predicts_no_encryption_of_what_was_handed_on(params):
    """Of a sum with the state only the other summand has been encrypted for this batch."""
    s, x = np.zeros(params.slots), np.linspace(-1, 1, params.slots)
    program = hesim.trace(lambda s, x: (s + x, s * x), s, x, encrypted=(0, 1))
    circuit = hesim.compile(program, params, carried={0: 0})
    with he_backend.session(program, circuit=circuit, keys=8, compare=True) as session:
        session.run(s, x, batch=0)
        report = session.run(None, x, batch=1, after=0)
    for op in report.ops:
        assert abs(np.log2(op.measured_std / op.predicted_std)) < 0.15, op
    assert report.as_predicted
