"""Measures what the operations of a machine cost, for `hesim.circuit.costs.table`.

What was measured is `he_backend.machines.measuring`'s; a polynomial in the number of primes is
fitted to the seconds of each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from experiments.errors import ExperimentError
from experiments.machines import BOOTSTRAPPING
from he_backend.machines.measuring import Measured, Timing, measure
from he_backend.machines.table import find
from hesim.circuit.costs.table import (
    OPERATIONS,
    VARIABLE,
    CostTable,
    OperationCost,
    ring_size,
)
from hesim.errors import ParameterError
from hesim.params import CKKSParams, InsecureParametersWarning, largest_levels

__all__ = ["Timing", "calibrate", "calibrate_and_show", "fitted", "rings", "working_rings"]


def rings(smallest: int = 13, largest: int = 15, digits: int | None = None) -> list[CKKSParams]:
    """Rings with the longest chain of 40-bit primes each that is secure, keys switched in so many
    digits.
    """
    found = []
    for log_n in range(smallest, largest + 1):
        for levels in range(largest_levels(log_n, 40, 50, 60, digits=digits), -1, -1):
            with contextlib.suppress(ParameterError):  # no so many digits of one size
                found.append(CKKSParams(log_n, levels, 40, 50, 60, digits=digits))
                break
    return found


def working_rings(smallest: int, largest: int) -> list[CKKSParams]:
    """Rings with the chain that a machine which bootstraps works on, small ones too: no time
    depends on security, but all on the size of digits.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureParametersWarning)
        return [
            dataclasses.replace(BOOTSTRAPPING, log_n=log_n, security=None)
            for log_n in range(smallest, largest + 1)
        ]


def calibrate_and_show(out: Path, log_n: tuple[int, int], backend: str, console: Console) -> None:
    """The command: writes the table of a machine, and prints milliseconds at N = 2^14 by level.

    Raises:
      ExperimentError: no secure ring lies between the two.
    """
    row = find(backend)
    chosen = working_rings(*log_n) if row.bootstraps else rings(*log_n, row.digits)
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
    found: list[Measured] = []
    for params in chosen:
        told(f"timing N = 2^{params.log_n}, levels 0 to {params.levels}")
        found.append(measure(backend, params))
    timings = [each for ring in found for each in ring.timings]
    tables = [[1.0, (p.levels + 2) * (p.levels + 3) / 2 * p.n] for p in chosen]
    sizes = np.array([ring.base_bytes for ring in found], np.float64)
    relative = np.array(tables) / sizes[:, None]
    base, table = _not_negative(relative, np.ones(len(sizes))).tolist()
    factor = float(np.median([ring.key_factor for ring in found]))
    return CostTable(f"{backend} on {_processor()}", fitted(timings), base, table, factor)


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


def _processor() -> str:
    """The name of the processor, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.machine())
