"""Bundles run by one caller: what a run of the program gives, in a process that has no JAX."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import he_backend
import hesim
from he_backend.errors import BackendError, RunFolderError, ValueRangeError
from he_backend.processes.folders import clean_environment
from hesim.bundles.bundle import Bundle
from tests.he_backend.masked import MASK, X, bundled, exact


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return bundled()


@pytest.mark.parametrize("backend", ["slots", "pyfhel"])
def test_batches_under_one_set_of_keys(bundle, backend, tmp_path):
    seen = []
    options = {"backend": backend, "workers": 1, "clients": 1, "progress": seen.append}
    with he_backend.BundleSession(bundle, run_dir=tmp_path / "run", **options) as session:
        for mask in (MASK, 1 - MASK):
            (found,) = session.run(X, mask)
            np.testing.assert_allclose(found, exact(X, mask), atol=1e-6)
        with pytest.raises(ValueRangeError, match="examples lay"):
            session.run(3 * X, MASK)
    if backend == "pyfhel":
        before = len(seen)
        with he_backend.BundleSession(bundle, run_dir=tmp_path / "run", **options) as session:
            (again,) = session.run(X, MASK)
            np.testing.assert_allclose(again, exact(X, MASK), atol=1e-6)
            assert len(seen) == before, "it was read back"
            with pytest.raises(RunFolderError, match="another name"):
                session.run(X / 2, MASK, batch="0")


def test_progress_is_shown_if_it_is_asked_for(bundle, capsys):
    options: dict[str, Any] = {"workers": 1, "clients": 1}
    session = he_backend.BundleSession(bundle, progress=True, **options)
    with pytest.raises(ValueRangeError), session:
        for factor in (1, 1, 3):
            session.run(factor * X, MASK)
    said = capsys.readouterr().err
    assert "rotation keys" in said and said.count("evaluating encrypted ...") == 2
    assert said.splitlines()[-1].startswith("evaluating encrypted: stopped after")


def test_a_part_is_not_run(bundle):
    with pytest.raises(BackendError, match="he_backend.connect"):
        he_backend.BundleSession(bundle.for_key_holder())


def test_nothing_but_numpy_and_the_machines_library_is_needed(bundle, tmp_path):
    """As in an environment that has nothing else."""
    hesim.save(bundle, tmp_path / "bundle")
    np.save(tmp_path / "x.npy", X)
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ALLOWED:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)
ALLOWED = {"numpy", "Pyfhel", "hesim", "he_backend", "approx"}
sys.meta_path.insert(0, Absent())
import numpy as np, he_backend, hesim
bundle = hesim.load("bundle")
with he_backend.BundleSession(bundle, workers=1, clients=1) as session:
    np.save("found.npy", session.run(np.load("x.npy"), np.array([1.0, 0.0]))[0])
"""
    environment = {**clean_environment(), "TMPDIR": os.environ.get("TMPDIR", "/tmp")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(Path(tmp_path, "found.npy")), exact(X, MASK), atol=1e-6)
