"""Clusters of this host, and a run on them."""

from __future__ import annotations

import contextlib
import logging

import pytest

from he_backend.clusters.cluster import Cluster
from he_backend.processes.folders import Folders
from he_backend.processes.session import Job


@pytest.fixture(scope="session")
def dask():
    """Its `distributed`; tests are skipped where it is not installed."""
    return pytest.importorskip("distributed", reason="Dask's distributed is not installed")


@pytest.fixture(autouse=True)
def quiet():
    """Dask tells of every worker that goes."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def local_cluster(dask, workers: int):
    """Workers in processes of their own, which are started again if they are killed."""
    from dask.config import set as configured

    options = {"threads_per_worker": 1, "dashboard_address": ":0", "memory_limit": "600MB"}
    patience = {"distributed.deploy.lost-worker-timeout": "10 minutes"}  # on a busy machine
    with configured(patience), dask.LocalCluster(n_workers=workers, **options) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def processes(dask):
    """Two of them."""
    with local_cluster(dask, 2) as cluster:
        yield cluster


@pytest.fixture
def threads(dask, tmp_path):
    """A client of two workers in this process: cheap, and open to what a test replaces."""
    options = {"threads_per_worker": 1, "dashboard_address": ":0", "processes": False}
    with (
        dask.LocalCluster(n_workers=2, local_directory=tmp_path, **options) as cluster,
        dask.Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def branches() -> int:
    """Dask takes its time for each of their tasks."""
    return 6


@pytest.fixture
def job(work, processes, tmp_path):
    """On the cluster of processes."""
    circuit, inputs, operands, outputs, _ = work
    folders, cluster = Folders.of(tmp_path / "run"), Cluster.of(processes)
    return Job(
        circuit, outputs, inputs, operands, folders, task_seconds=2e-4, cluster=cluster, clients=1
    )
