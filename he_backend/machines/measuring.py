"""What the operations of a machine take, in seconds and bytes, measured in the Python that has it.

Every operation is timed in CPU seconds by ring and level, with few terms and with many, through the
methods that any machine has.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from he_backend.errors import BackendError
from he_backend.machines.table import find
from he_backend.processes.folders import clean_environment, module_command
from he_backend.processes.memory import resident_bytes
from hesim.params import CKKSParams

__all__ = ["Measured", "Timing", "measure"]

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


@dataclass(frozen=True)
class Measured:
    """One ring: seconds of its operations, bytes of a process with a machine and no keys, and bytes
    of keys over those of their residues.
    """

    timings: tuple[Timing, ...]
    base_bytes: int
    key_factor: float


def measure(backend: str, params: CKKSParams) -> Measured:
    """All operations in one ring, in a process of its own.

    Raises:
      BackendError: it failed.
    """
    row = find(backend)
    command, environment = (
        module_command(__name__, row.python()),
        clean_environment(row.environment),
    )
    job = json.dumps({"backend": backend, "params": params.fields})
    done = subprocess.run(
        *(command,), input=job, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise BackendError(f"measuring {backend} failed: {last[0]}")
    found = json.loads(done.stdout.splitlines()[-1])
    timings = tuple(Timing(**each) for each in found["timings"])
    return Measured(timings, int(found["base"]), float(found["factor"]))


def timed(backend: str, params: CKKSParams) -> list[Timing]:
    """All operations in one ring, in this process."""
    machine = find(backend).load().generate(params, [1])
    levels = [level for level in _SAMPLED if level <= params.levels]
    return [
        Timing(name, params.log_n, level, terms, _middle(call))
        for level in levels
        for name, terms, call in _calls(machine, level)
    ]


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
    others = itertools.cycle(ciphers[:2])  # of one ciphertext, rotations may share work
    yield "rotate", 1, lambda: machine.rotate(next(others), 1)
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


def main() -> None:
    """Entry of the process: one JSON job on standard input, what was found on standard output."""
    from he_backend.processes.keys import params_of

    job = json.load(sys.stdin)
    backend, params = str(job["backend"]), params_of(job["params"])
    base, factor = _memory(backend, params)
    timings = [asdict(each) for each in timed(backend, params)]
    sys.stdout.write(json.dumps({"timings": timings, "base": base, "factor": factor}) + "\n")


if __name__ == "__main__":
    main()
