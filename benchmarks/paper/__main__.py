"""The published two-layer model, planned and run: `python -m benchmarks.paper [what] [options]`.

`plans` compiles it at the price of a refresh by the key holder and of a bootstrap. `tables` and
`ratios` show what is planned for the matrix products that the paper counts, and for the pairs of
computations whose seconds it compares, beside its figures. `run` sends one sentence through the
model encrypted, from embedded rows to logits; with `--folder` an interrupted run goes on where it
was. `lines` sets the paper's Tables 2 and 12 beside its own formulas at its own prices, `ours` what
the compiler plans at these. `training` runs a small model's forward pass, gradient and optimizer
encrypted, trained in three ways, and `training --planned` says what is predicted; `--hidden` trains
a larger one. `tradeoff` costs the values of a knobs file (`--knobs`) in three ways. `--size` takes
a smaller model of the same operations.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: figures are for one core

import argparse
import sys
import time
from pathlib import Path

import hesim
from benchmarks.paper.cases import SIZES, bootstrapped, key_holder, sentence, shapes
from benchmarks.paper.lines import lines
from benchmarks.paper.ours import ours
from benchmarks.paper.ratios import ratios
from benchmarks.paper.run import run, show_plan
from benchmarks.paper.tables import layer, tables
from benchmarks.paper.tradeoff import tradeoff
from benchmarks.paper.training import TRAINED, training
from he_backend.processes.memory import peak_bytes
from models.config import EncoderConfig

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Print the figures; returns 1 if the run's logits are wrong, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper",
        description="The published model, planned and run encrypted.",
    )
    what = ("plans", "tables", "ratios", "lines", "ours", "run", "training", "tradeoff")
    parser.add_argument("what", nargs="?", default="plans", choices=what)
    parser.add_argument("--size", default="whole", choices=tuple(SIZES))
    parser.add_argument("--log-n", type=int, default=15, help="of the ring of a run")
    parser.add_argument("--folder", type=Path, help="keeps the work of a run that is interrupted")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=32, choices=tuple(TRAINED), help="trained")
    parser.add_argument("--memory", type=float, default=2.5, help="GB; larger parts are predicted")
    parser.add_argument("--planned", action="store_true", help="of a training: encrypt nothing")
    parser.add_argument("--knobs", type=Path, help="of a trade-off study, TOML")
    chosen = parser.parse_args([] if arguments is None else arguments)
    config = SIZES[chosen.size]
    if chosen.what == "run":
        return int(not run(config, chosen.log_n, chosen.folder, chosen.workers))
    if chosen.what == "training":
        training(chosen.hidden, most=0.0 if chosen.planned else chosen.memory)
        return 0
    if chosen.what == "tradeoff":
        tradeoff(chosen.knobs, config)
        return 0
    shown = {"tables": tables, "ratios": ratios, "lines": lines, "ours": ours}
    shown.get(chosen.what, lambda: plans(config))()
    return 0


def plans(config: EncoderConfig) -> None:
    """Compile at both prices and print what is planned."""
    program = sentence(config).program
    print(f"{shapes(config)}; {peak_bytes() / 1e9:.2f} GB before compiling")
    for ring, price in ((key_holder(), None), (bootstrapped(), "bootstrap")):
        print(f"{ring}, {'refreshed by the key holder' if price is None else 'bootstrapped'}")
        started = time.perf_counter()
        circuit = hesim.compile(program, ring, refresh_price=price)
        show_plan(circuit, time.perf_counter() - started)
        first = ", ".join(f"{count:,} {name}" for name, count in layer(circuit).items())
        print(f"  of these the first layer {first}")
        print(f"  peak memory              {peak_bytes() / 1e9:8.2f} GB", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
