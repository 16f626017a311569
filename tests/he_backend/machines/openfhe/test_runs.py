"""Runs on OpenFHE: three processes under its own Python, two of which never see the secret key."""

from __future__ import annotations

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
