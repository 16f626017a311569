"""One worker against two, on steps of a training: wall-clock, CPU seconds and memory by process.

Two layers of 128 features, 64 tokens, adapters of rank 2: `python -m benchmarks workers` for one
sentence a step.

    python -m benchmarks.workers 8 [--steps 2] [--circuit step.npz] [--plan] [--counts 1 2]

`--plan` ends when the plan is made and its memory predicted; `--circuit` keeps the plan for the
next call. The first step, with keys and plaintexts, is not timed; memory is looked at while it
runs. It wants the machine for itself: at eight sentences seven minutes and 8 GB, at sixteen with
`--steps 1` seven as well, and what `--plan` says.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

import he_backend
import hesim
from benchmarks.training_step import TrainingStep, training_step
from he_backend.evaluating import decrypted
from he_backend.processes.tasks import plan
from hesim.circuit.circuit import Circuit
from hesim.circuit.costs.memory import run_bytes, staying_bytes
from hesim.circuit.publics import bound
from hesim.circuit.sizes import available
from models.config import EncoderConfig

__all__ = ["main"]

CONFIG = EncoderConfig(
    layers=2,
    hidden=128,
    heads=2,
    ffn=512,
    sequence=64,
    vocabulary=32,
    pooler=(128,),
    lora_rank=2,
    first_norm=True,
)
PARAMS = hesim.CKKSParams(log_n=14, levels=4, scale_bits=40, first_bits=50, special_bits=60)
MEMORY = 3e9
_LOOKING_SECONDS = 2.0
"""Between two looks at memory."""


class _Looks:
    """What is read of the processes: CPU seconds by kind, and the largest shares of memory."""

    def __init__(self) -> None:
        self.shares: dict[str, float] = {}
        self.together = 0.0
        self.memory = False
        self._cpu: dict[int, tuple[str, float]] = {}
        self._next = 0.0

    def __call__(self, progress: he_backend.Progress) -> None:
        pids = progress.processes
        for name, pid in pids.items():
            _, before = self._cpu.get(pid, ("", 0.0))  # it may be gone by now
            self._cpu[pid] = name.split()[0], max(before, _cpu(pid))
        if self.memory and time.monotonic() >= self._next:
            held = {name: _proportional(pid) for name, pid in pids.items()}
            self.together = max(self.together, sum(held.values()))
            for name, share in held.items():
                self.shares[name] = max(share, self.shares.get(name, 0.0))
            self._next = time.monotonic() + _LOOKING_SECONDS

    def cpu(self) -> Mapping[str, float]:
        """CPU seconds so far, by kind of process; workers end with their step."""
        found: dict[str, float] = defaultdict(float)
        for kind, seconds in self._cpu.values():
            found[kind] += seconds
        found["caller"] = time.process_time()
        return found


def main(arguments: Sequence[str] = ()) -> None:
    """Print what a step takes with one worker and with two, and the ratio."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers")
    parser.add_argument("sentences", type=int, nargs="?", default=1, help="of a step")
    parser.add_argument("--steps", type=int, default=2, help="that are timed")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2], help="of workers")
    parser.add_argument("--memory", type=float, default=MEMORY / 1e9, help="GB of a process")
    parser.add_argument("--circuit", help="file that the plan is kept in, and taken from")
    parser.add_argument("--plan", action="store_true", help="plan only")
    given = parser.parse_args(list(arguments))
    step = training_step(CONFIG, sentences=given.sentences)
    circuit = _planned(step, given.memory * 1e9, given.circuit)
    _say(step, circuit, given.counts)
    if given.plan:
        return
    walls = {n: _measured(step, circuit, n, given.steps) for n in given.counts}
    if len(walls) > 1:
        few, many = min(walls), max(walls)
        print(f"{many} workers are {walls[few] / walls[many]:.2f} times {few}")
        apart = [he_backend.expected_seconds(circuit, workers=n, cores=8) for n in (few, many)]
        print(f"  predicted where nobody waits for a core: {apart[0] / apart[1]:.2f}")


def _planned(step: TrainingStep, memory: float, path: str | None) -> Circuit:
    if path and Path(path).exists():
        return bound(Circuit.load(path), step.program)
    began = time.monotonic()
    circuit = hesim.compile(step.program, PARAMS, carried=step.carried, memory=memory)
    print(f"compiled in {time.monotonic() - began:.0f} s")
    if path:
        circuit.save(path)
    return circuit


def _say(step: TrainingStep, circuit: Circuit, counts: Sequence[int]) -> None:
    """Print what the plan says."""
    ledger = circuit.ledger
    print(
        f"{step.sentences} sentences a step, N = 2^{PARAMS.log_n}: {len(circuit):,} instructions, "
        f"{ledger.refreshes} refreshes in {ledger.refresh_rounds} rounds, {ledger.rotation_keys} "
        f"rotation keys of {ledger.key_bytes / 1e9:.2f} GB, {ledger.seconds:.1f} core-seconds "
        f"predicted; {os.cpu_count()} cores"
    )
    schedule = plan(circuit, decrypted(circuit, 0), follows=True)
    passing, staying = schedule.most_bytes(circuit), staying_bytes(circuit.spare_bytes, available())
    for n in counts:
        held = run_bytes(PARAMS, ledger, n, 2, passing, staying)
        seconds = he_backend.expected_seconds(circuit, workers=n)
        print(
            f"  {n} workers: {seconds:.1f} s a step and {held / 1e9:.1f} GB predicted", flush=True
        )


def _measured(step: TrainingStep, circuit: Circuit, workers: int, steps: int) -> float:
    """Print, and return, wall-clock seconds of a step: the median of those after the first."""
    looks, walls = _Looks(), []
    before: Mapping[str, float] = {}
    spent: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        he_backend.session(
            step.program,
            circuit=circuit,
            workers=workers,
            run_dir=Path(folder) / "run",
            progress=looks,
        ) as session,
    ):
        for number in range(steps + 1):
            looks.memory = number == 0
            began = time.monotonic()
            report = _step(step, session, number)
            walls.append(time.monotonic() - began)
            if number == 0:
                before = looks.cpu()
            if number == steps:
                spent = {k: (s - before[k]) / steps for k, s in looks.cpu().items()}
                spent["core-seconds of the report"] = report.core_seconds
    wall = statistics.median(walls[1:])
    expected = he_backend.expected_seconds(circuit, workers=workers)
    print(f"workers {workers}: {wall:.1f} s a step, predicted {expected:.1f}")
    print(f"  CPU seconds a step: {', '.join(f'{k} {s:.1f}' for k, s in spent.items())}")
    shares = ", ".join(f"{name} {share / 1e9:.2f}" for name, share in looks.shares.items())
    print(f"  memory: {looks.together / 1e9:.2f} GB together; GB by process: {shares}", flush=True)
    return wall


def _step(step: TrainingStep, session: he_backend.Session, number: int) -> he_backend.Report:
    """The first step, or the second one, again and again: labels are random, and a training on
    them would leave the range of its polynomials.
    """
    if number == 0:
        return session.run(*step.args, batch=0, check=False)
    state = jax.tree.map(lambda x: x + 1 if np.asarray(x).dtype.kind in "iu" else x, step.args[:2])
    report = session.run(*state, *step.args[2:], batch=number, after=0, check=False)
    session.forget(number)
    return report


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _proportional(pid: int) -> float:
    """Bytes of a process, those that it shares with others divided among them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main(sys.argv[1:])
