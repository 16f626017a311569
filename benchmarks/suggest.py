"""What `hesim.suggest` says of six programs, and whether an encrypted run of its answers holds it.

`python -m benchmarks.suggest [program ...] [--verify program ...] [--bits 16]` prints, for each
program, the parameters that are suggested, how long the search took, and its table of alternatives.
Programs after `--verify`, all of them where it names none, are then run encrypted under the
suggested parameters: precision asked for, predicted and measured in bits, seconds predicted and
taken, and memory at the peak.
`python -m benchmarks suggest` searches for the four circuits of `benchmarks.circuit_cases` and
verifies two of them.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

import he_backend
import hesim
from benchmarks.circuit_cases import CASES, CircuitCase
from benchmarks.lora_step import lora_step
from experiments.demo.settings import Settings
from models.data.batches import Batch
from models.nn.encoder import Model
from models.sites.sites import fit_ranges
from models.train.evaluate import collect_ranges

__all__ = ["PROGRAMS", "main"]


def demo() -> CircuitCase:
    """The demo's forward pass with random weights, on 256 sentences of random words."""
    settings = Settings()
    config = settings.config
    tokens = np.random.default_rng(0).integers(3, config.vocabulary, (256, config.sequence))
    data = Batch(tokens, np.ones(tokens.shape, np.float32), np.zeros(len(tokens), np.int32))
    exact = Model(config)
    params = exact.init(jax.random.key(0))
    ranges = collect_ranges(exact, params, data)
    model = exact.with_sites(fit_ranges(config, ranges, settings.recipe.fit))
    args = (params, np.asarray(model.embed(params, data.tokens)), data.mask)
    return CircuitCase(hesim.trace(model.encrypted_forward, *args, encrypted=(1,)), args)


PROGRAMS: dict[str, Callable[[], CircuitCase]] = {
    **CASES,
    "demo": demo,
    "lora step": lambda: CircuitCase(*lora_step()),
}


def main(names: list[str]) -> bool:
    """Print suggestions and verifications.

    Returns:
      Whether every run that was verified has the precision that was asked for, but for the tenth
      of a bit that `suggest` allows and another for the chance of one key.
    """
    parser = argparse.ArgumentParser(prog="benchmarks.suggest", description=__doc__)
    parser.add_argument(
        "programs", nargs="*", choices=[[], *PROGRAMS], help="default: the circuits"
    )
    parser.add_argument("--verify", nargs="*", choices=list(PROGRAMS))
    parser.add_argument("--bits", type=float, default=16.0, help="precision asked for")
    chosen = parser.parse_args(names)
    verified = ["attention", "layer norm"] if chosen.verify is None else chosen.verify
    wanted = dict.fromkeys([*(chosen.programs or CASES), *verified])
    verified = verified or list(wanted)
    held = True
    for name in wanted:
        case = PROGRAMS[name]()
        started = time.perf_counter()
        found = hesim.suggest(case.program, bits=chosen.bits, args=case.args)
        seconds = time.perf_counter() - started
        print(f"\n{name}: {len(case.program.ops)} operations, searched in {seconds:.0f} s")
        print(found, flush=True)
        if name in verified:
            held &= _verify(case, found, chosen.bits)
    return held


def _verify(case: CircuitCase, found: hesim.Suggestion, bits: float) -> bool:
    report = he_backend.run(case.program, *case.args, params=found.params)
    leaves = (jax.tree.leaves(report.outputs), jax.tree.leaves(report.exact))
    errors = np.concatenate(
        [
            np.ravel(np.asarray(a) - np.asarray(b))
            for a, b, var in zip(*leaves, case.program.outputs, strict=True)
            if var.encrypted
        ]
    )
    measured = -math.log2(float(np.sqrt(np.mean(errors.astype(float) ** 2))))
    holds = measured >= bits - 0.2
    print(
        f"encrypted: {bits:.1f} bits asked for, {found.bits:.2f} predicted, {measured:.2f} "
        f"measured: {'holds' if holds else 'DOES NOT HOLD'}; {found.seconds:.1f} core seconds "
        f"predicted, {report.core_seconds:.1f} taken; keys of {found.key_bytes / 2**20:.0f} MiB, "
        f"{report.peak_bytes / 2**20:.0f} MiB in all processes at the peak",
        flush=True,
    )
    return holds


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1:]))
