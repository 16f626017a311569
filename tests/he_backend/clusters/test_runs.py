"""Runs on workers of Dask: what comes out, what a lost worker costs, and who may join."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import time
from collections.abc import Callable

import numpy as np
import psutil
import pytest

from he_backend.clusters.cluster import Cluster
from he_backend.errors import ClusterError, WorkerDied
from he_backend.owners.certificates import make_certificate
from he_backend.processes.messages import Progress
from he_backend.processes.session import execute
from tests.he_backend.clusters.conftest import local_cluster

TOLERANCE = 2.0**-20


def assert_right(job, work, result, tolerance=TOLERANCE):
    for c, value in zip(work[3], work[4], strict=True):
        np.testing.assert_allclose(result.vector(c, job.circuit.slots), value, atol=tolerance)
    counts = {k: v for k, v in job.circuit.ledger.counts().items() if v}
    assert {k: v for k, v in result.spent.counts.items() if v} == counts


def worker_pids(cluster) -> list[int]:
    return [worker.pid for worker in cluster.workers.values() if worker.pid]


def evaluator_pids(cluster) -> list[int]:
    """Of processes beside workers."""
    workers = map(psutil.Process, worker_pids(cluster))
    children = (child for worker in workers for child in worker.children())
    return [c.pid for c in children if "he_backend.clusters.evaluator" in c.cmdline()]


def killing(
    cluster, moment: int, pids: Callable[..., list[int]] = worker_pids
) -> tuple[list[int], Callable[[Progress], None]]:
    """Who is killed, and a `progress` that kills a worker once so many tasks are done."""
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if progress.processes and progress.tasks_done >= moment and not killed:
            killed.extend(pids(cluster)[:1])
            os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.5)  # nothing is asked of the key holder meanwhile

    return killed, kill


@pytest.mark.parametrize("kind", ["slots", "pyfhel"])
def test_outputs_are_those_of_the_local_runtime(job, work, kind):
    result = execute(dataclasses.replace(job, machine=kind))
    assert_right(job, work, result, 1e-12 if kind == "slots" else TOLERANCE)
    assert not result.imported_jax and result.replaced == 0
    assert result.tasks > 20


@pytest.mark.parametrize("pids", [worker_pids, evaluator_pids])
def test_a_worker_that_is_killed_costs_time_only(job, work, processes, pids):
    killed, kill = killing(processes, 8, pids)
    result = execute(dataclasses.replace(job, progress=kill, ahead=1))
    assert killed and result.replaced == 1
    assert_right(job, work, result)


def test_more_lost_workers_than_are_allowed_end_the_run_and_it_goes_on_here(job, work, processes):
    """What was done on the cluster is not done again on this host, as far as it was brought."""
    _, kill = killing(processes, 20)
    stopped = dataclasses.replace(
        job, progress=kill, ahead=1, worker_deaths=0, checkpoint_seconds=0.0
    )
    with pytest.raises(WorkerDied, match="workers of the cluster were lost"):
        execute(stopped)
    result = execute(dataclasses.replace(job, cluster=None, workers=1))
    assert result.skipped >= 15
    assert_right(job, work, result)


@pytest.mark.slow
def test_a_run_that_began_here_goes_on_on_a_cluster(job, work):
    def stop(progress):
        if progress.tasks_done >= 15:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        execute(
            dataclasses.replace(
                job, cluster=None, workers=1, progress=stop, ahead=1, checkpoint_seconds=0.0
            )
        )
    result = execute(job)
    assert result.skipped >= 10
    assert_right(job, work, result)


def secured(dask, folder, **more):
    """Dask's Security by certificates of our own making."""
    own = {"cert": str(folder / "own.crt"), "key": str(folder / "own.key")}
    roles = ("client", "scheduler", "worker")
    named = {f"tls_{role}_{part}": path for role in roles for part, path in own.items()}
    named["tls_ca_file"] = own["cert"]
    return dask.Security(require_encryption=True, **{**named, **more})


def test_a_run_over_tls_and_none_without_the_certificate(dask, job, work, tmp_path):
    for name in ("ours", "theirs"):
        make_certificate(tmp_path / name, name)
    ours, theirs = (secured(dask, tmp_path / name) for name in ("ours", "theirs"))
    options = {"threads_per_worker": 1, "dashboard_address": ":0", "processes": False}
    with dask.LocalCluster(
        n_workers=1, protocol="tls://", security=ours, local_directory=tmp_path, **options
    ) as cluster:
        found = Cluster.of(cluster)
        assert found is not None and found.address.startswith("tls://")
        assert found.security["tls_client_key"] == str(tmp_path / "ours" / "own.key")
        result = execute(dataclasses.replace(job, machine="slots", cluster=found))
        assert_right(job, work, result, 1e-12)
        other = Cluster(found.address, {**found.security, **_client_part(theirs)})
        with pytest.raises(ClusterError, match="certificates that it accepts"):
            connect_in_a_moment(other)
    written = [p for p in (tmp_path / "run").rglob("*") if p.is_file() and p.suffix != ".log"]
    assert not any(b"PRIVATE KEY" in path.read_bytes() for path in written)


def _client_part(security) -> dict[str, str]:
    return {n: getattr(security, n) for n in ("tls_ca_file", "tls_client_cert", "tls_client_key")}


def connect_in_a_moment(cluster):
    from he_backend.clusters import connecting

    return connecting.connect(cluster, seconds=2.0)


def test_workers_that_do_nothing_any_more_end_the_run(job, processes):
    stopped: list[int] = []

    def stop(progress):
        if progress.processes and progress.tasks_done >= 1:
            for pid in set(worker_pids(processes)) - set(stopped):  # others may come back
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)

    try:
        with pytest.raises(ClusterError, match="no worker of the cluster has finished a task"):
            execute(
                dataclasses.replace(
                    job, machine="slots", progress=stop, ahead=1, silence_seconds=2.0
                )
            )
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    assert stopped


@pytest.mark.slow
def test_four_workers_do_as_one_host_does_whoever_is_killed_when(dask, job, work):
    """Ten times one of them, at a moment of its own."""
    here = execute(dataclasses.replace(job, cluster=None, workers=1))
    assert_right(job, work, here)
    own = {c: here.vector(c, job.circuit.slots) for c in work[3]}
    random = np.random.default_rng(5)
    killed: list[int] = []
    with local_cluster(dask, 4) as cluster:
        for _ in range(10):
            for folder in (job.folders.work, job.folders.own):
                shutil.rmtree(folder)
            moment, before = int(random.integers(1, 40)), len(killed)

            def kill(progress, moment=moment, before=before):
                if progress.processes and progress.tasks_done >= moment and len(killed) == before:
                    pids = worker_pids(cluster)
                    killed.append(pids[int(random.integers(len(pids)))])
                    os.kill(killed[-1], signal.SIGKILL)

            on_four = dataclasses.replace(job, cluster=Cluster.of(cluster), progress=kill, ahead=1)
            result = execute(on_four)
            assert_right(job, work, result)
            for c, values in own.items():
                there = result.vector(c, job.circuit.slots)
                np.testing.assert_allclose(there, values, atol=TOLERANCE)
    assert len(killed) == 10
