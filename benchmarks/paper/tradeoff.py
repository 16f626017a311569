"""Configurations of a trade-off study at the paper's size: `python -m benchmarks.paper tradeoff
--knobs FILE`.

The reference of a knobs file and every value of a knob, one at a time, for the published two-layer
model, one sentence, in three ways: `counted`, by the lines of the published algorithms at the
published prices (`lines`); `planned`, by the compiler at these prices, ring and bootstrap (`ours`);
`here`, by the compiler at this machine's prices, a bootstrap at 10 s, or a round trip.

Of `counted` only the lines that a knob changes are counted anew. A bootstrap is taken to come every
seven levels, which gives the published two for 14 squarings, for ReLU and for LayerNorm.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import hesim
from benchmarks.paper.cases import SIZES
from benchmarks.paper.formulas import TOP, Spent, adapter, series
from benchmarks.paper.lines import Line, backward, forward, head, optimizer, softmax
from benchmarks.paper.ours import RING, planned
from benchmarks.paper.training import PUBLISHED
from benchmarks.training_step import training_step
from experiments.studies.tradeoff.designs import Space
from experiments.studies.tradeoff.knobs import Knobs
from experiments.studies.tradeoff.settings import read_study
from hesim.errors import EmptySlotsWarning, HesimError
from hesim.program import Program
from models.config import EncoderConfig

__all__ = ["Counted", "counted", "one_at_a_time", "program_of", "tradeoff"]

_LAYERS = 2
_CIPHERTEXTS = 6
_BOOTSTRAP_LEVELS = 7
_RANGES = (
    ("exp", (-40.0, 0.0)),
    ("relu", (-50.0, 50.0)),
    ("inv_sqrt", (0.15, 300.0)),
    ("tanh", (-5.0, 5.0)),
)
"""On which polynomials hold; squarings hold on their own."""


@dataclasses.dataclass(frozen=True)
class Counted:
    """Seconds of one sentence by the published algorithms: inference, and a step of training."""

    inference: float
    step: float


def counted(knobs: Knobs) -> Counted:
    """What a configuration costs by the lines of the paper's Tables 2 and 12."""
    changed = {
        "LayerNorm": _line(2 * _norm(knobs), TOP),
        "ReLU": _line(_CIPHERTEXTS * _activation(knobs) + Spent(extended=3), TOP),
        "LoRA": _line(_adapters(knobs) + Spent(extended=5 * len(knobs.sites) / 3), TOP),
        "Gaussian kernel": softmax()
        if knobs.kind == "softmax"
        else _line(_CIPHERTEXTS * _kernel(knobs), TOP),
    }
    there = sum(changed.get(line.name, line).seconds for line in forward())
    back = sum(
        (_line(2 * _adapters(knobs), TOP) if line.name == "LoRA" else line).seconds
        for line in backward()
    )
    tanh = series(knobs.tanh).seconds() - series(63).seconds()
    norm = 0.5 * (_norm(knobs).seconds() - _norm(Knobs()).seconds())  # the final one's
    trained = _LAYERS * 2 * len(knobs.sites) + 3
    inference = _LAYERS * there + head(False).seconds + tanh + norm
    step = _LAYERS * (there + back) + head(True).seconds + tanh + norm
    return Counted(inference, step + optimizer(trained, 0.0).seconds)


def _line(spent: Spent, level: int) -> Line:
    return Line("", 0.0, "counted", [(spent, level)])


def _bootstraps(levels: int) -> int:
    return max(1, math.ceil(levels / _BOOTSTRAP_LEVELS))


def _levels(degree: int) -> int:
    return math.ceil(math.log2(degree + 1))


def _norm(knobs: Knobs) -> Spent:
    """As the published one: sums, a polynomial, Newton steps; the last bootstrap is extended."""
    degree, _, newton = knobs.inv_sqrt.partition("+")
    steps = int(newton or 0)
    times = _bootstraps(_levels(int(degree)) + 1 + 2 * steps)
    spent = 6 * Spent(products=1) + 32 * Spent(rotations=1) + series(int(degree))
    return spent + Spent(products=3 * steps, bootstraps=times - 1, extended=1)


def _activation(knobs: Knobs) -> Spent:
    degrees = [int(degree) for degree in knobs.activation.split(",")]
    composed = len(degrees) > 1
    spent = Spent(products=1.0 * composed)
    for degree in degrees:
        spent += series(degree)
    levels = sum(map(_levels, degrees)) + composed
    return spent + Spent(bootstraps=_bootstraps(levels))


def _kernel(knobs: Knobs) -> Spent:
    spent = Spent(rotations=14, products=1)
    if knobs.kind == "minimax":
        own = series(knobs.steps)
        return spent + own + Spent(bootstraps=_bootstraps(_levels(knobs.steps) + 1))
    return spent + Spent(products=knobs.steps, bootstraps=_bootstraps(knobs.steps))


def _adapters(knobs: Knobs) -> Spent:
    return len(knobs.sites) * adapter(knobs.rank)


def one_at_a_time(space: Space) -> list[Knobs]:
    """The reference, and every value of a knob that costs anything with all else as there; who
    refreshes, and in which ring, are the columns.
    """
    found = {dataclasses.replace(space.reference, penalty=0.0): None}
    for name, values in (*space.knobs, *space.singly):
        if name not in ("ring", "refresh", "penalty"):
            found |= {
                dataclasses.replace(space.reference, penalty=0.0, **{name: value}): None
                for value in values
                if value != "exact"
            }
    return list(found)


def program_of(knobs: Knobs, config: EncoderConfig) -> Program:
    """The forward pass of one sentence, adapters, pooler and head encrypted."""
    shape = config.replace(lora_rank=knobs.rank, lora_targets=knobs.adapted)
    fit = dataclasses.replace(knobs.fit(_RANGES, margin=0.1), derivatives="cheap")
    case = training_step(shape, "lora", knobs.attention, part="forward", fit=fit, stacked=False)
    return case.program


def tradeoff(path: Path | None, config: EncoderConfig = SIZES["whole"]) -> None:
    """Print a line a configuration, and the same as CSV at the end."""
    space = read_study(path, ["reviews"], None).space
    theirs = PUBLISHED["LoRA, Gaussian"]
    print(
        f"the paper's Table 2, LoRA and Gaussian kernel: inference {theirs.forward:.1f} s, a step "
        f"{theirs.step():.1f} s; with softmax {PUBLISHED['LoRA, softmax'].forward:.1f} and "
        f"{PUBLISHED['LoRA, softmax'].step():.1f} s"
    )
    kernels = {k.kernel: _CIPHERTEXTS * _kernel(k) for k in one_at_a_time(space) if k.steps}
    shown = ", ".join(
        f"{name} {_line(spent, TOP).seconds:.2f}"
        for name, spent in kernels.items()
        if not name.startswith("softmax")
    )
    print(
        f"the kernel of a layer, counted: {shown} s, published softmax {softmax().seconds:.2f}; "
        "Table 12 has 1.02 and 8.99, Table 15 for one ciphertext of six 0.17 and 1.3"
    )
    head = ("configuration", "counted", "counted, a step", "planned", "bootstraps", "levels")
    lines: list[Sequence[object]] = [(*head, "here, bootstraps", "of them", "here, round trips")]
    print("  ".join(map(str, lines[0])))
    for knobs in one_at_a_time(space):
        began = time.process_time()
        own = counted(knobs)
        figures: list[object] = [f"{own.inference:.1f}", f"{own.step:.1f}"]
        try:
            figures += _planned(program_of(knobs, config))
        except (HesimError, MemoryError) as error:
            figures.append(f"not planned: {str(error).splitlines()[0]}")
        lines.append((knobs.label(space.reference), *figures))
        spent = time.process_time() - began
        print("  ".join(map(str, lines[-1])), f" ({spent:.0f} s of CPU)", flush=True)
    csv.writer(sys.stdout, lineterminator="\n").writerows(lines)


def _planned(program: Program) -> Iterator[str]:
    """Seconds, bootstraps and levels at the published prices; then seconds here."""
    ledger = planned(program).ledger
    yield from (f"{ledger.seconds:.2f}", f"{ledger.refreshes}", f"{ledger.depth}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptySlotsWarning)
        alone = hesim.compile(program, RING, refresh_price="bootstrap").ledger
        trips = hesim.compile(program, hesim.CKKSParams(15, 4, 40, 50, 60)).ledger
    yield from (f"{alone.seconds_bootstrapped:.0f}", f"{alone.refreshes}", f"{trips.seconds:.0f}")
