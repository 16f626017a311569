"""The cases on which fits are compared with Sollya's `remez`, and Sollya's input for each.

`python -m benchmarks.approximation.cases` runs Sollya (if it is installed; nothing else needs it)
and writes sollya.json: its input, the error that it prints, and its seconds.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

STORED = Path(__file__).with_name("sollya.json")

# The named targets in Sollya's language.
EXPRESSIONS = {
    "exp": "exp(x)",
    "gelu": "x*erfc(-x/sqrt(2))/2",
    "gelu_tanh": "x/(1+exp(-2*sqrt(2/pi)*(x+0.044715*x^3)))",
    "silu": "x/(1+exp(-x))",
    "sigmoid": "1/(1+exp(-x))",
    "tanh": "tanh(x)",
    "softplus": "log(1+exp(x))",
    "erf": "erf(x)",
    "inv": "1/x",
    "inv_sqrt": "1/sqrt(x)",
    "sqrt": "sqrt(x)",
    "log": "log(x)",
}


@dataclass(frozen=True)
class Case:
    """One comparison: the target by name, its interval (as decimal text) and the degree."""

    target: str
    low: str
    high: str
    degree: int

    @property
    def name(self) -> str:
        return f"{self.target} [{self.low}, {self.high}] degree {self.degree}"

    @property
    def domain(self) -> tuple[float, float]:
        return float(self.low), float(self.high)

    @property
    def program(self) -> str:
        """Sollya's input: the minimax polynomial and the largest error, both in 500 bits."""
        return (
            f"prec = 500!; points = 1001!; f = {EXPRESSIONS[self.target]}; "
            f"d = [{self.low}; {self.high}]; "
            f"p = remez(f, {self.degree}, d, 1, 1e-6); "
            "display = decimal!; e = dirtyinfnorm(f - p, d); prec = 60!; print(e);"
        )


def _cases() -> tuple[Case, ...]:
    table = [
        ("exp", "-8", "0", (3, 5, 9, 15, 19)),
        ("exp", "-16", "0", (8, 15, 23)),
        ("exp", "-64", "0", (31,)),
        ("exp", "-128", "0", (31, 63)),
        ("exp", "-2", "2", (7, 15)),
        ("exp", "-13", "1", (15,)),
        ("gelu", "-4", "5", (12, 24)),
        ("gelu", "-8", "8", (31, 62)),
        ("gelu", "-16", "16", (63,)),
        ("gelu_tanh", "-6", "5", (17, 31)),
        ("silu", "-8", "8", (15, 31)),
        ("silu", "-6", "10", (40,)),
        ("sigmoid", "-8", "8", (15, 31, 63)),
        ("tanh", "-5", "5", (15, 31, 63)),
        ("tanh", "-16", "16", (63,)),
        ("tanh", "-1", "1", (15,)),
        ("softplus", "-8", "8", (15, 30)),
        ("softplus", "-7", "9", (12,)),
        ("erf", "-3", "3", (15, 31)),
        ("erf", "-1", "2", (10,)),
        ("inv", "0.04", "1", (15, 31, 63)),
        ("inv", "0.8", "3", (15,)),
        ("inv", "0.1", "1", (20, 40)),
        ("inv_sqrt", "0.1", "1", (15, 31)),
        ("inv_sqrt", "0.01", "1", (31, 63)),
        ("inv_sqrt", "0.001", "1", (63,)),
        ("sqrt", "0.01", "1", (15, 31)),
        ("sqrt", "0", "1", (9,)),
        ("log", "0.1", "1", (11, 23)),
        ("log", "0.5", "2", (15,)),
    ]
    return tuple(Case(t, a, b, n) for t, a, b, degrees in table for n in degrees)


CASES = _cases()


def run_sollya(case: Case, timeout: float = 120.0) -> tuple[float, float]:
    """(error, seconds of the whole process) of Sollya on this case; the error is NaN if it fails.

    Raises FileNotFoundError if Sollya is not installed.
    """
    binary = shutil.which("sollya")
    if binary is None:
        raise FileNotFoundError("sollya is not on PATH")
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [binary, "--warnonstderr"],
            input=case.program,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return float("nan"), timeout
    seconds = time.perf_counter() - start
    lines = done.stdout.split()
    try:
        return float(lines[-1]), seconds
    except (IndexError, ValueError):
        return float("nan"), seconds


def stored() -> dict[str, dict[str, float | str]]:
    """The stored measurements by case name: sollya's input, error and seconds."""
    return json.loads(STORED.read_text())


def main() -> int:
    """Measure every case and store the results. Returns 1 if Sollya is missing."""
    try:
        results = {}
        for case in CASES:
            error, seconds = run_sollya(case)
            print(f"{case.name:<44} {error:.6e} {seconds:8.2f} s", flush=True)
            if error == error:
                results[case.name] = {
                    "sollya": case.program,
                    "error": error,
                    "seconds": round(seconds, 3),
                }
    except FileNotFoundError as missing:
        print(missing, file=sys.stderr)
        return 1
    STORED.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
