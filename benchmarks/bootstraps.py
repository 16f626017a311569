"""OpenFHE's bootstrap against its law: `python -m benchmarks.bootstraps`.

Vectors of uniform numbers are bootstrapped under some keys, and what the law's sine leaves of their
errors is held against the law's std: the std, and the 99.9th percentile, in bits. So are the means
over blocks of neighbouring slots, whose errors are independent by the law. Seconds, bytes of keys
and matrices and the peak of the process are told beside what is predicted.

    python -m benchmarks.bootstraps                     N = 2^11, all slots and 64: seconds
    python -m benchmarks.bootstraps --log-n 16          the secure ring: 11 GB, some minutes

`--slots`, `--correction`, `--keys` and `--runs` change either. Returns 1 if a figure is further
from its law than `TOLERANCE` allows; 2 if OpenFHE is not there, or has no such bootstrap.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments import machines
from he_backend.machines.openfhe.remote import RemoteMachine
from he_backend.processes.memory import peak_bytes
from hesim.circuit.costs.bootstraps import bootstrap_memory
from hesim.circuit.refresher import Refresher
from hesim.errors import HesimError
from hesim.noise.bootstrap import BootstrapLaw, in_slots, law
from hesim.params import CKKSParams
from models.encrypted.settings import EncryptionSettings

__all__ = ["TOLERANCE", "Case", "Outcome", "main", "measure"]

TOLERANCE = 0.5, 1.0
"""Bits between measured and predicted: of the std, and of the 99.9th percentile."""

_BLOCKS = 4, 16, 64, 256, 1024, 4096
_FEWEST = 16
"""Blocks in each vector, at least: fewer know their std badly."""

_TAIL = 0.999
_NORMAL_TAIL = 3.2905
"""That percentile of the absolute value of a normal variable of std 1."""

_MACHINE = "openfhe"


@dataclasses.dataclass(frozen=True)
class Case:
    """What is bootstrapped: in which ring, how many slots, divided by 2^correction, under how many
    keys, how often under each.
    """

    log_n: int = 11
    slots: int = 1024
    correction: int = 13
    keys: int = 2
    runs: int = 3


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
      law: in the slots in use.
      std, tail: of the errors less the sine, and their 99.9th percentile in units that make it the
        std of a normal variable.
      blocks: by neighbouring slots in a block, log2 of the std of means over blocks, times the
        square root of the slots, over the law's std: 0 where errors are independent.
      seconds: wall seconds of a bootstrap. price: predicted, of one core.
      peak, predicted: bytes of the process, and of the keys and matrices alone.
    """

    case: Case
    law: BootstrapLaw
    std: float
    tail: float
    blocks: dict[int, float]
    seconds: float
    price: float
    peak: int
    predicted: int

    @property
    def bits_off(self) -> tuple[float, float]:
        """log2 of measured over predicted: of the std, and of the 99.9th percentile."""
        return math.log2(self.std / self.law.std), math.log2(self.tail / self.law.std)

    @property
    def sound(self) -> bool:
        """Whether the errors are those of the law."""
        return all(abs(o) <= most for o, most in zip(self.bits_off, TOLERANCE, strict=True))

    def __str__(self) -> str:
        off = self.bits_off
        return (
            f"N = 2^{self.case.log_n}, {self.case.slots} slots, correction {self.case.correction}: "
            f"std 2^-{-math.log2(self.std):.2f}, law 2^-{self.law.bits:.2f} ({off[0]:+.2f} bit), "
            f"99.9 % ({off[1]:+.2f} bit), means over "
            + ", ".join(f"{size} slots ({bits:+.2f} bit)" for size, bits in self.blocks.items())
            + f"; {self.seconds:.2f} s a bootstrap ({self.price:.2f} on a "
            f"core predicted); {self.peak / 1e9:.2f} GB, keys and matrices "
            f"{self.predicted / 1e9:.2f} predicted"
        )


def planned(case: Case) -> tuple[CKKSParams, Refresher]:
    """Ring and bootstrap of a case: the ring that commands take, and its chain in smaller ones.

    Raises ParameterError: no law was measured for them.
    """
    insecure = None if case.log_n == machines.BOOTSTRAPPING.log_n else case.log_n
    how, own = machines.based(EncryptionSettings(), _MACHINE), {"correction": case.correction}
    found = machines.suited(how, _MACHINE, own, insecure=insecure)
    return found.how.ckks, dataclasses.replace(found.refresher, slots=case.slots)


def measure(case: Case) -> Outcome:
    """Bootstrap, and hold it against the law."""
    params, refresher = planned(case)
    chosen = law(str(in_slots(refresher.error, case.slots)))
    rng = np.random.default_rng(0)
    keys = [_with_a_key(case, params, refresher, rng) for _ in range(case.keys)]
    found = np.concatenate([made - x - chosen.deviation(x) for k in keys for x, made in k.slots])
    seconds = [s for k in keys for s in k.seconds]
    peak = max(k.peak for k in keys)
    tail = float(np.quantile(np.abs(found), _TAIL)) / _NORMAL_TAIL
    price = refresher.seconds(refresher.min_input_level, params.levels, params.log_n)
    predicted = bootstrap_memory(params, refresher, case.slots).total
    std = float(np.sqrt(np.mean(found**2)))
    blocks = {
        size: math.log2(float(np.sqrt(size * np.mean(_means(found, size) ** 2))) / chosen.std)
        for size in _BLOCKS
        if case.slots >= _FEWEST * size
    }
    return Outcome(
        case, chosen, std, tail, blocks, float(np.median(seconds)), price, peak, predicted
    )


def _means(errors: np.ndarray, size: int) -> np.ndarray:
    """Over blocks of so many neighbours."""
    return errors.reshape(-1, size).mean(axis=1)


class _OfAKey(NamedTuple):
    """Slots before and after each bootstrap, seconds of each, and peak bytes of the process."""

    slots: list[tuple[np.ndarray, np.ndarray]]
    seconds: list[float]
    peak: int


def _with_a_key(
    case: Case, params: CKKSParams, refresher: Refresher, rng: np.random.Generator
) -> _OfAKey:
    """Bootstraps under one key, in a process that ends with this."""
    machine = RemoteMachine.generate(params, [], case.slots, refresher)
    least, found = refresher.min_input_level, _OfAKey([], [], 0)
    for _ in range(case.runs):
        x = rng.uniform(-1, 1, case.slots)
        given = machine.encrypt(x, least, params.scale(least))
        started = time.monotonic()
        fresh = machine.bootstrap(given, params.levels)
        found.seconds.append(time.monotonic() - started)
        found.slots.append((x, machine.decrypt(fresh)))
    return found._replace(peak=peak_bytes(machine.process.pid))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; see the module for what is returned."""
    ask = argparse.ArgumentParser(prog="python -m benchmarks.bootstraps")
    usual = Case()
    ask.add_argument("--log-n", type=int, default=usual.log_n)
    ask.add_argument("--slots", type=int, nargs="*", help="all, and 64, by default")
    ask.add_argument("--correction", type=int, default=usual.correction)
    ask.add_argument("--keys", type=int, default=usual.keys)
    ask.add_argument("--runs", type=int, default=usual.runs)
    asked = ask.parse_args(arguments)
    sound = True
    try:
        machines.need(_MACHINE)
        for slots in asked.slots or (1 << (asked.log_n - 1), 64):
            found = measure(Case(asked.log_n, slots, asked.correction, asked.keys, asked.runs))
            print(found, flush=True)
            sound &= found.sound
    except HesimError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
