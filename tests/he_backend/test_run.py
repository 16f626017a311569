"""`he_backend.run`: traced Programs on both machines, reports, refusals before anything runs."""

from __future__ import annotations

import errno
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import approx
import he_backend
import hesim
from hesim.circuit.circuit import Kind


def einsum(x, w):
    return jnp.einsum("bij,kj->bik", x * x, w).sum(1) - x.mean(1)[:, :1]


@pytest.fixture(scope="module")
def traced(params):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 3, 5)).astype(np.float32)
    w = rng.normal(size=(7, 5)).astype(np.float32)
    program = hesim.trace(einsum, x, w, encrypted=(0,))
    return program, hesim.compile(program, params), (x, w)


def test_slots_give_the_exact_numbers(traced):
    program, circuit, args = traced
    report = he_backend.run(program, *args, circuit=circuit, backend="slots", compare=True)
    assert not report.encrypted
    np.testing.assert_allclose(report.outputs, report.exact, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(report.exact, einsum(*args), rtol=1e-4, atol=1e-5)
    assert all(op.measured_std < 1e-12 for op in report.ops)


def test_a_page_that_cannot_be_written_leaves_the_old_one(traced, tmp_path, monkeypatch):
    program, circuit, args = traced
    report = he_backend.run(program, *args, circuit=circuit, backend="slots")
    path = tmp_path / "report.html"
    path.write_text("the page of yesterday")

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hesim.files.os.fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*report\.html"):
        report.to_html(path)
    assert path.read_text() == "the page of yesterday" and list(tmp_path.iterdir()) == [path]


def test_encrypted_and_compared(traced, tmp_path):
    program, circuit, args = traced
    report = he_backend.run(program, *args, circuit=circuit, compare=True, keys=2)
    assert report.encrypted and report.max_error < 2.0**-18
    assert [op.name for op in report.ops] == [e.name for e in program.ops]
    for op in report.ops:
        assert 0 < op.measured_std < 2.0**-18 and op.measured_std <= op.measured_q999
        assert 0.2 < op.ratio < 5
        assert re.search(r"test_run\.py:\d+", op.source)
    assert report.counts == circuit.ledger.counts()
    assert np.shape(report.simulated) == np.shape(report.outputs)
    text = report.to_html(tmp_path / "report.html").read_text()
    assert text.count("<svg") == 2 and "dot_general" in text
    assert "http://" not in re.sub(r'(xmlns|href|rdf|cc|dc)[^>]*"http://[^"]*"', "", text)
    assert "dot_general" in str(report)


def test_pytrees_and_public_outputs(params):
    def fn(batch, w):
        return {"y": batch["a"] @ w - batch["b"], "norm": jnp.sum(w * w)}

    rng = np.random.default_rng(5)
    batch = {"a": rng.normal(size=(2, 3)), "b": rng.normal(size=(2, 4))}
    w = rng.normal(size=(3, 4))
    program = hesim.trace(fn, batch, w, encrypted=(0,))
    report = he_backend.run(program, batch, w, params=params)
    np.testing.assert_allclose(report.outputs["y"], batch["a"] @ w - batch["b"], atol=2.0**-18)
    np.testing.assert_allclose(report.outputs["norm"], np.sum(w * w), rtol=1e-6)


def test_refreshes_make_a_run_interactive(params):
    def fn(x):
        for _ in range(5):
            x = x * x - 0.5
        return x

    x = np.random.default_rng(1).uniform(-1, 1, 8)
    program = hesim.trace(fn, x, encrypted=(0,))
    report = he_backend.run(program, x, params=params)
    assert report.interactive and report.refreshes > 0
    assert report.bootstrapped_seconds > 10 * report.refreshes
    assert f"{report.refreshes} ciphertexts refreshed" in str(report)
    np.testing.assert_allclose(report.outputs, fn(x), atol=2.0**-16)


def test_encrypted_gradient(params):
    def loss(w, x, y):
        return jnp.mean((x @ w - y) ** 2)

    rng = np.random.default_rng(2)
    args = rng.normal(size=3), rng.normal(size=(4, 3)), rng.normal(size=4)
    program = hesim.trace(jax.grad(loss), *args, encrypted=(1, 2))
    report = he_backend.run(program, *args, params=params)
    with jax.enable_x64(True):
        expected = jax.grad(loss)(*args)
    np.testing.assert_allclose(report.outputs, expected, atol=2.0**-16)


def test_nan_argument_is_refused(traced):
    program, circuit, (x, w) = traced
    bad = np.array(x)
    bad[0, 1, 2] = np.nan
    with pytest.raises(he_backend.EncodeError, match=r"args\[0\].*1 of 60 values are NaN"):
        he_backend.run(program, bad, w, circuit=circuit)


def test_overflow_is_found_before_anything_is_encrypted(traced):
    program, circuit, (x, w) = traced
    with pytest.raises(he_backend.BackendError, match="too large for level") as caught:
        he_backend.run(program, 1e9 * x, w, circuit=circuit, compare=True)
    assert caught.value.operation and caught.value.rows == (0, 1, 2, 3)


def test_the_row_that_runs_away_is_named(traced):
    program, circuit, (x, w) = traced
    bad = np.array(x)
    bad[2] *= 1e6
    with pytest.raises(he_backend.ValueRangeError, match="row 2 of the batch") as caught:
        he_backend.run(program, bad, w, circuit=circuit)
    assert caught.value.rows == (2,)
    bad[2] = 10 * x[2]  # fits the modulus, and leaves what was calibrated
    ranges = dict.fromkeys(range(len(circuit)), (-100.0, 100.0))
    with pytest.raises(he_backend.ValueRangeError, match="calibrated range.*row 2 of the batch"):
        he_backend.run(program, bad, w, circuit=circuit, ranges=ranges)


def test_polynomial_outside_its_domain(params):
    p = approx.fit("sigmoid", (-2, 2), degree=3)
    x = np.linspace(-3, 2, 8)
    program = hesim.trace(lambda x: p(x), x, encrypted=(0,))
    with pytest.raises(he_backend.DomainError, match=r"sigmoid.*test_run\.py.*outside its domain"):
        he_backend.run(program, x, params=params, backend="slots")
    with pytest.warns(UserWarning, match="outside its domain"):
        report = he_backend.run(program, x, params=params, backend="slots", outside="warn")
    assert len(report.outside) == 1 and "outside its domain" in str(report)


def test_all_zero_public_operand(params):
    x = np.random.default_rng(4).normal(size=(2, 3))
    program = hesim.trace(lambda x, w: x @ w, x, np.ones((3, 2)), encrypted=(0,))
    report = he_backend.run(program, x, np.zeros((3, 2)), params=params)
    np.testing.assert_allclose(report.outputs, 0.0, atol=2.0**-18)


def test_choices_are_checked(traced, params):
    program, circuit, args = traced
    with pytest.raises(he_backend.BackendError, match="backend 'gpu' is unknown"):
        he_backend.run(program, *args, circuit=circuit, backend="gpu")
    with pytest.raises(he_backend.BackendError, match="give params"):
        he_backend.run(program, *args)
    other = hesim.trace(lambda x: x + x, args[0], encrypted=(0,))
    with pytest.raises(he_backend.BackendError, match="not compiled from this program"):
        he_backend.run(other, args[0], circuit=circuit)


def test_all_that_is_decrypted_has_a_range(params, monkeypatch):
    """Refreshed, decrypted as an output, or sampled for a comparison."""
    x, w = np.random.default_rng(5).normal(size=(2, 3)), np.full((3, 3), 0.5)
    program = hesim.trace(lambda x, w: (x @ w) ** 4 * x + 1, x, w, encrypted=(0,))
    circuit = hesim.compile(program, hesim.CKKSParams(11, 2, 40, 50, 60, security=None))
    jobs = []

    def note(session, batch):
        jobs.append((session.setup.decrypt, batch.ranges))
        raise KeyboardInterrupt

    monkeypatch.setattr("he_backend.processes.session.Session.run", note)
    with pytest.raises(KeyboardInterrupt):
        he_backend.run(program, x, w, circuit=circuit, compare=True)
    ((decrypt, ranges),) = jobs
    refreshes = np.flatnonzero(circuit.kind == Kind.REFRESH)
    refreshed = {int(circuit.arg[circuit.arg_ptr[i]]) for i in refreshes}
    sampled = {int(c) for tap in circuit.taps for c in tap.ciphers}
    assert refreshed and sampled - refreshed and sampled <= set(decrypt)
    assert refreshed.union(decrypt) <= set(ranges)
    assert all(-100 < low < high < 100 for low, high in ranges.values())


def test_resume_through_run(traced, tmp_path):
    program, circuit, args = traced
    seen = []

    def stop(progress):
        seen.append(progress)
        if len(seen) == 2:
            raise KeyboardInterrupt

    where = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        he_backend.run(program, *args, circuit=circuit, run_dir=where, progress=stop)
    report = he_backend.run(program, *args, circuit=circuit, run_dir=where)
    assert report.skipped >= 1 and report.max_error < 2.0**-18
    assert report.counts == circuit.ledger.counts()


def test_calibration_refuses_what_it_says_will_overflow_and_unlike_data(traced):
    program, circuit, (x, w) = traced
    met = hesim.calibrate(program, [(x, w)])
    report = he_backend.run(
        program, x, w, circuit=circuit, backend="slots", calibration=met, outside="error"
    )
    assert not report.outside
    unlike = 3 * x, w
    with pytest.raises(he_backend.DomainError, match=r"mul.*test_run\.py.*calibration met"):
        he_backend.run(program, *unlike, circuit=circuit, backend="slots", calibration=met)
    with pytest.warns(UserWarning, match="calibration met"):
        report = he_backend.run(
            program, *unlike, circuit=circuit, backend="slots", calibration=met, outside="warn"
        )
    assert len(report.outside) == 1
    large = hesim.calibrate(program, [(3e4 * x, w)])
    with pytest.raises(hesim.ValueOverflowError, match="first_bits"):
        he_backend.run(program, x, w, circuit=circuit, backend="slots", calibration=large)
    other = hesim.trace(lambda x: x + x, x)
    wrong = hesim.calibrate(other, [(x,)])
    with pytest.raises((he_backend.BackendError, ValueError), match="another program"):
        he_backend.run(program, x, w, circuit=circuit, backend="slots", calibration=wrong)


def test_values_in_the_gap_of_a_union_are_outside_its_domain(params):
    inv = approx.fit("inv", [(-1, -0.25), (0.25, 1)], degree=3)
    x = np.array([-1.0, -0.25, 0.02, 0.0, 0.25, 1.0])
    program = hesim.trace(lambda x: inv(x), x)
    with pytest.raises(he_backend.DomainError, match=r"2 of 6 values, from 0 to 0\.02.*the gap"):
        he_backend.run(program, x, params=params, backend="slots")
    inside = np.array([-1.0, -0.25, -0.5, 0.5, 0.25, 1.0])
    assert not he_backend.run(program, inside, params=params, backend="slots").outside


@pytest.mark.parametrize("fold", [False, True], ids=["argument", "constant"])
def test_a_polynomial_of_public_values_outside_its_domain(params, fold):
    p = approx.fit("sigmoid", (-2, 2), degree=3)
    x, w = np.ones(3, np.float32), np.array([0.5, -2.0, 3.0], np.float32)
    fn = (lambda x: x * p(jnp.asarray(w))) if fold else (lambda x, w: x * p(w))
    args = (x,) if fold else (x, w)
    program = hesim.trace(fn, *args, encrypted=(0,))
    with pytest.raises(he_backend.DomainError, match=r"test_run\.py.*1 of 3 public values"):
        he_backend.run(program, *args, params=params, backend="slots")
    with pytest.warns(UserWarning, match="outside its domain"):
        report = he_backend.run(program, *args, params=params, backend="slots", outside="warn")
    assert len(report.outside) == 1


def test_public_values_may_miss_an_end_by_the_rounding_of_their_dtype(params):
    p = approx.fit("sigmoid", (-2, 2), degree=3)
    x, w = np.ones(3, np.float32), np.nextafter(np.array([0.5, 1.0, 2.0], np.float32), 3.0)
    program = hesim.trace(lambda x, w: x * p(w), x, w, encrypted=(0,))
    assert not he_backend.run(program, x, w, params=params, backend="slots").outside


class Recorder:
    """A progress that is told of phases, too."""

    def __init__(self):
        self.phases, self.tasks, self.shares = [], [], []

    def __call__(self, progress):
        self.tasks.append(progress)

    def phase(self, text):
        self.phases.append(text)

    def at(self, fraction, note="", left=None):
        self.shares.append((self.phases[-1], fraction))


def test_phases_of_an_encrypted_run_are_told_in_order(traced, params):
    program, _, args = traced
    seen = Recorder()
    he_backend.run(program, *args, params=params, compare=True, keys=2, progress=seen)
    keys = next(p for p in seen.phases if p.startswith("making "))
    assert seen.phases == [
        "compiling",
        "evaluating the exact twin",
        "checking for overflow on plain vectors",
        keys,
        "evaluating encrypted",
        "predicting the error under 2 keys",
        "comparing",
    ]
    assert ("checking for overflow on plain vectors", 1.0) in seen.shares
    assert ("evaluating encrypted", 1.0) in seen.shares
    assert seen.tasks[-1].fraction == 1.0


def test_progress_is_a_bar_or_a_function_of_tasks(traced, capsys):
    program, circuit, args = traced
    seen = []
    he_backend.run(program, *args, circuit=circuit, backend="slots", progress=seen.append)
    assert {type(p) for p in seen} == {he_backend.Progress}
    assert capsys.readouterr().err == ""
    he_backend.run(program, *args, circuit=circuit, backend="slots", progress=True)
    assert "evaluating on plain vectors: done after" in capsys.readouterr().err
