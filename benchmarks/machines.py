"""One traced function on plain vectors and encrypted: seconds of both, and of what was predicted.

The function is a head of Gaussian-kernel attention for 64 sentences of 16 tokens side by side.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np

import approx
import he_backend
import hesim

SENTENCES, TOKENS, FEATURES = 64, 16, 16


def attention(x: jax.Array, w: jax.Array) -> jax.Array:
    """exp(-|q - k|^2) v for one head: (sentences, tokens, features) -> the same."""
    q, k, v = (x @ w[i] for i in range(3))
    distance = jnp.sum((q[:, :, None] - k[:, None]) ** 2, axis=-1)
    return EXP(-distance) @ v


EXP = approx.fit("exp", (-2.0, 0.0), degree=7)


def main() -> None:
    """Print seconds of the slot machine and of Pyfhel, and their ratio."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-0.5, 0.5, (SENTENCES, TOKENS, FEATURES))
    w = rng.uniform(-0.2, 0.2, (3, FEATURES, FEATURES))
    params = hesim.CKKSParams(log_n=14, levels=3, scale_bits=40, first_bits=50, special_bits=60)
    program = hesim.trace(attention, x, w, encrypted=(0,))
    start = time.perf_counter()
    circuit = hesim.compile(program, params)
    compiled = time.perf_counter() - start
    ledger = circuit.ledger
    print(
        f"{len(program.ops)} operations, {len(circuit.kind):,} instructions, "
        f"{ledger.refreshes} refreshes; compiled in {compiled:.1f} s"
    )
    seconds = {}
    for backend in ("slots", "pyfhel"):
        report = he_backend.run(program, x, w, circuit=circuit, backend=backend)
        seconds[backend] = report.evaluation_seconds
        print(
            f"{backend:<8} {seconds[backend]:8.2f} s wall, "
            f"{report.core_seconds:8.2f} core-seconds, largest error {report.max_error:.1e}"
        )
    print(f"predicted {ledger.seconds:7.2f} core-seconds for Pyfhel")
    print(f"pyfhel / slots: {seconds['pyfhel'] / seconds['slots']:.0f}")
