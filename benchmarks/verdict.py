"""How often sound encrypted runs are called so, and what a run must be off by to be noticed.

Random circuits (see `shared_cases`), each run once under Pyfhel with a key of its own on a small
ring, everything decrypted, and judged as `he_backend.run(..., compare=True)` does: against what is
predicted, and against what a library would have that is louder or quieter by some bits throughout.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: figures are for one core

import numpy as np

import hesim
from benchmarks.circuit_cases import CircuitCase
from benchmarks.shared_cases import random_case
from he_backend.local import run_local
from he_backend.machines.pyfhel.machine import PyfhelMachine
from he_backend.report import twin
from he_backend.report.compare import op_records
from hesim.circuit.circuit import Circuit
from hesim.circuit.plain.execute import Spent
from hesim.noise.profiles import profile
from hesim.predict import walked

PARAMS = hesim.CKKSParams(12, 3, 32, 50, 60, security=None)
KEYS = 32
BITS = (0.0, 0.3, -0.3, 0.6, -0.6)
"""By which the library that predicts is quieter than the one that ran."""


def decrypted(case: CircuitCase, circuit: Circuit, exact: twin.Exact) -> Mapping[int, np.ndarray]:
    """Slots of every operation's result, encrypted under a new key."""
    machine = PyfhelMachine.generate(circuit.params, circuit.rotation_steps, circuit.slots)
    operands = circuit.publics.evaluate(case.program.flatten(case.args))
    wanted = sorted({int(c) for tap in circuit.taps for c in tap.ciphers})
    return run_local(circuit, machine, exact.inputs, operands, wanted)[0]


def judged(number: int, bits: Sequence[float]) -> list[tuple[float, bool, bool]]:
    """Of circuit `number`, run once: for each of `bits` these, whether all operations are within
    their intervals, and whether all together are.
    """
    case = random_case(number)
    circuit = hesim.compile(case.program, PARAMS)
    exact = twin.evaluate(case.program, case.args)
    vectors = decrypted(case, circuit, exact)
    seal = profile("seal")
    found = []
    for off in bits:
        quieter = 4.0**-off
        variances: dict[str, Any] = {
            name: getattr(seal, name) * quieter for name in ("error_variance", "rounding_variance")
        }
        other = dataclasses.replace(seal, name="another", **variances)
        predicted = walked(circuit, case.args, KEYS, other, seed=number)
        ops, overall = op_records(circuit, exact, vectors, predicted, Spent())
        within = not any(op.excess_bits for op in ops)
        found.append((off, within, overall is None or overall.sound))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print how many runs were called sound, by how far the prediction was off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first circuit")
    asked = parser.parse_args(arguments)
    sound: Counter[float] = Counter()
    outside: Counter[float] = Counter()
    for number in range(asked.first, asked.first + asked.runs):
        for off, within, together in judged(number, BITS):
            sound[off] += within and together
            outside[off] += not within
    print(f"{asked.runs} runs, {KEYS} simulated keys; errors larger than predicted by")
    for off in BITS:
        share = sound[off] / asked.runs
        print(
            f"{off:+5.1f} bits: {sound[off]:4} called as predicted ({share:6.1%}), "
            f"{outside[off]:4} with an operation outside its interval"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
