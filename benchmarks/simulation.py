"""What simulated noise costs in a training step: `python -m benchmarks.simulation [batch]`.

Prints the seconds of one jitted step of the demo model with polynomials, without noise and with the
training tier, and their ratio, from one run.
"""

from __future__ import annotations

import sys
import time

import jax
import numpy as np
import optax

from hesim.params import CKKSParams
from models.config import preset
from models.encoder import Model
from models.sites import fit_ranges
from models.train import Batch, collect_ranges, initial_state, make_step, simulated_forward


def main(size: int) -> None:
    config = preset("demo")
    rng = np.random.default_rng(0)
    shape = (size, config.sequence)
    tokens = rng.integers(1, 1000, shape).astype(np.int32)
    batch = Batch(tokens, np.ones(shape, np.float32), rng.integers(0, 2, size))
    exact = Model(config)
    params = exact.init(jax.random.key(0))
    model = exact.with_sites(fit_ranges(config, collect_ranges(exact, params, batch)))
    noisy = simulated_forward(model, CKKSParams(14, 7, 40, 50, 60))
    optimizer = optax.adamw(1e-3)
    steps = {
        "polynomials": jax.jit(make_step(model, optimizer)),
        "with noise": jax.jit(make_step(model, optimizer, forward=noisy)),
    }
    state = initial_state(params, optimizer, jax.random.key(1))
    best = dict.fromkeys(steps, np.inf)
    for name, step in steps.items():
        start = time.perf_counter()
        jax.block_until_ready(step(state, batch))
        print(f"{name}: first call {time.perf_counter() - start:.1f} s")
    for _ in range(20):
        for name, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(state, batch))
            best[name] = min(best[name], time.perf_counter() - start)
    for name, seconds in best.items():
        print(f"{name}: {seconds * 1e3:.1f} ms a step of {size} sentences")
    print(f"ratio: {best['with noise'] / best['polynomials']:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 64)
