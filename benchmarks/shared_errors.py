"""Random circuits that share operands, encrypted: is the predicted error the measured one?

`python -m benchmarks.shared_errors [--circuits 40] [--first 0] [--keys 8] [--most 64] [--out DIR]`
runs circuits 0, 1, ... of ``benchmarks.shared_cases`` through Pyfhel at N = 2^13, each under 8
fresh keys, or as many as it takes. It prints one line for each: log2 of the measured standard
deviation of the result, pooled over keys, and by how much it is above each prediction,
log2(measured / predicted):

- `certify`, `hesim.certify` under 64 keys, or up to 256 until its standard error is small;
- `predict`, `hesim.predict` with the Circuit's schedule, as a comparing run uses it;
- `training`, the training tier under that schedule.

Beside them stand the standard errors of the measured figure and of the certified one, in bits: that
of few keys, which is no fault of a prediction. `off` counts what is beyond 0.06 bit for certify and
0.2 bit for the others, and beyond two standard errors of the comparison besides.

Every key's figures are written as they come, so an interrupted study goes on where it stopped;
predictions are made anew. `shared_errors.json` in the folder holds all of it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import hesim
from benchmarks.circuit_cases import CircuitCase
from benchmarks.circuits import measured
from benchmarks.shared_cases import random_case
from hesim.circuit.circuit import Circuit
from hesim.noise.placement import of_circuit
from hesim.params import CKKSParams

__all__ = ["Line", "compared", "main"]

PARAMS = CKKSParams(13, 3, 32, 50, 60)
"""Small primes leave room for products in slots that pending constants have not scaled yet."""

_KEYS = 64
"""Of the certificate and of the training tier."""

_MOST_KEYS = 256
"""Of a certificate whose standard error is not small under as many."""

_TOGETHER = 8
"""Keys that are certified at a time: their errors of all ciphertexts in use are in memory."""

_SETTLED = 0.03
"""Bits of standard error above which a circuit is encrypted under more keys."""

_SECONDS = 100.0
"""Predicted seconds of encrypted runs of one circuit, beyond which no more keys are taken."""

LIMITS = {"certify": 0.06, "predict": 0.2, "training": 0.2}
"""Bits, by prediction."""


@dataclass(frozen=True)
class Line:
    """One circuit; figures in bits.

    Attributes:
      circuit: its number. operations, refreshes: in it. keys: that it was encrypted under.
      measured: log2 of the std of the result. error: its standard error.
      certify, predict, training: log2 of measured over predicted.
      spread: standard error of the certified std.
    """

    circuit: int
    operations: int
    refreshes: int
    keys: int
    measured: float
    error: float
    certify: float
    predict: float
    training: float
    spread: float

    def off(self, name: str) -> bool:
        """Whether a prediction is further from the measurement than its limit and chance allow."""
        # `predict` has as few keys as the measurement, the others have more.
        chance = (
            math.sqrt(2.0) * self.error
            if name == "predict"
            else math.hypot(self.error, self.spread)
        )
        return abs(getattr(self, name)) > LIMITS[name] + 2.0 * chance


def compared(number: int, keys: int, most: int, folder: Path) -> Line:
    """Measure circuit `number` under `keys` keys, what is kept in `folder` included, and up to
    `most` until its standard error is small; predict it.
    """
    case = random_case(number)
    circuit = hesim.compile(case.program, PARAMS)
    path = folder / f"circuit{number}.json"
    squares, errors = measured(case, circuit, keys, path)
    most = min(most, int(_SECONDS / circuit.ledger.seconds))
    while len(squares) < most and errors[0] > _SETTLED:
        squares, errors = measured(case, circuit, min(2 * len(squares), most), path)
    std = math.sqrt(float(squares[:, 0].mean()))
    certified, spread = _certified(circuit, case)
    schedule = of_circuit(case.program, circuit)
    predicted = hesim.predict(
        case.program, PARAMS, case.args, len(squares), schedule=schedule, seed=1
    )
    trained = hesim.predict(
        case.program, PARAMS, case.args, _KEYS, schedule=schedule, tier="train", jit=False
    )
    return Line(
        circuit=number,
        operations=len(case.program.ops),
        refreshes=circuit.ledger.refreshes,
        keys=len(squares),
        measured=math.log2(std),
        error=float(errors[0]),
        certify=math.log2(std / certified),
        predict=math.log2(std / predicted.ops[-1].std),
        training=math.log2(std / trained.ops[-1].std),
        spread=spread,
    )


def _certified(circuit: Circuit, case: CircuitCase) -> tuple[float, float]:
    """The certified std of the result over all keys, and its standard error in bits."""
    squares: list[float] = []
    mean, spread = 0.0, math.inf
    while len(squares) < _KEYS or spread > _SETTLED and len(squares) < _MOST_KEYS:
        seed = len(squares)
        (found,) = hesim.certify(circuit, case.args, keys=_TOGETHER, seed=seed).outputs
        assert found is not None
        squares += [std**2 for std in found.by_key]
        mean = statistics.fmean(squares)
        spread = statistics.stdev(squares) / (2.0 * mean * math.sqrt(len(squares)))
        spread /= math.log(2.0)
    return math.sqrt(mean), spread


def _row(line: Line) -> str:
    figures = (f"{getattr(line, name):+9.2f}" for name in LIMITS)
    return (
        f"{line.circuit:>7} {line.operations:>10} {line.refreshes:>9} {line.keys:>4} "
        f"{line.measured:>8.2f} {line.error:>5.2f} {' '.join(figures)} {line.spread:>6.2f}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table and write `shared_errors.json`; 1 if a prediction is off."""
    parser = argparse.ArgumentParser(description="Errors of circuits that share operands.")
    parser.add_argument("--circuits", type=int, default=40, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--keys", type=int, default=8, help="fresh keys, at least 2")
    parser.add_argument("--most", type=int, default=64, help="keys where these do not settle it")
    parser.add_argument("--out", type=Path, default=Path("runs/shared_errors"), help="folder")
    chosen = parser.parse_args([] if arguments is None else arguments)
    if chosen.keys < 2:
        parser.error("--keys must be at least 2: a standard error needs two")
    print(
        f"{'circuit':>7} {'operations':>10} {'refreshes':>9} {'keys':>4} {'measured':>8} {'±':>5} "
        + " ".join(f"{name:>9}" for name in LIMITS)
        + f" {'±':>6}"
    )
    lines = []
    for number in range(chosen.first, chosen.first + chosen.circuits):
        lines.append(compared(number, chosen.keys, chosen.most, chosen.out))
        print(_row(lines[-1]), flush=True)
        summary = chosen.out / "shared_errors.json"
        summary.write_text(json.dumps([asdict(x) for x in lines], indent=1), encoding="utf-8")
    for name, limit in LIMITS.items():
        found = [getattr(x, name) for x in lines]
        rms = math.sqrt(sum(x * x for x in found) / len(found))
        wide = [x.circuit for x in lines if x.off(name)]
        print(
            f"{name}: rms {rms:.2f}, worst {max(found, key=abs):+.2f} bit; off by more than "
            f"{limit} bit and two standard errors: {', '.join(map(str, wide)) or 'none'}"
        )
    return int(any(x.off(name) for x in lines for name in ("certify", "predict")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
