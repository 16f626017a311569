"""One Dask worker against two, on an encrypted block: seconds by the clock, and by whom.

`python -m benchmarks.clusters [CASE] [--turns 3]` starts a LocalCluster of one worker and one of
two, and runs the same block (of `python -m benchmarks packing`) on both in turns, in one session
each, so that plaintexts stay encoded; then by processes of our own, for the ratio of engines. It
wants two cores for itself, and no limit of memory: near one, Dask makes a worker wait. Of one
sentence tasks are so short that Dask's own work shows: take 32.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import he_backend
import hesim
from benchmarks.packing.cases import CASES, PackingCase
from hesim.circuit.circuit import Circuit

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Print medians and ratios; returns 0."""
    from distributed import LocalCluster

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", nargs="?", default="small32", choices=list(CASES))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--memory", default="0", help="limit of a worker, 0 for none")
    parser.add_argument("--most", type=int, default=2, help="workers, against one")
    asked = parser.parse_args(arguments)
    logging.getLogger("distributed").setLevel(logging.WARNING)
    case = CASES[asked.case]()
    circuit = hesim.compile(case.program, case.ring)
    _say(asked.case, case, circuit)
    counts = (1, asked.most)
    walls: dict[str, list[float]] = {}
    with contextlib.ExitStack() as held:
        sessions: dict[str, he_backend.Session] = {}
        for n in counts:
            options = {"threads_per_worker": 1, "memory_limit": asked.memory}
            cluster = held.enter_context(
                LocalCluster(n_workers=n, dashboard_address=":0", **options)
            )
            name = f"Dask, {n} workers"
            sessions[name] = held.enter_context(_session(case, circuit, cluster=cluster))
        for name, wall in _in_turns(case, sessions, asked.turns):
            walls.setdefault(name, []).append(wall)
    for n in counts:
        name = f"processes, {n} workers"
        with _session(case, circuit, workers=n) as session:
            for _, wall in _in_turns(case, {name: session}, asked.turns):
                walls.setdefault(name, []).append(wall)
    medians = {name: statistics.median(found) for name, found in walls.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.2f} s ({', '.join(f'{w:.2f}' for w in walls[name])})")
    for engine in ("Dask", "processes"):
        one, more = (medians[f"{engine}, {n} workers"] for n in counts)
        print(f"{engine}: {counts[1]} workers are {one / more:.2f} times one")
    both = (medians[f"{engine}, {counts[1]} workers"] for engine in ("Dask", "processes"))
    print(f"Dask takes {next(both) / next(both):.2f} times as long as processes")
    return 0


def _say(name: str, case: PackingCase, circuit: Circuit) -> None:
    ledger = circuit.ledger
    print(
        f"{name}: {case.sentences} sentences, N = 2^{case.ring.log_n}, {len(circuit):,} "
        f"instructions, {ledger.refreshes} refreshes in {ledger.refresh_rounds} rounds, "
        f"{ledger.seconds:.1f} core-seconds predicted; {os.cpu_count()} cores"
    )


def _session(case: PackingCase, circuit: Circuit, **options: Any) -> he_backend.Session:
    return he_backend.session(case.program, circuit=circuit, outside="warn", **options)


def _in_turns(
    case: PackingCase, sessions: dict[str, he_backend.Session], turns: int
) -> Iterator[tuple[str, float]]:
    """Seconds of evaluations, after a first one of each that makes keys and encodes."""
    for turn in range(turns + 1):
        for name, session in sessions.items():
            began = time.monotonic()
            report = session.run(*case.args)
            found = np.max(np.abs(np.asarray(report.outputs) - np.asarray(report.exact)))
            print(
                f"  {name}: {report.evaluation_seconds:.2f} s evaluating, "
                f"{time.monotonic() - began:.1f} s in all, off by {found:.1e} at most",
                flush=True,
            )
            if turn:
                yield name, report.evaluation_seconds


if __name__ == "__main__":
    raise SystemExit(main())
