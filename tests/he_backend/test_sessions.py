"""`he_backend.session`: many batches under one set of keys, each as a run of its own would be."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import he_backend
import hesim

TOLERANCE = 2.0**-18


def scores(x, w, mask):
    """A matrix product, a product by what may change from batch to batch, and one more level."""
    return jnp.sum((x @ w) * mask * x, axis=1)


@pytest.fixture(scope="module")
def traced(params):
    rng = np.random.default_rng(11)
    x, w = rng.uniform(-1, 1, (4, 8)), rng.uniform(-1, 1, (8, 8))
    program = hesim.trace(scores, x, w, np.ones((4, 8)), encrypted=(0,))
    return program, hesim.compile(program, params), w


def batch(k: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and mask of a batch; every second one has the same mask."""
    rng = np.random.default_rng(k)
    return rng.uniform(-1, 1, (4, 8)), np.full((4, 8), 0.5 + k // 2)


@pytest.mark.parametrize("backend", ["slots", "pyfhel"])
def test_batches_are_as_runs_of_their_own(traced, backend):
    program, circuit, w = traced
    own = he_backend.run(program, batch(1)[0], w, batch(1)[1], circuit=circuit, backend=backend)
    with he_backend.session(program, circuit=circuit, backend=backend) as session:
        reports = [session.run(x, w, mask) for x, mask in map(batch, range(3))]
    for k, report in enumerate(reports):
        x, mask = batch(k)
        np.testing.assert_allclose(report.outputs, scores(x, w, mask), atol=TOLERANCE)
        assert report.counts == circuit.ledger.counts()
        assert report.encrypted is (backend != "slots")
    np.testing.assert_allclose(reports[1].outputs, own.outputs, atol=TOLERANCE)
    np.testing.assert_array_equal(reports[1].exact, own.exact)
    assert [op.name for op in reports[1].ops] == [op.name for op in own.ops]
    made = [report.key_seconds > 0 for report in reports]
    assert made == [backend != "slots", False, False]


def test_a_session_that_was_interrupted_goes_on(traced, tmp_path):
    """What is finished is read back, the interrupted batch goes on, keys are found again."""
    program, circuit, w = traced
    stopped = []

    def stop(progress):
        if len(stopped) == 2 and progress.tasks_done == 2:
            raise KeyboardInterrupt

    def opened(progress=None):
        return he_backend.session(circuit, run_dir=tmp_path / "run", progress=progress)

    with pytest.raises(KeyboardInterrupt), opened(stop) as session:
        for k in range(3):
            stopped.append(k)
            x, mask = batch(k)
            session.run(x, w, mask, batch=f"part-{k}")
            stopped[-1] = "done"
    assert stopped == ["done", 1]
    with opened() as session:
        assert [session.done(f"part-{k}") for k in range(3)] == [True, False, False]
        with pytest.raises(he_backend.RunFolderError, match="another run is using"):
            opened().__enter__()
        reports = [session.run(*with_w(k, w), batch=f"part-{k}") for k in range(3)]
        with pytest.raises(he_backend.RunFolderError, match=r"another: encrypted arguments"):
            session.run(*with_w(1, w), batch="part-0")
        with pytest.raises(he_backend.RunFolderError, match=r"another: public arguments\)"):
            session.run(batch(0)[0], w, np.zeros((4, 8)), batch="part-0")
        with pytest.raises(he_backend.RunFolderError, match="cannot name a batch"):
            session.run(*with_w(0, w), batch="../part")
    assert all(report.key_seconds == 0 for report in reports)
    assert reports[0].skipped == reports[0].tasks > reports[1].skipped >= 2 > reports[2].skipped
    for k, report in enumerate(reports):
        x, mask = batch(k)
        np.testing.assert_allclose(report.outputs, scores(x, w, mask), atol=TOLERANCE)


def with_w(k: int, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, mask = batch(k)
    return x, w, mask


def test_a_failed_batch_does_not_end_the_session(traced):
    """The next one starts the processes again, with the same keys."""
    _, circuit, w = traced
    stops = [False, True, False]

    def stop(progress):
        if stops[0] and progress.processes:
            raise InterruptedError

    reports = []
    with he_backend.session(circuit, progress=stop) as session:
        while stops:
            try:
                reports.append(session.run(*with_w(0, w)))
            except InterruptedError:
                reports.append(None)
            stops.pop(0)
    first, failed, again = reports
    assert failed is None and first.key_seconds > 0 == again.key_seconds
    np.testing.assert_allclose(again.outputs, first.exact, atol=TOLERANCE)


def test_a_session_of_another_circuit_or_program_is_refused(traced, params, tmp_path):
    program, circuit, _ = traced
    with he_backend.session(circuit, run_dir=tmp_path / "run"):
        pass
    wider = hesim.CKKSParams(11, 4, 40, 50, 60, security=None)
    with (
        pytest.raises(he_backend.RunFolderError, match="another: program or parameters"),
        he_backend.session(program, params=wider, run_dir=tmp_path / "run"),
    ):
        pass
    other = hesim.trace(lambda x: x * x, np.ones(4))
    with pytest.raises(he_backend.BackendError, match="not compiled from this program"):
        he_backend.session(other, circuit=circuit)
    with pytest.raises(he_backend.BackendError, match="give params"):
        he_backend.session(other)


def test_some_batches_are_compared(traced, tmp_path):
    """Under the same keys; a batch that was run without cannot be read back with."""
    _, circuit, w = traced
    with he_backend.session(circuit, keys=2, run_dir=tmp_path / "run") as session:
        first = session.run(*with_w(0, w), compare=True)
        second = session.run(*with_w(1, w))
        with pytest.raises(he_backend.RunFolderError, match="another: which values are decrypted"):
            session.run(*with_w(1, w), batch=1, compare=True)
    assert first.compared and first.verdict() and first.ops[0].measured_std > 0
    folder = tmp_path / "run.client" / "batches"
    decrypted = [len(list((folder / name / "values").glob("v*"))) for name in "01"]
    assert not second.compared and decrypted[1] < decrypted[0]
    assert second.key_seconds == 0 and second.max_error < TOLERANCE


def test_a_bundle_is_told_where_it_runs(params):
    circuit = hesim.compile(hesim.trace(lambda x: x * x, np.ones(2)), params)
    with pytest.raises(he_backend.BackendError, match="BundleSession"):
        he_backend.session(hesim.bundle(circuit, np.ones(2)))  # pyright: ignore[reportArgumentType]
