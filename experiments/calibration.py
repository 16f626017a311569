"""Measures what the operations of a machine cost, for `hesim.circuit.costs.table`.

Every operation is timed in CPU seconds by ring and level, with few terms and with many, through the
methods that any machine has, and a polynomial in the number of primes is fitted to each.
"""

from __future__ import annotations

import multiprocessing
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments.errors import ExperimentError
from he_backend.machines.table import find
from he_backend.processes.memory import resident_bytes
from hesim.circuit.costs.table import (
    OPERATIONS,
    VARIABLE,
    CostTable,
    OperationCost,
    ring_size,
)
from hesim.params import CKKSParams, largest_levels

__all__ = ["Timing", "calibrate", "calibrate_and_show", "fitted", "measured", "rings"]

_TERMS = 16
_REPEATS = 9
_KEYS = 8
_OTHERS = 1 << 24
"""Bytes that pass the processor's caches between two calls: as many as a few keys have."""

_SCALE = 2.0**20
"""Of all operands: its square fits the last prime, and no operation's time depends on it."""

_SAMPLED = (0, 1, 2, 3, 4, 6, 8, 12, 18)
"""Levels that are measured, as far as a chain has them."""


@dataclass(frozen=True)
class Timing:
    """CPU seconds of one call of an operation, at a level and in a ring, with so many terms."""

    operation: str
    log_n: int
    level: int
    terms: int
    seconds: float


def rings(smallest: int = 13, largest: int = 15) -> list[CKKSParams]:
    """Rings with the longest chain of 40-bit primes each that is secure."""
    found = []
    for log_n in range(smallest, largest + 1):
        levels = largest_levels(log_n, 40, 50, 60)
        if levels >= 0:
            found.append(CKKSParams(log_n, levels, 40, 50, 60))
    return found


def calibrate_and_show(out: Path, log_n: tuple[int, int], backend: str, console: Console) -> None:
    """The command: writes the table of a machine, and prints milliseconds at N = 2^14 by level.

    Raises:
      ExperimentError: no secure ring lies between the two.
    """
    chosen = rings(*log_n)
    if not chosen:
        raise ExperimentError(
            f"no ring from 2^{log_n[0]} to 2^{log_n[1]} is secure with 40-bit primes; take log N "
            "from 12 to 16"
        )
    table = calibrate(backend, chosen, console.print)
    table.save(out)
    levels = (0, 1, 2, 4, 8)
    console.print(f"{table.name}; ms at N = 2^14, by level")
    console.print(f"{'':<14}" + "".join(f"{level:>9}" for level in levels))
    for name in OPERATIONS:
        ms = (1e3 * table.seconds(name, level, 14) for level in levels)
        console.print(f"{name:<14}" + "".join(f"{x:>9.3f}" for x in ms))
    console.print(f"{out}: name it in {VARIABLE}, or in hesim --costs")


def calibrate(
    backend: str,
    chosen: Sequence[CKKSParams],
    told: Callable[[str], None] = lambda text: None,
) -> CostTable:
    """The table of a machine of `he_backend.machines.table`, measured here and now.

    Args:
      backend: its name.
      chosen: rings to measure; coefficients are fitted over all of them.
      told: is told what is being measured.
    """
    timings: list[Timing] = []
    for params in chosen:
        told(f"timing N = 2^{params.log_n}, levels 0 to {params.levels}")
        timings += measured(backend, params)
    told("measuring memory")
    found = []
    for params in chosen:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            found.append(alone.submit(_memory, backend, params).result())
    tables = [[1.0, (p.levels + 2) * (p.levels + 3) / 2 * p.n] for p in chosen]
    sizes = np.array([base for base, _ in found], np.float64)
    relative = np.array(tables) / sizes[:, None]
    base, table = _not_negative(relative, np.ones(len(sizes))).tolist()
    factor = float(np.median([factor for _, factor in found]))
    return CostTable(f"{backend} on {_processor()}", fitted(timings), base, table, factor)


def measured(backend: str, params: CKKSParams) -> list[Timing]:
    """All operations in one ring."""
    machine = find(backend).load().generate(params, [1])
    levels = [level for level in _SAMPLED if level <= params.levels]
    return [
        Timing(name, params.log_n, level, terms, _middle(call))
        for level in levels
        for name, terms, call in _calls(machine, level)
    ]


def fitted(timings: Sequence[Timing]) -> dict[str, OperationCost]:
    """Coefficients by least squares of relative errors; of operations with one term alone, all is
    in what a term costs.
    """
    found = {}
    for name, transforms in OPERATIONS.items():
        own = [t for t in timings if t.operation == name]
        if not own:
            found[name] = OperationCost(0.0, (0.0, 0.0, 0.0))
            continue
        rows, target = [], []
        for t in own:
            size = ring_size(t.log_n) if transforms else 2.0 ** (t.log_n - 14)
            k = t.level + 1.0
            each = [t.terms * size * k**power for power in range(3)]
            ms = t.seconds * 1e3
            rows.append([x / ms for x in (1.0, *each)])
            target.append(1.0)
        fixed, *each = _not_negative(np.array(rows), np.array(target)).tolist()
        found[name] = OperationCost(fixed, (each[0], each[1], each[2]))
    return found


def _not_negative(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares with no coefficient below 0: the best of all subsets of columns that has none.

    Costs grow with primes and terms, so that a negative one would only fit noise.
    """
    columns = matrix.shape[1]
    best, lowest = np.zeros(columns), np.inf
    for chosen in range(1, 1 << columns):
        picked = [k for k in range(columns) if chosen >> k & 1]
        found = np.linalg.lstsq(matrix[:, picked], target, rcond=None)[0]
        loss = float(np.sum((matrix[:, picked] @ found - target) ** 2))
        if np.all(found >= 0.0) and loss < lowest:
            best, lowest = np.zeros(columns), loss
            best[picked] = found
    return best


def _calls(machine: Any, level: int) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """(operation, terms, call) of everything that can be done at `level`."""
    rng = np.random.default_rng(level)
    vectors = rng.uniform(-1, 1, (_TERMS, machine.slots))
    ciphers = [machine.encrypt(v, level, _SCALE) for v in vectors]
    plains = [machine.encode(v, level, _SCALE) for v in vectors]
    a, ones = ciphers[0], [1] * _TERMS
    fresh = iter(np.arange(1, 10**6) * 2.0**-20)
    blob = machine.to_bytes(a)
    yield "encrypt", 1, lambda: machine.encrypt(vectors[0], level, _SCALE)
    yield "decrypt", 1, lambda: machine.decrypt(a)
    yield "transport", 1, lambda: (machine.to_bytes(a), machine.from_bytes(blob, level, _SCALE))
    order = rng.permutation(machine.slots)  # of a plaintext that is gathered from an operand
    yield "encode", 1, lambda: machine.encode(vectors[0][order] + next(fresh), level, _SCALE)
    yield "encode_scalar", 1, lambda: machine.encode(next(fresh), level, _SCALE)
    yield "add_plain", 1, lambda: machine.add_plain(a, plains[0])
    yield "rotate", 1, lambda: machine.rotate(a, 1)
    rows = rng.uniform(-1, 1, (_TERMS, _TERMS))
    for count in (2, _TERMS):
        some, whole = ciphers[:count], ones[:count]
        products = plains[:count]
        yield "add", count - 1, lambda c=some, f=whole: machine.add(c, f)
        yield "dot", count, lambda c=some, f=whole: machine.dot(c, c[::-1], f)
        yield "dot_plain", count, lambda c=some, p=products: machine.dot_plain(c, p)
    yield (
        "dot_scalars",
        _TERMS * _TERMS,
        lambda: machine.dot_scalars(ciphers, rows, _SCALE),
    )
    three = machine.dot([a], [ciphers[1]], [1])
    yield "relinearize", 1, lambda: machine.relinearize(three)
    if level:
        high = machine.encrypt(vectors[0], level, 2.0**60)
        yield "rescale", 1, lambda: machine.rescale(high)
        yield "drop", 1, lambda: machine.drop(a, level - 1)


def _middle(call: Callable[[], Any]) -> float:
    """CPU seconds of the middle one of several calls, after one that does not count. Between them
    other memory is read, as a Circuit's other operations do.
    """
    call()
    taken = []
    others = np.ones(_OTHERS // 8)
    for _ in range(_REPEATS):
        others += 1.0
        started = time.thread_time()
        call()
        taken.append(time.thread_time() - started)
    return float(np.median(taken))


def _memory(backend: str, params: CKKSParams) -> tuple[int, float]:
    """Of this process, bytes with a machine and no keys; and of keys, over those of residues."""
    maker = find(backend).load()
    maker.generate(params)
    base = resident_bytes()
    held = maker.generate(params, range(1, _KEYS + 1))
    grown = resident_bytes() - base
    assert held.slots
    return base, max(grown / params.key_bytes(_KEYS + 1), 0.0)


def _processor() -> str:
    """The name of the processor, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.machine())
