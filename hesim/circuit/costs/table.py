"""What operations on ciphertexts cost on one machine: coefficients, measured by
`hesim calibrate-costs` and kept in a file.

The table in use is the one that `using` names, else that in the file that the environment variable
HESIM_COSTS names, else the one that is shipped: Pyfhel 3.5 on an x86-64 core, and for plans of
rings with digits OpenFHE 1.6 on the like. Imports no JAX.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib.resources
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hesim.errors import ParameterError, reading
from hesim.files import write_whole

__all__ = [
    "OPERATIONS",
    "VARIABLE",
    "CostTable",
    "OperationCost",
    "current",
    "inherited",
    "ring_size",
    "suited",
    "using",
]

VARIABLE = "HESIM_COSTS"
"""Environment variable with the path of a table."""

_SHIPPED = {False: "x86_64.json", True: "x86_64_openfhe.json"}
"""By whether keys are switched in digits of several primes."""

_FORMAT = 1

OPERATIONS: Mapping[str, bool] = {
    "encrypt": True,
    "decrypt": True,
    "transport": False,
    "encode": True,
    "encode_scalar": False,
    "add": False,
    "dot": False,
    "dot_plain": False,
    "dot_scalars": False,
    "add_plain": False,
    "rotate": True,
    "relinearize": True,
    "rescale": True,
    "drop": False,
}
"""Names of what is measured, and whether it transforms polynomials, so that it takes N log N.

encrypt: a vector encoded and encrypted. transport: a ciphertext written to bytes and read from
them. add, dot, dot_plain, dot_scalars (one of a matrix product by numbers): by terms.
"""


def ring_size(log_n: int) -> float:
    """N log N over that of N = 2^14, to which figures refer."""
    return 2.0 ** (log_n - 14) * log_n / 14


@dataclass(frozen=True)
class OperationCost:
    """Milliseconds of one operation at N = 2^14, by k, the primes of its operands.

    Attributes:
      fixed: of every call, whatever the ring.
      each: coefficients of 1, k and k² of each term.
    """

    fixed: float
    each: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class CostTable:
    """Costs of all operations of a machine.

    Attributes:
      name: what it was measured on, for reports.
      operations: by the names of `OPERATIONS`.
      base_bytes: memory of a process that has loaded the machine and no keys, without its tables.
      table_bytes: memory of a context's tables, a prime, a level of its chain and a coefficient.
      key_factor: memory of keys over the bytes of their residues.

    Raises:
      ParameterError: an operation is missing, or a figure is no number or below 0.
    """

    name: str
    operations: Mapping[str, OperationCost]
    base_bytes: float
    table_bytes: float
    key_factor: float
    _found: dict[tuple[str, int, int], tuple[float, float]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        missing = sorted(OPERATIONS.keys() - self.operations.keys())
        if missing:
            raise ParameterError(
                f"the cost table {self.name!r} has no {', '.join(missing)}: measure it anew with "
                "hesim calibrate-costs"
            )
        figures = [self.base_bytes, self.table_bytes, self.key_factor]
        figures += [x for o in self.operations.values() for x in (o.fixed, *o.each)]
        if not all(math.isfinite(x) and x >= 0.0 for x in figures):
            raise ParameterError(f"the cost table {self.name!r} has figures that are no cost")

    def parts(self, operation: str, level: int, log_n: int) -> tuple[float, float]:
        """Seconds of a call, and of each of its terms, at `level` of the operands."""
        key = operation, level, log_n
        if key not in self._found:
            cost = self.operations[operation]
            k = level + 1.0
            one, linear, square = cost.each
            size = ring_size(log_n) if OPERATIONS[operation] else 2.0 ** (log_n - 14)
            term = max(one + linear * k + square * k * k, 0.0) * size
            self._found[key] = cost.fixed * 1e-3, term * 1e-3
        return self._found[key]

    def seconds(self, operation: str, level: int, log_n: int, terms: int = 1) -> float:
        """Of one call on one core, with so many terms."""
        call, each = self.parts(operation, level, log_n)
        return call + each * terms

    def machine_bytes(self, log_n: int, levels: int) -> float:
        """Memory of a process with a machine for this ring and chain, and no keys.

        A context has tables for each prime of the chain, the special one included, and again for
        the shorter chain of every level below.
        """
        return self.base_bytes + self.table_bytes * (levels + 2) * (levels + 3) / 2 * 2.0**log_n

    def save(self, path: str | Path) -> None:
        """Writes a JSON file that `load` reads."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(path), (self.text + "\n").encode())

    @property
    def text(self) -> str:
        """The content of its file."""
        held = {
            "format": _FORMAT,
            "name": self.name,
            "unit": "ms at N = 2^14, by primes k: fixed + terms * (each . [1, k, k^2])",
            "operations": {
                name: {"fixed": cost.fixed, "each": list(cost.each)}
                for name, cost in self.operations.items()
            },
            "base_bytes": self.base_bytes,
            "table_bytes": self.table_bytes,
            "key_factor": self.key_factor,
        }
        return json.dumps(held, indent=1)

    @classmethod
    def load(cls, path: str | Path) -> CostTable:
        """Reads what `save` wrote; ParameterError if it is something else."""
        with reading(path, "cost table"):
            return cls._of(json.loads(Path(path).read_text(encoding="utf-8")))

    @classmethod
    def shipped(cls, *, digits: bool = False) -> CostTable:
        """Of Pyfhel 3.5 (SEAL 4.1) on an x86-64 core of the 2020s; where keys are switched in
        `digits` of several primes, of OpenFHE 1.6 on one, at the levels that bootstraps leave.
        """
        text = importlib.resources.files("hesim.circuit.costs").joinpath(_SHIPPED[digits])
        return cls._of(json.loads(text.read_text(encoding="utf-8")))

    @classmethod
    def _of(cls, held: dict[str, Any]) -> CostTable:
        if held["format"] > _FORMAT:
            raise ParameterError("a later version wrote it: update to read it")
        costs = {
            name: OperationCost(float(entry["fixed"]), _three(entry["each"]))
            for name, entry in held["operations"].items()
        }
        memory = (float(held[name]) for name in ("base_bytes", "table_bytes", "key_factor"))
        return cls(str(held["name"]), costs, *memory)


def _three(values: list[float]) -> tuple[float, float, float]:
    one, linear, square = map(float, values)
    return one, linear, square


_chosen: contextvars.ContextVar[CostTable | None] = contextvars.ContextVar("costs", default=None)


@contextlib.contextmanager
def using(table: CostTable | None) -> Iterator[None]:
    """Within it, this table is the one in use; None changes nothing."""
    if table is None:
        yield
        return
    token = _chosen.set(table)
    try:
        yield
    finally:
        _chosen.reset(token)


@contextlib.contextmanager
def suited(digits: int | None) -> Iterator[None]:
    """Within it, the table in use is that of a library which switches keys in so many digits, if
    nobody named another.
    """
    with using(None if digits is None or _named() else _of_openfhe()):
        yield


def _named() -> bool:
    return _chosen.get() is not None or bool(os.environ.get(VARIABLE))


@functools.lru_cache(maxsize=1)
def _of_openfhe() -> CostTable:
    return CostTable.shipped(digits=True)


def current() -> CostTable:
    """The table in use. Raises ParameterError if HESIM_COSTS names a file that is none."""
    return _chosen.get() or inherited()


def inherited() -> CostTable:
    """The table in use in a process that is started from here. Raises ParameterError as above."""
    return _of_environment(os.environ.get(VARIABLE, ""))


@functools.lru_cache(maxsize=4)
def _of_environment(path: str) -> CostTable:
    return CostTable.load(path) if path else CostTable.shipped()
