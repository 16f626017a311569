"""Jobs of a study on a Dask cluster: the same as here, whatever worker comes or goes."""

# ruff: noqa: E402  what is tested imports Dask
from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

distributed = pytest.importorskip("distributed", reason="Dask's distributed is not installed")

from dask.config import set as configured

from experiments.cli import main
from experiments.cli.common import REFUSED
from experiments.studies.tasks import Stopped
from experiments.studies.tradeoff import child
from experiments.studies.tradeoff import cluster as on_dask
from experiments.studies.tradeoff import run as tradeoff_run
from experiments.studies.tradeoff.designs import Space
from experiments.studies.tradeoff.folder import Results
from experiments.studies.tradeoff.mapping import Failed, in_this_process, on_cluster
from experiments.studies.tradeoff.run import run_tradeoff
from experiments.studies.tradeoff.settings import TradeoffStudy
from he_backend.clusters import connecting
from he_backend.clusters.cluster import Cluster
from he_backend.errors import ClusterError
from tests.experiments.chores import gone, tried, work
from tests.experiments.conftest import write_encoder
from tests.experiments.test_mapping import chores, never, within
from tests.experiments.test_tradeoff import EASY, RANGES, scored, trained


@pytest.fixture(autouse=True)
def quiet():
    """Dask tells of every worker that goes."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def workers(count: int, folder: Path | None = None, **changes: Any) -> Iterator[Any]:
    """A cluster whose workers are threads of this process, but for what they start."""
    options: dict[str, Any] = {
        "n_workers": count,
        "threads_per_worker": 1,
        "dashboard_address": ":0",
        "processes": False,
        "protocol": "tcp://",
        "local_directory": folder,
    } | changes
    with (  # which gives up a worker on a busy machine else, before it is there again
        configured({"distributed.deploy.lost-worker-timeout": "10 minutes"}),
        distributed.LocalCluster(**options) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Iterator[Any]:
    with workers(2, tmp_path_factory.mktemp("dask")) as cluster:
        yield cluster


def mapping(cluster: Any, *needs: Path):
    found = Cluster.of(cluster.scheduler_address)
    assert found is not None
    return on_cluster(found, needs)


def test_a_cluster_gives_what_this_process_gives_and_a_killed_job_fails_alone(two, tmp_path: Path):
    names = ["one", "killed", "refused", "two", "PID"]
    found = dict(mapping(two)(work, chores(tmp_path, *names), never))
    assert isinstance(found[1], Failed) and "killed, twice" in found[1].reason
    counts = {name: len(tried(tmp_path, name)) for name in names}
    assert counts.pop("killed") == 2 and set(counts.values()) == {1}
    assert gone(int(found.pop(4)))
    here = dict(in_this_process(work, chores(tmp_path, "one", "refused", "two"), never))
    assert [found[n] for n in (0, 2, 3)] == [here[n] for n in range(3)]


def test_jobs_that_nobody_waits_for_are_ended(two, tmp_path: Path):
    jobs = chores(tmp_path, *["sleeps"] * 3)
    with pytest.raises(Stopped):
        list(mapping(two)(work, jobs, lambda: len(tried(tmp_path, "sleeps")) == 2))
    assert within(60, lambda: all(map(gone, tried(tmp_path, "sleeps"))))
    assert len(tried(tmp_path, "sleeps")) == 2  # the third was begun nowhere


def test_jobs_end_with_a_caller_that_was_killed(two, tmp_path: Path):
    said = (
        "from pathlib import Path; from tests.experiments.chores import work\n"
        "from experiments.studies.tradeoff.mapping import on_cluster\n"
        "from he_backend.clusters.cluster import Cluster\n"
        f"mapped = on_cluster(Cluster({two.scheduler_address!r}))\n"
        f"list(mapped(work, [('sleeps', Path({str(tmp_path)!r}))], lambda: False))\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    caller = subprocess.Popen([sys.executable, "-c", said], env=os.environ | {"PYTHONPATH": path})
    try:
        assert within(120, lambda: bool(tried(tmp_path, "sleeps")))
    finally:
        caller.kill()
        caller.wait()
    assert within(60, lambda: all(map(gone, tried(tmp_path, "sleeps"))))


def test_workers_that_leave_cost_time_only(tmp_path: Path):
    """And those that come do their share."""
    names = [f"naps{k}" for k in range(12)]
    drawn = random.Random(0)
    with workers(2, tmp_path / "dask") as cluster:
        jobs = chores(tmp_path, *names)
        found: dict[int, Any] = {}
        for number, value in mapping(cluster)(work, jobs, never):
            found[number] = value
            if len(found) in (2, 5, 7):
                lost = drawn.choice(list(cluster.workers))
                cluster.scale(3)
                cluster.sync(cluster.workers[lost].close)
                cluster.sync(cluster._correct_state)
        assert found == dict(enumerate(names))


def test_a_cluster_without_workers_for_a_while_goes_on(tmp_path: Path):
    with workers(1, tmp_path / "dask") as cluster:
        mapped = mapping(cluster)(work, chores(tmp_path, "one", "two"), never)
        first = next(mapped)
        cluster.scale(0)
        threading.Timer(1.0, cluster.scale, (1,)).start()
        assert [first, *mapped] == [(0, "one"), (1, "two")]


def test_a_cluster_that_has_no_workers_for_long_gives_up(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(on_dask, "_PATIENCE", 0.5)
    with workers(1, tmp_path / "dask") as cluster:
        mapped = mapping(cluster)(work, chores(tmp_path, *["one"] * 3), never)
        next(mapped)
        cluster.sync(cluster.workers[0].close)
        with pytest.raises(ClusterError, match="no worker for .* the same command goes on"):
            list(mapped)


def test_a_scheduler_that_ends_ends_the_study(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(on_dask, "_ANSWER_SECONDS", 1.0)
    with (
        configured({"distributed.comm.timeouts.connect": "1s"}),
        workers(2, tmp_path / "dask") as cluster,
    ):
        mapped = mapping(cluster)(work, chores(tmp_path, "one", "sleeps"), never)
        next(mapped)
        assert within(60, lambda: bool(tried(tmp_path, "sleeps")))
        cluster.sync(cluster.scheduler.close)
        with pytest.raises(ClusterError, match="the cluster gave up .* the same command goes on"):
            list(mapped)
    assert within(60, lambda: all(map(gone, tried(tmp_path, "sleeps"))))


def refused(cluster: Any, folder: Path, *needs: Path) -> str:
    """What is said of a cluster on which no job is begun."""
    with pytest.raises(ClusterError) as error:
        list(mapping(cluster, *needs)(work, chores(folder, "one"), never))
    assert not tried(folder, "one")
    return str(error.value)


def test_what_a_worker_does_not_see_is_said_before_any_job(two, tmp_path: Path):
    there = tmp_path / "GLUE"
    assert f"does not see {there}: have" in refused(two, tmp_path, there)
    there.mkdir()
    assert list(mapping(two, there)(work, chores(tmp_path, "one"), never)) == [(0, "one")]


def test_other_versions_are_said_before_any_job(two, tmp_path: Path, monkeypatch):
    found, older = connecting._versions, itertools.chain([{"jax": "0.0.1"}], itertools.repeat({}))
    monkeypatch.setattr(connecting, "_versions", lambda told: found(told) | next(older))
    said = refused(two, tmp_path)  # what is here is read first
    assert "the worker tcp://" in said and "here is jax 0.0.1" in said


def test_a_cluster_without_workers_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(on_dask, "connect", functools.partial(connecting.connect, seconds=0.2))
    with workers(0, tmp_path / "dask") as cluster:
        assert "has no workers" in refused(cluster, tmp_path)


def test_processes_of_this_host_and_a_cluster_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["study", "tradeoff", "--jobs", "2", "--cluster", "tcp://127.0.0.1:1"])
    assert ended.value.code == REFUSED and "--jobs" in capsys.readouterr().err


def test_a_worker_imports_no_jax():
    code = (
        "import sys\n"
        "from experiments.studies.tradeoff import child_main, cluster\n"
        "loaded = {'jax', 'flax', 'models'} & set(sys.modules)\n"
        "sys.exit(f'imported {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# A study


def told(found: Results) -> list[str]:
    """Its rows and costs, but for how long they took."""
    rows = [repr(dataclasses.replace(row, seconds=0.0)) for row in found.rows]
    return [*sorted(rows), *sorted(map(repr, found.costs.items()))]


class Beside:
    """As a process, but in the thread that asks."""

    def __init__(self, *_: Any):
        self.jobs = 0

    def begin(self, job: bytes) -> None:
        self.jobs, self.job = self.jobs + 1, job

    def result(self) -> bytes:
        return pickle.dumps(child.done(*pickle.loads(self.job)))

    def end(self) -> None:
        pass


def test_four_workers_give_the_table_of_one(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(child, "Child", Beside)
    monkeypatch.setattr(tradeoff_run, "train", trained)
    monkeypatch.setattr(tradeoff_run, "score", scored)
    space = Space(reference=EASY, knobs=(("rank", (2, 4)), ("tanh", (7, 15))))
    study = TradeoffStudy(space=space, tasks=("glue/RTE",), seeds=2)
    tables = [told(run_tradeoff(study, tmp_path / "here"))]
    for count in (1, 4):
        with workers(count, tmp_path / "dask") as cluster:
            found = run_tradeoff(study, tmp_path / f"{count}", mapped=mapping(cluster))
            tables.append(told(found))
    assert len(tables[0]) > 8 and tables[0] == tables[1] == tables[2]


@pytest.mark.slow
def test_four_processes_give_the_table_of_one_and_survive_ten_kills(glue: Path, tmp_path: Path):
    """Of a study of few rows, that is, with all that a worker does."""
    start = write_encoder(tmp_path / "gaussian", glue)
    space = Space(reference=EASY, knobs=(("kernel", ("minimax-7", "minimax-5", "exact")),))
    study = TradeoffStudy(
        space=space,
        tasks=("glue/SST-2",),
        seeds=2,
        data_dir=str(glue),
        gaussian=str(start),
        length=8,
        many=4,
        train_rows=64,
        held_out=32,
        epochs=1,
        ranges=(*RANGES, ("tanh", (-5.0, 5.0))),
    )
    here = told(run_tradeoff(study, tmp_path / "here"))
    options = {"processes": True, "memory_limit": "600MB"}
    with workers(4, tmp_path / "dask", **options) as cluster, Killer(cluster, 10) as killer:
        found = run_tradeoff(study, tmp_path / "there", mapped=mapping(cluster, glue, start))
        while killer.left:  # whatever was lost is a job for those that live
            jobs = chores(tmp_path, *["naps"] * 8)
            assert dict(mapping(cluster)(work, jobs, never)) == dict.fromkeys(range(8), "naps")
    assert all(row.sound or row.knobs.kernel == "exact" for row in found.rows)
    assert told(found) == here


class Killer(threading.Thread):
    """Ends workers of a cluster, so many, at random moments."""

    def __init__(self, cluster: Any, count: int):
        super().__init__(daemon=True)
        self.cluster, self.left = cluster, count
        self.drawn = random.Random(0)

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.left = 0
        self.join()

    def run(self) -> None:
        while self.left:
            time.sleep(self.drawn.uniform(0.5, 4.0))
            known = self.cluster.scheduler.workers
            nannies = list(self.cluster.workers.values())  # none starts again what did not begin
            alive = [nanny.pid for nanny in nannies if nanny.worker_address in known]
            if len(alive) > 1:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.drawn.choice(alive), signal.SIGKILL)
                    self.left = max(0, self.left - 1)
