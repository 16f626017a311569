"""What simulated noise costs in a training step: `python -m benchmarks.simulation [preset ...]`.

One jitted step of a model of every preset, "demo" with 64 sentences and "paper" with 4 by default,
with polynomials and no noise, with the training tier on its own schedule, and with that of a
Circuit: seconds, interleaved in one run, their ratio, what tracing and compiling take, and peak
memory. The Circuit is the one that runs encrypted; where that one would fill the memory before it
is compiled, that of a narrow model of the same operations, whose noise has other sizes but costs
the same. Weights and tokens are random, which costs the same too.
"""

from __future__ import annotations

import resource
import sys
import time

import jax
import numpy as np
import optax

from experiments.demo.settings import DEMO_RING
from hesim.circuit.circuit import Circuit
from hesim.params import CKKSParams
from models.config import preset
from models.data.batches import Batch
from models.encrypted.forward import forward_circuit, simulated_forward
from models.nn.encoder import Model
from models.sites.sites import fit_ranges
from models.train.classifier import make_step
from models.train.evaluate import collect_ranges
from models.train.step import initial_state

BATCHES = {"demo": 64, "paper": 4}
"""Sentences of a step, by preset; 8 for the others."""

ENCRYPTED = {"demo": 256, "tiny": 32}
"""Sentences of an encrypted batch, of presets whose Circuit compiles in seconds; of the others, a
model as narrow as its heads allow is compiled.
"""

_SECONDS = 40.0
_LEAST = 7


def main(names: list[str]) -> None:
    """Print the figures of these presets, all of `BATCHES` if none is named."""
    for name in names or list(BATCHES):
        measure(name, BATCHES.get(name, 8))


def measure(name: str, size: int) -> None:
    """Print seconds and ratio of the two steps of one preset with `size` sentences."""
    config = preset(name)
    rng = np.random.default_rng(0)
    shape = (size, config.sequence)
    tokens = rng.integers(1, min(1000, config.vocabulary), shape).astype(np.int32)
    batch = Batch(tokens, np.ones(shape, np.float32), rng.integers(0, 2, size))
    exact = Model(config)
    params = exact.init(jax.random.key(0))
    model = exact.with_sites(fit_ranges(config, collect_ranges(exact, params, batch)))
    ring = DEMO_RING if name in ENCRYPTED else CKKSParams(15, 7, 40, 50, 60)
    optimizer = optax.adamw(1e-3)
    steps = {
        "polynomials": jax.jit(make_step(model, optimizer)),
        "with noise": jax.jit(make_step(model, optimizer, forward=simulated_forward(model, ring))),
    }
    state = initial_state(params, optimizer, jax.random.key(1))
    print(
        f"{name}: {config.layers} layers of {config.hidden}, {config.heads} heads, {size} "
        f"sentences of {config.sequence} tokens, {params_count(params) / 1e6:.1f} million weights"
    )
    start = time.perf_counter()
    circuit, label = _circuit(name, model, ring)
    print(
        f"  Circuit of {label}: {len(circuit):,} instructions, compiled in "
        f"{time.perf_counter() - start:.1f} s"
    )
    noisy = simulated_forward(model, ring, circuit=circuit)
    steps["with the Circuit's noise"] = jax.jit(make_step(model, optimizer, forward=noisy))
    for kind, step in steps.items():
        start = time.perf_counter()
        lowered = step.lower(state, batch)
        traced = time.perf_counter() - start
        lowered.compile()
        print(
            f"  {kind}: traced in {traced:.1f} s, compiled in "
            f"{time.perf_counter() - start - traced:.1f} s"
        )
        jax.block_until_ready(step(state, batch))
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    started = time.perf_counter()
    while len(seconds["with noise"]) < _LEAST or time.perf_counter() - started < _SECONDS:
        for kind, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(state, batch))
            seconds[kind].append(time.perf_counter() - start)
    plain = np.array(seconds["polynomials"])
    for kind, times in seconds.items():
        line = f"  {kind}: {min(times) * 1e3:.1f} ms a step (best of {len(times)})"
        if kind != "polynomials":
            ratios = np.array(times) / plain
            line += f"; {min(times) / plain.min():.2f} times, {np.median(ratios):.2f} in the median"
        print(line, flush=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  peak memory of the process: {memory:.1f} GB")


def _circuit(name: str, model: Model, ring: CKKSParams) -> tuple[Circuit, str]:
    """The Circuit whose schedule the steps of this preset follow, and what it is of."""
    if name in ENCRYPTED:
        return forward_circuit(model, ring, ENCRYPTED[name]), f"{ENCRYPTED[name]} sentences"
    heads = model.config.heads
    narrow = model.config.replace(hidden=4 * heads, ffn=8 * heads, sequence=16)
    circuit = forward_circuit(Model(narrow).with_sites(model.sites), ring, 2)
    return circuit, f"2 sentences of 16 tokens in a model of {narrow.hidden}"


def params_count(params: dict) -> int:
    """Numbers in a parameter tree."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(params))


if __name__ == "__main__":
    main(sys.argv[1:])
