"""One worker against two, on steps of a training: wall-clock, CPU seconds and memory by process.

Two layers of 128 features, 64 tokens, adapters of rank 2: `python -m benchmarks workers` for one
sentence a step, `python -m benchmarks.workers 8` for eight. It wants the machine for itself.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

import he_backend
import hesim
from benchmarks.training_step import TrainingStep, training_step
from hesim.circuit.circuit import Circuit
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
TIMED = 3
_LOOKS = 40
"""Tasks, of the step after those that are timed, between two looks at memory."""


class _Looks:
    """What is read of the processes: CPU seconds by kind, and the largest shares of memory."""

    def __init__(self) -> None:
        self.pids: dict[str, int] = {}
        self.shares: dict[str, float] = {}
        self.together = 0.0
        self.memory = False
        self._cpu: dict[int, tuple[str, float]] = {}

    def __call__(self, progress: he_backend.Progress) -> None:
        self.pids = progress.processes
        last = progress.tasks_done == progress.tasks_total
        if self.memory and progress.tasks_done % _LOOKS == 0:
            held = {name: _proportional(pid) for name, pid in self.pids.items()}
            self.together = max(self.together, sum(held.values()))
            for name, share in held.items():
                self.shares[name] = max(share, self.shares.get(name, 0.0))
        elif not self.memory and (last or progress.tasks_done % _LOOKS == 0):
            for name, pid in self.pids.items():
                self._cpu[pid] = name.split()[0], _cpu(pid)

    def cpu(self) -> Mapping[str, float]:
        """CPU seconds so far, by kind of process; workers end with their step."""
        found: dict[str, float] = defaultdict(float)
        for kind, seconds in self._cpu.values():
            found[kind] += seconds
        return found


def main(sentences: int = 1) -> None:
    """Print what a step takes with one worker and with two, and the ratio."""
    step = training_step(CONFIG, sentences=sentences)
    circuit = hesim.compile(step.program, PARAMS, carried=step.carried, memory=MEMORY)
    ledger = circuit.ledger
    print(
        f"{sentences} sentences a step, N = 2^{PARAMS.log_n}: {len(circuit):,} instructions, "
        f"{ledger.refreshes} refreshes in {ledger.refresh_rounds} rounds, {ledger.seconds:.1f} "
        f"core-seconds predicted; {os.cpu_count()} cores"
    )
    one, two = (_measured(step, circuit, workers) for workers in (1, 2))
    print(f"two workers are {one / two:.2f} times one")
    apart = (he_backend.expected_seconds(circuit, workers=n, cores=8) for n in (1, 2))
    print(f"  predicted where nobody waits for a core: {next(apart) / next(apart):.2f}")


def _measured(step: TrainingStep, circuit: Circuit, workers: int) -> float:
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
        for number in range(TIMED + 2):
            looks.memory = number > TIMED
            began = time.monotonic()
            report = _step(step, session, number)
            walls.append(time.monotonic() - began)
            if number == 0:
                before = looks.cpu()
            if number == TIMED:
                spent = {k: (s - before[k]) / TIMED for k, s in looks.cpu().items()}
                spent["core-seconds of the report"] = report.core_seconds
    wall = statistics.median(walls[1 : TIMED + 1])
    expected = he_backend.expected_seconds(circuit, workers=workers)
    print(f"workers {workers}: {wall:.1f} s a step, predicted {expected:.1f}")
    print(f"  CPU seconds: {', '.join(f'{k} {s:.1f}' for k, s in spent.items())}")
    shares = ", ".join(f"{name} {share / 1e9:.2f}" for name, share in looks.shares.items())
    print(f"  memory: {looks.together / 1e9:.2f} GB together; GB by process: {shares}")
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
    main(*(int(argument) for argument in sys.argv[1:]))
