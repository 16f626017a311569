"""What 1 to 256 workers of a cluster make of one sentence and of a dev set, by simulated schedules.

`python -m benchmarks.scaling [MODEL] [--length 64] [--sentences 872] [--plot scaling.svg]` plans a
model twice, for one sentence at a time and for as many as fill a ciphertext, and prints seconds and
speed-ups by the cost table in use, with what limits them: dependencies of tasks, the key holder,
its link to the cluster, Dask's scheduler. A dev set is run in sessions side by side, as many as
there are workers, up to one a batch. `--outside` and `--inside` are Gbit/s. Nothing is encrypted.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from pathlib import Path

import he_backend
from experiments.planning import plan_model
from hesim.circuit.circuit import Circuit

__all__ = ["main"]

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_BYTES = 1e9 / 8


@dataclasses.dataclass(frozen=True)
class Case:
    """A curve: its name, and what makes its rows."""

    name: str
    rows: tuple[he_backend.Scaling, ...]


def main(arguments: list[str] | None = None) -> int:
    """Print the tables, and draw them if asked to; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="tiny")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--sentences", type=int, default=872, help="of the dev set")
    parser.add_argument("--side-by-side", type=int, default=None, help="in a batch of many")
    parser.add_argument("--clients", type=int, default=2, help="processes of the key holder")
    parser.add_argument("--outside", type=float, default=1.0, help="Gbit/s of its link")
    parser.add_argument("--inside", type=float, default=10.0, help="Gbit/s of a worker's")
    parser.add_argument("--task-seconds", type=float, default=0.1)
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--plot", type=Path, default=None, help=".svg or .png")
    asked = parser.parse_args(arguments)
    network = he_backend.Network(asked.outside * _BYTES, asked.inside * _BYTES)
    cases = []
    for many in (False, True):
        circuit, count = _planned(asked, many=many)
        batches = math.ceil(asked.sentences / count)
        name = f"{count} side by side" if many else "one by one"
        one = "one sentence" if count == 1 else f"one batch of {count}"
        cases.append(_case(circuit, one, 1, asked, network))
        if batches > 1:
            whole = f"{asked.sentences:,} sentences, {name}"
            cases.append(_case(circuit, whole, batches, asked, network))
    if asked.plot is not None:
        draw(cases, asked.plot)
        print(f"plot: {asked.plot}")
    return 0


def _planned(asked: argparse.Namespace, *, many: bool) -> tuple[Circuit, int]:
    """The Circuit of a batch, and its sentences."""
    began = time.monotonic()
    count = 1
    if many:
        count = asked.side_by_side or _fitting(asked)
    planned = plan_model(asked.model, count, length=asked.length)
    circuit, ledger = planned.circuit, planned.circuit.ledger
    print(
        f"{asked.model}, {count} sentences of {asked.length} tokens, N = 2^{circuit.params.log_n}: "
        f"{len(circuit):,} instructions, {ledger.refreshes} refreshes in {ledger.refresh_rounds} "
        f"rounds, {ledger.seconds:,.0f} core-seconds; planned in {time.monotonic() - began:.0f} s"
    )
    return circuit, count


def _fitting(asked: argparse.Namespace) -> int:
    """Sentences whose tokens fill a ciphertext of the model's ring."""
    from experiments.validation.subject import find_subject

    ckks = find_subject(asked.model, None, "pyfhel").how.ckks
    return max(1, 2 ** (ckks.log_n - 1) // asked.length)


def _case(
    circuit: Circuit,
    name: str,
    batches: int,
    asked: argparse.Namespace,
    network: he_backend.Network,
) -> Case:
    rows = he_backend.expected_scaling(
        circuit,
        asked.workers,
        batches=batches,
        at_once=None,
        clients=asked.clients,
        network=network,
        task_seconds=asked.task_seconds,
    )
    print(f"\n{name}\nworkers   seconds  speed-up  busy: workers, key holder, network, scheduler")
    for row in rows:
        shares = "  ".join(f"{share:9.0%}" for share in row.busy.values())
        print(f"{row.workers:7}  {row.seconds:8,.1f}  {row.speedup:8.1f}  {shares}  {row.limit}")
    return Case(name, rows)


def draw(cases: list[Case], path: Path) -> None:
    """Speed-ups by workers, both on a scale of powers of two."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    most = max(row.workers for case in cases for row in case.rows)
    axes.plot([1, most], [1, most], color="0.8", linewidth=1, label="as many as workers")
    for case in cases:
        numbers = [row.workers for row in case.rows]
        speedups = [row.speedup for row in case.rows]
        (line,) = axes.plot(numbers, speedups, marker="o", markersize=4, label=case.name)
        last = case.rows[-1]
        axes.annotate(
            last.limit, (numbers[-1], speedups[-1]), (4, 4), textcoords="offset points",
            fontsize=8, color=line.get_color(), ha="right",
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlabel("workers, a core each")
    axes.set_ylabel("speed-up over one worker")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    raise SystemExit(main())
