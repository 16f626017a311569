"""What runs in a server, worker or client imports no JAX."""

from __future__ import annotations

import subprocess
import sys

import pytest

from he_backend.processes.folders import clean_environment

MODULES = [
    "hesim.bundles.storage",
    "hesim.circuit.plain.execute",
    "he_backend.bundled",
    "he_backend.clusters.evaluator",
    "he_backend.local",
    "he_backend.machines.slots",
    "he_backend.machines.openfhe.entry",
    *(f"he_backend.owners.{name}" for name in ("connecting", "evaluator")),
    *(f"he_backend.processes.{name}" for name in ("client", "keys", "server", "tasks", "worker")),
]


ON_DASK = [f"he_backend.clusters.{name}" for name in ("crew", "evaluating", "server")]


@pytest.mark.parametrize("module", [*MODULES, *ON_DASK])
def test_imports_no_jax(module):
    if module in ON_DASK:
        pytest.importorskip("distributed", reason="Dask's distributed is not installed")
    code = (
        f"import sys, {module}, he_backend.machines.pyfhel.machine\n"
        "loaded = {'jax', 'jaxlib', 'flax', 'models'} & set(sys.modules)\n"
        "sys.exit(f'imported {loaded}' if loaded else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
