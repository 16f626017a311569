"""Runs on OpenFHE: three processes under its own Python, two of which never see the secret key."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import he_backend
import hesim
from he_backend.processes.folders import Folders

pytestmark = pytest.mark.filterwarnings("ignore::hesim.errors.EmptySlotsWarning")


def test_a_program_runs_and_its_errors_are_as_predicted(digit_params, needs_openfhe, tmp_path):
    import jax.numpy as jnp

    x, w = np.linspace(-1, 1, 8), np.linspace(0, 2, 8)

    def function(x, w):
        return (jnp.roll(x * x, 3) * w - x.sum()) ** 4

    program = hesim.trace(function, x, w)
    report = he_backend.run(
        *(program, x, w),
        params=digit_params,
        backend="openfhe",
        run_dir=tmp_path / "run",
        workers=1,
        clients=1,
        compare=True,
    )
    np.testing.assert_allclose(report.outputs, function(x, w), atol=1e-5)
    assert (report.backend, report.encrypted) == ("openfhe", True)
    assert report.interactive and report.refreshes == report.ledger.refreshes > 0
    server, client = Folders.of(tmp_path / "run").keys, Folders.of(tmp_path / "run").client
    assert {p.name for p in server.glob("*.key")} == {"public.key", "relin.key", "rotation.key"}
    assert {p.name for p in client.glob("*.key")} == {"public.key", "secret.key"}


def test_parameters_that_openfhe_does_not_take_are_refused(params, needs_openfhe):
    program = hesim.trace(lambda x: x + x, np.ones(4))
    with pytest.raises(he_backend.BackendError, match="give the parameters digits=3"):
        he_backend.run(program, np.ones(4), params=params, backend="openfhe")


def test_seal_does_not_take_digits(digit_params):
    program = hesim.trace(lambda x: x + x, np.ones(4))
    with pytest.raises(he_backend.BackendError, match="leave out digits=2"):
        he_backend.run(program, np.ones(4), params=digit_params, backend="pyfhel")


@pytest.mark.slow
def test_a_state_goes_on_through_a_bootstrap_that_its_tensors_share(needs_openfhe):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 8)) / 3, rng.normal(size=16) / 2
    state = tuple(0.1 * rng.normal(size=8) for _ in range(3))

    def adam(state, x, y):
        w, m, v = state
        g = x.T @ (x @ w - y) / 16
        m, v = 0.9 * m + g, 0.9 * v + 0.1 * g * g
        return (w - 0.1 * m, m, v), ((x @ w - y) ** 2).sum()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ring = hesim.CKKSParams(11, 9, 59, 60, 60, security=None, digits=2)
    program = hesim.trace(adam, state, x, y, encrypted=(0, 2))
    circuit = hesim.compile(
        program,
        ring,
        refresher=hesim.openfhe_bootstrap(ring, budget=(2, 2)),
        interactive=False,
        calibration=hesim.calibrate(program, [(state, x, y)]),
        carried={0: 0},
    )
    assert circuit.ledger.refreshes < circuit.ledger.carried == 3
    certified = hesim.certify(circuit, (state, x, y), keys=4, profile="openfhe")
    predicted = [left.std for left in certified.outputs[:3] if left]
    with he_backend.session(program, circuit=circuit, backend="openfhe", workers=1) as session:
        first = session.run(state, x, y, batch=0)
        second = session.run(first.exact[0], x, y, batch=1, after=0)
        for batch, report in enumerate((first, second)):
            assert not report.interactive
            found = session.read(batch)[0]
            for got, exact, std in zip(found, report.exact[0], predicted, strict=True):
                assert np.std(np.asarray(got) - np.asarray(exact)) < 4.0 * std
                assert np.std(np.asarray(got) - np.asarray(exact)) > 0.25 * std * (1 - batch)
