"""Whole circuits, encrypted: errors measured under several keys against the predicted ones.

`python -m benchmarks.circuits [case ...] [--keys 8] [--out runs/circuits]` measures what is not in
the folder yet, key by key, so that an interrupted study goes on where it stopped, and prints a
table; `python -m benchmarks circuits` does the same with the defaults. Predictions are made anew
each time, since they are cheap; `circuits.json` in the folder holds both.

Three predictions are shown, as bits above the measured standard deviation: that of
`hesim.certify` on the compiled Circuit, that of the training tier on the same schedule, and that
of the training tier on its own canonical one, which knows nothing of layouts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import hesim
from benchmarks.circuit_cases import CASES, CircuitCase
from he_backend import exact as exact_twin
from he_backend.local import run_local
from he_backend.machines.pyfhel import PyfhelMachine
from hesim.circuit.circuit import Circuit, Tap
from hesim.params import CKKSParams
from hesim.predictions import predict
from hesim.schedule import of_circuit

__all__ = ["Row", "main", "rings", "study"]

_KEYS = 48
"""Keys of every prediction: those cost little, and results of few elements vary from key to key."""

TIERS = ("certify", "training", "canonical")


def rings() -> dict[str, tuple[CKKSParams, tuple[str, ...]]]:
    """By name: parameters, and the cases that are run under them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # too small for their depth, as the table says
        return {
            "2^13, 50-bit first prime, no security": (
                CKKSParams(13, 8, 40, 50, 60, security=None),
                tuple(CASES),
            ),
            "2^13, 60-bit first prime, no security": (
                CKKSParams(13, 8, 40, 60, 60, security=None),
                ("attention", "layer norm"),
            ),
            "2^14, 50-bit first prime, 128 bits": (
                CKKSParams(14, 7, 40, 50, 60),
                ("attention", "layer norm"),
            ),
        }


@dataclass(frozen=True)
class Row:
    """One operation: log2 of the measured std, its standard error, and prediction less measurement.

    All in bits. `operation` counts through the Program's; -1 is the final result.
    """

    operation: int
    name: str
    level: int
    measured: float
    standard_error: float
    certify: float
    training: float
    canonical: float


def study(case: CircuitCase, params: CKKSParams, keys: int, path: Path) -> dict[str, Any]:
    """Measure one case under `keys` fresh keys, resuming from `path`, and predict it.

    Returns:
      The rows, the final result first, with seconds of all parts.
    """
    started = time.perf_counter()
    circuit = hesim.compile(case.program, params)
    compiled = time.perf_counter() - started
    measured = _measure(case, circuit, keys, path)
    squares = np.array([run["squares"] for run in measured["runs"]])
    started = time.perf_counter()
    certified = hesim.certify(circuit, case.args, keys=_KEYS)
    certify_seconds = (time.perf_counter() - started) / _KEYS
    schedule = of_circuit(case.program, circuit)
    started = time.perf_counter()
    trained = predict(case.program, params, case.args, _KEYS, schedule=schedule, tier="train")
    canonical = predict(case.program, params, case.args, _KEYS, tier="train")
    predict_seconds = time.perf_counter() - started
    rows = []
    for column, (k, tap) in enumerate(_tensors(circuit)):
        guesses = {
            "certify": certified.outputs[-1 - k].std if k < 0 else certified.ops[k].std,  # type: ignore[union-attr]
            "training": trained.ops[tap.op].std,
            "canonical": canonical.ops[tap.op].std,
        }
        mean = float(squares[:, column].mean())
        if mean == 0.0:
            continue
        spread = squares[:, column].std(ddof=1) / mean / math.sqrt(keys) if keys > 1 else math.inf
        std = math.sqrt(mean)
        rows.append(
            Row(
                operation=k,
                name=f"result {-1 - k}" if k < 0 else circuit.op_names[k],
                level=int(circuit.level[tap.ciphers].min()),
                measured=math.log2(std),
                standard_error=float(spread / 2 / math.log(2)),
                **{name: math.log2(guess / std) for name, guess in guesses.items()},
            )
        )
    encrypted = float(np.mean([run["seconds"] for run in measured["runs"]]))
    return {
        "keys": keys,
        "instructions": len(circuit),
        "refreshes": circuit.ledger.refreshes,
        "compile_seconds": compiled,
        "encrypted_seconds": encrypted,
        "certify_seconds_per_key": certify_seconds,
        "predict_seconds": predict_seconds,
        "rows": [asdict(row) for row in rows],
    }


def _measure(case: CircuitCase, circuit: Circuit, keys: int, path: Path) -> dict[str, Any]:
    """Mean squares of the errors of every tensor, key by key, kept in `path`."""
    identity = _identity(circuit, case)
    found: dict[str, Any] = {"identity": identity, "runs": []}
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["identity"] == identity:
            found = kept
        else:
            print(f"{path} is of another circuit: measured anew", flush=True)
    exact = exact_twin.evaluate(case.program, case.args)
    for message in exact.outside:
        raise message
    operands = circuit.publics.evaluate(case.program.flatten(case.args))
    tensors = _tensors(circuit)
    deliver = sorted({int(c) for _, tap in tensors for c in tap.ciphers})
    while len(found["runs"]) < keys:
        machine = PyfhelMachine.generate(circuit.params, circuit.rotation_steps, circuit.slots)
        started = time.perf_counter()
        vectors, _ = run_local(circuit, machine, exact.inputs, operands, deliver)
        seconds = time.perf_counter() - started
        squares = [
            float(np.mean(np.square(tap.read(vectors) - exact.ops[tap.op]))) for _, tap in tensors
        ]
        found["runs"].append({"squares": squares, "seconds": seconds})
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(found), encoding="utf-8")
        os.replace(part, path)
        print(f"  key {len(found['runs'])} of {keys}: {seconds:.1f} s", flush=True)
    found["runs"] = found["runs"][:keys]
    return found


def _tensors(circuit: Circuit) -> list[tuple[int, Tap]]:
    """(operation, where it lies): results as -1, -2, ..., then all that have ciphertexts."""
    results = [(-1 - k, tap) for k, tap in enumerate(circuit.outputs) if tap is not None]
    return results + [(tap.op, tap) for tap in circuit.taps if tap.op >= 0 and len(tap.ciphers)]


def _identity(circuit: Circuit, case: CircuitCase) -> str:
    digest = hashlib.sha256(repr(circuit.params).encode())
    for array in (circuit.kind, circuit.level, circuit.scale, circuit.arg, circuit.arg2):
        digest.update(np.ascontiguousarray(array).tobytes())
    for leaf in case.program.flatten(case.args):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def table(title: str, result: dict[str, Any]) -> str:
    """One case as text."""
    rows = result["rows"]
    lines = [
        f"{title}: {result['instructions']:,} instructions, {result['refreshes']} refreshes, "
        f"{result['keys']} keys",
        f"{'':>3} {'operation':<20} {'level':>5} {'log2 std':>9} {'+-':>5} "
        + " ".join(f"{name:>10}" for name in TIERS),
    ]
    for row in rows:
        number = "" if row["operation"] < 0 else row["operation"]
        lines.append(
            f"{number:>3} {row['name']:<20} {row['level']:>5} {row['measured']:>9.2f} "
            f"{row['standard_error']:>5.2f} " + " ".join(f"{row[name]:>+10.2f}" for name in TIERS)
        )
    for what, chosen in (
        ("final", [r for r in rows if r["operation"] < 0]),
        ("worst", [r for r in rows if r["operation"] >= 0]),
    ):
        worst = (max((r[name] for r in chosen), key=abs, default=0.0) for name in TIERS)
        lines.append(f"{what:>39} {'':>5} " + " ".join(f"{w:>+10.2f}" for w in worst))
    lines.append(
        f"encrypted {result['encrypted_seconds']:.2f} s a key, certified "
        f"{result['certify_seconds_per_key']:.2f} s a key, compiled in "
        f"{result['compile_seconds']:.1f} s"
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables and write `circuits.json`; returns 0."""
    parser = argparse.ArgumentParser(description="Errors of whole circuits, encrypted.")
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--keys", type=int, default=8, help="fresh keys, at least 2")
    parser.add_argument("--ring", default="", help="only rings whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("runs/circuits"), help="folder of results")
    chosen = parser.parse_args([] if arguments is None else arguments)
    unknown = [name for name in chosen.cases if name not in CASES]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    if chosen.keys < 2:
        parser.error("--keys must be at least 2: a standard error needs two")
    results = {}
    cases: dict[str, CircuitCase] = {}
    for ring, (params, names) in rings().items():
        for name in names:
            if chosen.ring not in ring or (chosen.cases and name not in chosen.cases):
                continue
            if name not in cases:
                cases[name] = CASES[name]()
            title = f"{name} at N = {ring}"
            print(f"\n{title}", flush=True)
            file = f"{name.replace(' ', '_')}-{params.log_n}-{params.first_bits}.json"
            results[title] = study(cases[name], params, chosen.keys, chosen.out / file)
            print(table(title, results[title]), flush=True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    summary = chosen.out / "circuits.json"
    summary.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(f"\n{summary}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
