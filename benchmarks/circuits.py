"""Whole circuits, encrypted: errors measured under several keys against the predicted ones.

`python -m benchmarks.circuits [case ...] [--keys 8] [--most 64] [--out runs/circuits]` measures
what is not in the folder yet, key by key, so that an interrupted study goes on where it stopped,
and prints a table; `python -m benchmarks circuits` does the same with the defaults. Where 8 keys
leave a standard error above 0.1 bit, as where errors sit in a few slots (a 60-bit first prime), the
case is run under twice as many, and again, up to `--most`. Predictions are made anew each time,
since they are cheap; `circuits.json` in the folder holds both.

Three predictions are shown, each as log2 of the ratio measured / predicted of standard deviations:
that of `hesim.certify` on the compiled Circuit, that of the training tier on the same schedule, and
that of the training tier on its own canonical one, which knows nothing of layouts.

Seconds of encrypted runs and of `hesim.certify`, which compiles nothing, are taken in turns.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import hesim
from benchmarks.circuit_cases import CASES, CircuitCase
from he_backend.local import run_local
from he_backend.machines.pyfhel.machine import PyfhelMachine
from he_backend.report import twin as exact_twin
from hesim.circuit.circuit import Circuit, TensorLocation
from hesim.files import write_whole
from hesim.noise.placement import of_circuit
from hesim.params import CKKSParams
from hesim.predict import predict

__all__ = ["Row", "main", "measured", "rings", "study"]

_KEYS = 48
"""Keys of every prediction: those cost little, and results of few elements vary from key to key."""

_TIMED = 8
"""Keys of the certificate that is timed after every encrypted run."""

_UNSETTLED = 0.1
"""Standard error in bits above which a case is run under more keys."""

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
                tuple(CASES),
            ),
            "2^14, 50-bit first prime, 128 bits": (
                CKKSParams(14, 7, 40, 50, 60),
                ("attention", "layer norm"),
            ),
        }


@dataclass(frozen=True)
class Row:
    """One operation: log2 of the measured std, its standard error, and of measured over predicted.

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


def study(
    case: CircuitCase, params: CKKSParams, keys: int, path: Path, most: int = 0
) -> dict[str, Any]:
    """Measure one case under `keys` fresh keys, or up to `most` as long as standard errors are
    above 0.1 bit, resuming from `path`, and predict it.

    Returns:
      The rows, the final result first, with seconds of all parts.
    """
    started = time.perf_counter()
    circuit = hesim.compile(case.program, params)
    compiled = time.perf_counter() - started
    runs = _measure(case, circuit, keys, path)
    squares = np.array([run["squares"] for run in runs])
    while len(runs) < most and np.max(_errors(squares)) > _UNSETTLED:
        runs = _measure(case, circuit, min(2 * len(runs), most), path)
        squares = np.array([run["squares"] for run in runs])
    certified = hesim.certify(circuit, case.args, keys=_KEYS)
    schedule = of_circuit(case.program, circuit)
    started = time.perf_counter()
    trained = predict(case.program, params, case.args, _KEYS, schedule=schedule, tier="train")
    canonical = predict(case.program, params, case.args, _KEYS, tier="train")
    predict_seconds = time.perf_counter() - started
    rows = []
    errors = _errors(squares)
    for column, (k, tap) in enumerate(_tensors(circuit)):
        guesses = {
            "certify": certified.outputs[-1 - k].std if k < 0 else certified.ops[k].std,  # type: ignore[union-attr]
            "training": trained.ops[tap.op].std,
            "canonical": canonical.ops[tap.op].std,
        }
        mean = float(squares[:, column].mean())
        if mean == 0.0:
            continue
        std = math.sqrt(mean)
        rows.append(
            Row(
                operation=k,
                name=f"result {-1 - k}" if k < 0 else circuit.op_names[k],
                level=int(circuit.level[tap.ciphers].min()),
                measured=math.log2(std),
                standard_error=float(errors[column]),
                **{name: math.log2(std / guess) for name, guess in guesses.items()},
            )
        )
    timed = [run for run in runs if "certify_seconds" in run]
    seconds = {
        f"{what}_seconds_per_key": float(np.mean([run[key] for run in timed])) if timed else None
        for what, key in (("encrypted", "seconds"), ("certify", "certify_seconds"))
    }
    return {
        "keys": len(runs),
        "instructions": len(circuit),
        "refreshes": circuit.ledger.refreshes,
        "compile_seconds": compiled,
        **seconds,
        "predict_seconds": predict_seconds,
        "rows": [asdict(row) for row in rows],
    }


def measured(
    case: CircuitCase, circuit: Circuit, keys: int, path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Mean squares of the errors of every tensor, results first, under each key (keys, tensors),
    kept in `path`; and standard errors in bits of the stds over keys.
    """
    runs = _measure(case, circuit, keys, path, certified=False)
    squares = np.array([run["squares"] for run in runs])
    return squares, _errors(squares)


def _errors(squares: np.ndarray) -> np.ndarray:
    """Standard errors in bits of the stds whose mean squares under each key are (keys, tensors)."""
    keys, mean = len(squares), squares.mean(axis=0)
    if keys < 2:
        return np.full(squares.shape[1], math.inf)
    spread = squares.std(axis=0, ddof=1) / np.where(mean > 0.0, mean, 1.0) / math.sqrt(keys)
    return spread / 2 / math.log(2)


def _measure(
    case: CircuitCase, circuit: Circuit, keys: int, path: Path, *, certified: bool = True
) -> list[dict[str, Any]]:
    """Mean squares of the errors of every tensor, key by key, kept in `path`, with seconds of the
    run and, if it is to be `certified`, of a certificate made after it.
    """
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
    decrypt = sorted({int(c) for _, tap in tensors for c in tap.ciphers})
    while len(found["runs"]) < keys:
        machine = PyfhelMachine.generate(circuit.params, circuit.rotation_steps, circuit.slots)
        started = time.perf_counter()
        vectors, _ = run_local(circuit, machine, exact.inputs, operands, decrypt)
        seconds = time.perf_counter() - started
        squares = [
            float(np.nanmean(np.square(tap.read(vectors) - exact.ops[tap.op])))
            for _, tap in tensors
        ]
        run: dict[str, Any] = {"squares": squares, "seconds": seconds}
        if certified:
            started = time.perf_counter()
            hesim.certify(circuit, case.args, keys=_TIMED)
            run["certify_seconds"] = (time.perf_counter() - started) / _TIMED
        found["runs"].append(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(found).encode())
        if certified:
            print(f"  key {len(found['runs'])} of {keys}: {seconds:.1f} s", flush=True)
    return found["runs"]


def _tensors(circuit: Circuit) -> list[tuple[int, TensorLocation]]:
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
        f"the Circuit compiled in {result['compile_seconds']:.1f} s, predicted in JAX in "
        f"{result['predict_seconds']:.1f} s, compilation included"
    )
    run, certificate = result["encrypted_seconds_per_key"], result["certify_seconds_per_key"]
    if run is not None:
        lines.append(
            f"in turns: encrypted {run:.2f} s a key, certified {certificate:.4f} s a key: "
            f"{run / certificate:.0f} times faster"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables and write `circuits.json`; returns 0."""
    parser = argparse.ArgumentParser(description="Errors of whole circuits, encrypted.")
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--keys", type=int, default=8, help="fresh keys, at least 2")
    parser.add_argument("--most", type=int, default=64, help="keys where 8 do not settle a case")
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
            results[title] = study(cases[name], params, chosen.keys, chosen.out / file, chosen.most)
            print(table(title, results[title]), flush=True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    summary = chosen.out / "circuits.json"
    summary.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(f"\n{summary}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
