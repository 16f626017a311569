"""Which clusters are taken, and what is said of those that are not."""

from __future__ import annotations

import importlib.util
import socket

import numpy as np
import pytest

import he_backend
import hesim
from he_backend.clusters.cluster import Cluster
from he_backend.errors import ClusterError


def test_addresses_clients_and_clusters_are_taken(processes):
    address = processes.scheduler_address
    for given in (address, processes, Cluster(address)):
        found = Cluster.of(given)
        assert found is not None and found.address == address and not found.security
        assert Cluster.from_plain(found.plain) == found
    assert Cluster.of(None) is None


@pytest.mark.parametrize("given", ["nowhere", "http://a:1", "tcp://:1", 7, object()])
def test_what_is_no_cluster_is_refused(dask, given):
    with pytest.raises(ClusterError, match="address"):
        Cluster.of(given)


def test_a_cluster_in_the_callers_process_is_refused(threads):
    with pytest.raises(ClusterError, match="processes=True"):
        Cluster.of(threads)


def test_without_distributed_the_error_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "distributed" else found(name)
    )
    with pytest.raises(ClusterError, match="pip install"):
        Cluster.of("tcp://127.0.0.1:8786")


def test_a_scheduler_that_does_not_answer_is_noticed_before_keys_are_made(dask, tmp_path):
    params = hesim.CKKSParams(log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40)
    program = hesim.trace(lambda x: x * x, np.ones(2))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ClusterError, match="no Dask scheduler answers"):
            he_backend.run(
                program, np.ones(2), params=params, run_dir=tmp_path / "run", cluster=address
            )
    assert not list((tmp_path / "run" / "keys").iterdir())


def told(**versions):
    own = {"python": "3.11.7.final.0", "dask": "1", "distributed": "1", "hesim": "0.1.0"}
    return {"packages": {**own, "pyfhel": "3.5.0", **versions}}


@pytest.mark.parametrize(
    ("worker", "scheduler", "message"),
    [
        ({"pyfhel": None}, {}, r"the worker tcp://w:1 has pyfhel \(not installed\), and here"),
        ({"hesim": "0.0.9"}, {}, "hesim 0.0.9, and here is hesim 0.1.0"),
        ({"python": "3.12.1.final.0"}, {}, "python 3.12"),
        ({}, {"distributed": "2"}, "the scheduler has distributed 2"),
    ],
)
def test_other_versions_are_refused(dask, worker, scheduler, message):
    from he_backend.clusters import connecting

    class Client:
        def get_versions(self, packages):
            assert {"hesim", "pyfhel"} <= set(packages)
            return {
                "client": told(),
                "scheduler": told(pyfhel=None, **scheduler),
                "workers": {"tcp://w:1": told(**worker)},
            }

    with pytest.raises(ClusterError, match=message):
        connecting._check_versions(Client(), "pyfhel")  # type: ignore[arg-type]


def test_versions_that_are_the_same_are_taken(threads):
    from he_backend.clusters import connecting

    connecting._check_versions(threads, "pyfhel")


def test_a_cluster_without_workers_is_refused(dask, tmp_path):
    from he_backend.clusters import connecting

    options = {"n_workers": 0, "dashboard_address": ":0", "local_directory": tmp_path}
    with (
        dask.LocalCluster(processes=True, **options) as cluster,
        pytest.raises(ClusterError, match="has no workers; start some: dask worker tcp://"),
    ):
        connecting.connect(Cluster(cluster.scheduler_address), seconds=0.5)


@pytest.mark.parametrize("losses", [2, 99])
def test_a_plugin_is_told_again_where_a_worker_is_lost_meanwhile(dask, monkeypatch, losses):
    from he_backend.clusters import connecting

    monkeypatch.setattr(connecting, "_AGAIN_SECONDS", 0.0)
    told: list[str] = []

    class Client:
        def register_plugin(self, plugin, name):
            told.append(name)
            if len(told) <= losses:
                raise dask.comm.CommClosedError("lost")

    if losses == 2:
        connecting.register(Client(), object(), "keys")
        assert told == ["keys"] * 3
    else:
        with pytest.raises(dask.comm.CommClosedError, match="lost"):
            connecting.register(Client(), object(), "keys")
        assert len(told) == connecting._TRIES
