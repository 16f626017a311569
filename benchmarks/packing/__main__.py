"""A whole transformer block, compiled and run encrypted, against its floor.

`python -m benchmarks.packing [case ...] [--turns 3] [--beside COMMAND]` prints for each case, in
one run: what is planned; seconds and peak memory of tracing and compiling, in a fresh process;
seconds in this process under Pyfhel, with the plaintexts encoded on the way and before; error
against the polynomial model; the sum of the bare Pyfhel times of all operations at their levels;
and runs by processes of their own with one and with two workers. Predictions stand beside outcomes.

With `--beside` another command is run in turns with ours, and the last of what it prints that
matches `--pattern` is its seconds. CPU seconds are what a machine that does other things, too,
leaves meaningful; wall-clock seconds are beside them.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: figures are for one core

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax import tree_util

import he_backend
import hesim
from benchmarks.packing import bare
from benchmarks.packing.alone import save
from benchmarks.packing.cases import CASES, PackingCase
from he_backend.local import run_local
from he_backend.machines.pyfhel.machine import PyfhelMachine
from he_backend.processes.memory import peak_bytes
from hesim.circuit.circuit import Circuit
from hesim.circuit.plain.execute import Executor
from hesim.errors import HesimError, LayoutError

__all__ = ["main"]

_SECONDS = r"total\s+([0-9.]+)"
"""How the script that was written by hand prints its seconds."""


def compiled(case: PackingCase) -> Circuit:
    """The Circuit that `hesim.compile` finds."""
    return hesim.compile(case.program, case.ring)


def main(arguments: list[str] | None = None) -> int:
    """Print the figures of the cases; returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.packing",
        description="A block of a transformer against its floor.",
    )
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; the first by default")
    parser.add_argument("--turns", type=int, default=3, help="runs with encoded plaintexts")
    parser.add_argument("--beside", default="", help="a command to run in turns with ours")
    parser.add_argument("--pattern", default=_SECONDS, help="where it prints its seconds")
    parser.add_argument("--in-process", action="store_true", help="leave out the processes")
    parser.add_argument("--compile-only", default="", help=argparse.SUPPRESS)
    chosen = parser.parse_args([] if arguments is None else arguments)
    if chosen.compile_only:
        print(json.dumps(_compile_here(chosen.compile_only)))
        return 0
    unknown = [name for name in chosen.cases if name not in CASES]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    for name in chosen.cases or ["block"]:
        print(f"\n{name}", flush=True)
        try:
            _show(name, chosen)
        except HesimError as error:
            print(f"  {error}")
    return 0


def _show(name: str, chosen: argparse.Namespace) -> None:
    _show_compilation(_compile_apart(name))
    case = CASES[name]()
    print(f"  {case.ring}")
    circuit = compiled(case)
    _show_plan(circuit, case.sentences)
    _show_in_process(case, circuit, chosen)
    _show_memory(case, circuit)
    if not chosen.in_process:
        _show_processes(case, circuit)


def _compile_here(name: str) -> dict[str, float]:
    started, cpu = time.perf_counter(), time.process_time()
    case = CASES[name]()
    traced, before = time.process_time() - cpu, peak_bytes()
    compiled(case)
    return {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
        "traced": traced,
        "before": before,
        "peak": peak_bytes(),
    }


def _compile_apart(name: str) -> dict[str, float]:
    """`_compile_here` in a fresh process. Raises LayoutError if it fails there."""
    return _apart("benchmarks.packing", "--compile-only", name)


def _apart(*arguments: str) -> dict[str, float]:
    """What a module prints in a fresh process."""
    command = [sys.executable, "-m", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise LayoutError(ended.stderr.strip().splitlines()[-1])
    return json.loads(ended.stdout.strip().splitlines()[-1])


def _show_compilation(spent: dict[str, float]) -> None:
    print(
        f"  traced and compiled      {spent['cpu']:8.2f} s CPU, {spent['seconds']:.2f} s wall "
        f"(traced {spent['traced']:.2f} s); peak {_mb(spent['peak'])}, "
        f"{_mb(spent['before'])} before compiling",
        flush=True,
    )


def _show_plan(circuit: Circuit, sentences: int) -> None:
    ledger = circuit.ledger
    print(
        f"  planned                  {ledger.rotations:,} rotations, {ledger.refreshes:,} refreshed"
        f" in {ledger.refresh_rounds} rounds, {ledger.products:,} products, "
        f"{ledger.plain_products:,} by plaintexts, {ledger.relinearizations:,} relinearizations, "
        f"{ledger.rescales:,} rescales\n"
        f"  keys                     {ledger.rotation_keys} rotation keys, all "
        f"{_mb(ledger.key_bytes)}; "
        f"{ledger.plaintexts:,} plaintexts, at most {circuit.most_alive} ciphertexts alive\n"
        f"  predicted                {ledger.seconds:8.2f} s with encoding"
        + (f", {ledger.seconds / sentences:.3f} a sentence" if sentences > 1 else ""),
        flush=True,
    )


@dataclass
class _Spent:
    """CPU and wall-clock seconds of one run."""

    cpu: float
    wall: float


def _show_in_process(case: PackingCase, circuit: Circuit, chosen: argparse.Namespace) -> None:
    cpu = time.thread_time()
    machine = PyfhelMachine.generate(circuit.params, circuit.rotation_steps, circuit.slots)
    print(f"  keys made in             {time.thread_time() - cpu:8.2f} s CPU", flush=True)
    runs = _Runs(case, circuit, machine)
    first = runs.once()
    turns, others = [], []
    for _ in range(chosen.turns):
        turns.append(runs.once())
        if chosen.beside:
            others.append(_other(chosen.beside, chosen.pattern))
    ours = _Spent(min(t.cpu for t in turns), min(t.wall for t in turns))
    each = case.sentences
    print(f"  encoding on the way      {first.cpu:8.3f} s CPU, {first.wall:.3f} s wall")
    print(f"  encoded before           {ours.cpu:8.3f} s CPU, {ours.wall:.3f} s wall", end="")
    print(f", {ours.cpu / each:.3f} s CPU a sentence" if each > 1 else "")
    print(f"  against polynomial model {runs.error:8.1e} largest, {runs.std:.1e} std")
    floor = bare.seconds(circuit, machine)
    print(
        f"  bare operations          {floor:8.3f} s CPU; run / bare {ours.cpu / floor:.3f}\n"
        f"  predicted / measured     {circuit.ledger.seconds / first.cpu:8.2f}, by "
        f"{circuit.ledger.costs}",
        flush=True,
    )
    if others:
        theirs = min(others)
        print(
            f"  beside                   {theirs:8.3f} s; ours / theirs: wall "
            f"{ours.wall / theirs:.3f}, CPU / their clock {ours.cpu / theirs:.3f}",
            flush=True,
        )


class _Values:
    """Encrypted inputs and public operands of a case."""

    def __init__(self, case: PackingCase, circuit: Circuit):
        program = case.program
        self.operands = circuit.publics.evaluate(program.flatten(case.args))
        leaves = zip(program.inputs, program.flatten(case.args), strict=True)
        self.inputs = [np.asarray(a, np.float64) for v, a in leaves if v.encrypted]


class _Runs(_Values):
    """Runs of one Circuit in this process, on keys and plaintexts that stay."""

    def __init__(self, case: PackingCase, circuit: Circuit, machine: PyfhelMachine):
        super().__init__(case, circuit)
        self.circuit, self.machine, program = circuit, machine, case.program
        exact = program(*case.args, precision="float64")
        self.exact = [np.asarray(leaf) for leaf in tree_util.tree_leaves(exact)]
        self.executor = Executor(circuit, machine, self.operands, repeated=True)
        self.error = self.std = 0.0

    def once(self) -> _Spent:
        circuit = self.circuit
        taps = [tap for tap in circuit.outputs if tap is not None]
        decrypt = sorted({int(c) for tap in taps for c in tap.ciphers})
        cpu, wall = time.thread_time(), time.perf_counter()
        vectors, _ = run_local(
            circuit, self.machine, self.inputs, self.operands, decrypt, executor=self.executor
        )
        spent = _Spent(time.thread_time() - cpu, time.perf_counter() - wall)
        errors = [
            (tap.read(vectors) - exact).ravel()
            for tap, exact in zip(circuit.outputs, self.exact, strict=True)
            if tap is not None
        ]
        found = np.concatenate(errors)
        self.error, self.std = float(np.abs(found).max()), float(found.std())
        return spent


def _show_memory(case: PackingCase, circuit: Circuit) -> None:
    values = _Values(case, circuit)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), circuit, values.inputs, values.operands)
        found = _apart("benchmarks.packing.alone", folder)
    predicted = circuit.ledger.peak_bytes
    print(
        f"  one process' peak        {_mb(found['peak'])}, {_mb(found['keys'])} with keys alone; "
        f"predicted {_mb(predicted)}, predicted / measured {predicted / found['peak']:.2f}",
        flush=True,
    )


def _other(command: str, pattern: str) -> float:
    ended = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    found = re.findall(pattern, ended.stdout)
    if not found:
        raise SystemExit(f"nothing that {command} printed matches {pattern!r}")
    return float(found[-1])


def _show_processes(case: PackingCase, circuit: Circuit) -> None:
    walls, whole = {}, {}
    for workers in (1, 2):
        report: Any = he_backend.run(
            case.program, *case.args, circuit=circuit, workers=workers, clients=workers
        )
        walls[workers] = report.evaluation_seconds
        whole[workers] = report.seconds
        print(
            f"  {workers} worker{'s' * (workers > 1):<16} {walls[workers]:10.3f} s wall, "
            f"{report.core_seconds:.3f} s CPU in {report.tasks} tasks; keys "
            f"{report.key_seconds:.1f} s; peak of all {_mb(report.peak_bytes)}, "
            f"{_mb(report.predicted_peak_bytes)} predicted",
            flush=True,
        )
    print(
        f"  one worker / two         {walls[1] / walls[2]:8.2f}, "
        f"{whole[1] / whole[2]:.2f} with making keys",
        flush=True,
    )


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


if __name__ == "__main__":
    arguments: Sequence[str] = sys.argv[1:]
    sys.exit(main(list(arguments)))
