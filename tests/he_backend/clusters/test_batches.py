"""Batch after batch on a cluster: of one caller, of two owners, and going on from each other."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import numpy as np
import pytest

import he_backend
import hesim
from he_backend.clusters.cluster import Cluster
from tests.he_backend.conftest import quiet_params
from tests.he_backend.masked import MASK, X, bundled, exact


@pytest.fixture(scope="module")
def bundle():
    return bundled()


@pytest.fixture(scope="module")
def near(dask, tmp_path_factory):
    """Two workers in this process, which others reach."""
    options = {"threads_per_worker": 1, "dashboard_address": ":0", "processes": False}
    folder = tmp_path_factory.mktemp("workers")
    with dask.LocalCluster(
        n_workers=2, protocol="tcp://", local_directory=folder, **options
    ) as cluster:
        yield Cluster.of(cluster)


def test_batches_with_operands_that_change(bundle, near):
    with he_backend.BundleSession(bundle, backend="pyfhel", clients=1, cluster=near) as session:
        for mask in (MASK, 1 - MASK, MASK):
            (found,) = session.run(X, mask)
            np.testing.assert_allclose(found, exact(X, mask), atol=1e-6)


def test_an_evaluator_of_another_owner_has_a_cluster(bundle, near, tmp_path):
    at: dict[str, Any] = {"backend": "slots"}
    address = f"unix:{tmp_path}/s"
    with he_backend.Evaluator(bundle, address, tmp_path / "model", cluster=near, **at) as evaluator:
        threading.Thread(target=evaluator.serve).start()
        half = bundle.for_key_holder()
        with he_backend.connect(half, address, tmp_path / "data", clients=1, **at) as connection:
            (found,) = connection.run(X, MASK)
    np.testing.assert_allclose(found, exact(X, MASK), atol=1e-9)


def test_a_batch_goes_on_from_what_another_left(near):
    program = hesim.trace(lambda s, x: (s + x, s * 2.0), np.ones(4), np.ones(4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        circuit = hesim.compile(program, quiet_params(10, 2), carried={0: 0})
    state, x = np.linspace(0, 1, 4), np.full(4, 0.25)
    with he_backend.session(program, circuit=circuit, clients=1, cluster=near) as session:
        session.run(state, x, batch=0)
        report = session.run(None, x, batch=1, after=0, check=False)
        np.testing.assert_allclose(report.outputs[1], 2 * (state + x), atol=1e-5)
        np.testing.assert_allclose(session.read(1)[0], state + 2 * x, atol=1e-5)
