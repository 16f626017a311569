"""Ciphertext operations at every level, against the cost model that `hesim.compile` plans with.

Each is timed as an executor would call it, on one core; of several repetitions the best counts.
What a plan needs right is the last column being one constant, whatever it is on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from he_backend.machines.pyfhel.machine import PyfhelMachine
from hesim.circuit.circuit import Kind
from hesim.circuit.cost import instruction_seconds
from hesim.circuit.refresher import KEY_HOLDER
from hesim.params import CKKSParams

TERMS = 16
REPEATS = 12


def main(log_n: int = 14, levels: int = 3) -> None:
    """Print measured and modelled milliseconds of every kind of instruction by level."""
    params = CKKSParams(log_n, levels, 40, 50, 60)
    machine = PyfhelMachine.generate(params, [1])
    print(f"N = 2^{log_n}, {levels} levels; dot and dot_plain of {TERMS} terms")
    print(f"{'operation':<14} {'level':>5} {'measured':>12} {'modelled':>12} {'ratio':>7}")
    ratios = []
    for level in range(levels + 1):
        for name, call, modelled in _calls(machine, level):
            measured = best(call)
            ratios.append(measured / modelled)
            print(
                f"{name:<14} {level:>5} {measured * 1e3:>9.3f} ms {modelled * 1e3:>9.3f} ms "
                f"{ratios[-1]:>7.2f}"
            )
    middle, spread = float(np.median(ratios)), np.quantile(ratios, (0.1, 0.9))
    print(f"measured / modelled: median {middle:.2f}, 80 % from {spread[0]:.2f} to {spread[1]:.2f}")


def best(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds of the fastest of several calls, after one that does not count."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _calls(machine: PyfhelMachine, level: int) -> list[tuple[str, Callable[[], object], float]]:
    """(name, call, modelled seconds) of everything that can be done at `level`."""
    params = machine.params
    scale = params.scale(level)
    rng = np.random.default_rng(level)
    vector = rng.uniform(-1, 1, machine.slots)
    ciphers = [machine.encrypt(vector, level, scale) for _ in range(TERMS)]
    plains = [machine.encode(rng.uniform(-1, 1, machine.slots), level, scale) for _ in range(TERMS)]
    ones = [1] * TERMS
    a = ciphers[0]

    def seconds(kind: int, terms: int = 1) -> float:
        return instruction_seconds(kind, level, terms, params.log_n)

    calls: list[tuple[str, Callable[[], object], float]] = [
        ("input", lambda: machine.encrypt(vector, level, scale), seconds(Kind.INPUT)),
        ("add", lambda: machine.add(ciphers, ones), seconds(Kind.ADD, TERMS)),
        ("add_plain", lambda: machine.add_plain(a, plains[0]), seconds(Kind.ADD_PLAIN)),
        ("rotate", lambda: machine.rotate(a, 1), seconds(Kind.ROTATE)),
    ]
    if level:  # a product at level 0 would overflow its only prime
        square = machine.dot([a], [a], [1])
        product = machine.relinearize(square)
        calls += [
            (
                "dot_plain",
                lambda: machine.dot_plain(ciphers, plains),
                seconds(Kind.DOT_PLAIN, TERMS),
            ),
            ("dot", lambda: machine.dot(ciphers, ciphers, ones), seconds(Kind.DOT, TERMS)),
            ("relinearize", lambda: machine.relinearize(square), seconds(Kind.RELINEARIZE)),
            ("rescale", lambda: machine.rescale(product), seconds(Kind.RESCALE)),
            ("drop", lambda: machine.drop(a, level - 1), seconds(Kind.DROP)),
        ]
    else:
        top = params.levels

        def refresh() -> object:
            return machine.encrypt(machine.decrypt(a), top, params.scale(top))

        calls.append(("refresh", refresh, KEY_HOLDER.seconds(0, top, params.log_n)))
    return calls
