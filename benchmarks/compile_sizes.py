"""What `hesim.compile` takes as a block grows: hidden 64 to 1,024, tokens 16 to 512, batch 1 to
1,024.

`python -m benchmarks.compile_sizes [row ...] [--limit 300]` compiles one block of a transformer
(`benchmarks.packing.cases`) for each row, in a fresh process, and prints CPU seconds and peak
memory beside what was planned: they should grow with the operations on ciphertexts, not with
elements. A row is hidden:tokens:batch; without any, one size is varied at a time, then several.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: figures are for one core

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import hesim
from benchmarks.packing.cases import Shape, ring, sentences
from he_backend.processes.memory import peak_bytes

__all__ = ["ROWS", "main"]

_HEAD = 64
"""Width of a head: hidden 64 is one of them."""

_AXES = (
    [(hidden, 64, 1) for hidden in (64, 128, 256, 512, 1024)],
    [(128, tokens, 1) for tokens in (16, 32, 64, 128, 256, 512)],
    [(128, 64, batch) for batch in (1, 4, 16, 64, 256, 1024)],
    [(64, 16, 1024), (256, 128, 16), (512, 128, 128), (768, 128, 1), (1024, 512, 1)],
)

ROWS = list(dict.fromkeys(row for axis in _AXES for row in axis))
"""(hidden, tokens, sentences) of every row."""


def main(arguments: list[str]) -> int:
    """Print the table; 1 if a row took longer than the limit or failed."""
    parser = argparse.ArgumentParser(description="What compiling takes as a block grows.")
    parser.add_argument("rows", nargs="*", help="hidden:tokens:batch; a table of them by default")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds after which a row ends")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    rows = [_row(text) for text in chosen.rows] or ROWS
    if chosen.here:
        print(json.dumps(measured(*rows[0])))
        return 0
    print(f"{ring()}; heads of {_HEAD}, feed-forward 2 x hidden; CPU seconds of one core")
    print(_HEADINGS, flush=True)
    ended = [_show(row, chosen.limit) for row in rows]
    return int(not all(ended))


def _row(text: str) -> tuple[int, int, int]:
    try:
        hidden, tokens, batch = (int(part) for part in text.split(":"))
    except ValueError:
        raise SystemExit(f"a row is hidden:tokens:batch, not {text!r}") from None
    return hidden, tokens, batch


def measured(hidden: int, tokens: int, batch: int) -> dict[str, Any]:
    """Seconds and bytes of compiling one block in this process, and what was planned."""
    started = time.process_time()
    shape = Shape(tokens, hidden, max(hidden // _HEAD, 1), 2 * hidden)
    case = sentences(batch, shape)
    traced, before = time.process_time(), peak_bytes()
    circuit = hesim.compile(case.program, ring())
    ledger = circuit.ledger
    return {
        "traced": traced - started,
        "compiled": time.process_time() - traced,
        "before": before,
        "peak": peak_bytes(),
        "instructions": len(circuit.kind),
        "plaintexts": ledger.plain_products,
        "rotations": ledger.rotations,
        "refreshes": ledger.refreshes,
        "seconds": ledger.seconds / batch,
    }


_HEADINGS = (
    "hidden tokens batch | compiled       peak  (traced) | instructions  plain products  rotations "
    " refreshed  predicted a sentence"
)


def _show(row: tuple[int, int, int], limit: float) -> bool:
    hidden, tokens, batch = row
    print(f"{hidden:6d} {tokens:6d} {batch:5d} | ", end="", flush=True)
    name = f"{hidden}:{tokens}:{batch}"
    command = [sys.executable, "-m", "benchmarks.compile_sizes", name, "--here"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        print(f"not within {limit:g} s", flush=True)
        return False
    if ended.returncode:
        print(ended.stderr.strip().splitlines()[-1], flush=True)
        return False
    found = json.loads(ended.stdout.strip().splitlines()[-1])
    print(
        f"{found['compiled']:6.1f} s  {found['peak'] / 1e6:6,.0f} MB  ({found['traced']:4.1f} s) | "
        f"{found['instructions']:12,}  {found['plaintexts']:14,}  {found['rotations']:9,}  "
        f"{found['refreshes']:9,}  {found['seconds']:8.2f} s",
        flush=True,
    )
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
