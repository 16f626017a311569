"""A convolution net against the same with patches cut by the client, and tables of people's own.

`python -m benchmarks.tables_and_nets [--rows 100 500 1797] [--columns 4 16 64] [--turns 3]` prints
what is planned, compiled, predicted and measured under Pyfhel, in one process, of TenSEAL's example
for MNIST (28 x 28, convolution of 4 x 7 x 7 with stride 3, square, dense 64, square, dense 10; the
weights are random), written with `conv_general_dilated` and on patches that lie side by side; then,
of variance, centring, standardising and a least-squares gradient of tables, the plans.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: figures are for one core

import argparse
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

import approx
import hesim
from he_backend.local import run_local
from he_backend.machines.pyfhel.machine import PyfhelMachine
from hesim.circuit.circuit import Circuit
from hesim.circuit.plain.execute import Executor
from hesim.params import CKKSParams
from hesim.program import Program

__all__ = ["NETS", "TABLES", "image", "main", "patches", "ring"]

_RNG = np.random.default_rng(0)
KERNEL = _RNG.normal(size=(7, 7, 1, 4)) / 7
BIASES = [_RNG.normal(size=n) / 10 for n in (4, 64, 10)]
HIDDEN, LAST = _RNG.normal(size=(256, 64)) / 16, _RNG.normal(size=(64, 10)) / 8
NHWC = ("NHWC", "HWIO", "NHWC")


def ring() -> CKKSParams:
    """N = 2^14 and six levels at 128 bits, for the net."""
    return CKKSParams(14, 6, 30, 40, 45)


def convolved(x: Any) -> Any:
    """The net on an image (28, 28): logits (10,)."""
    y = lax.conv_general_dilated(
        x[None, :, :, None], jnp.asarray(KERNEL), (3, 3), "VALID", dimension_numbers=NHWC
    )
    return _dense(y[0])


def on_patches(x: Any) -> Any:
    """The net on the patches of an image (64, 49)."""
    return _dense(jnp.einsum("pt,tc->pc", x, KERNEL.reshape(49, 4)))


def _dense(y: Any) -> Any:
    y = jnp.square(y + BIASES[0]).reshape(-1)
    return jnp.square(y @ HIDDEN + BIASES[1]) @ LAST + BIASES[2]


def image() -> np.ndarray:
    """Numbers from 0 to 1."""
    return np.random.default_rng(1).random((28, 28))


def patches(x: np.ndarray) -> np.ndarray:
    """What the kernel sees of an image, (64, 49)."""
    starts = range(0, 22, 3)
    return np.stack([x[i : i + 7, j : j + 7].reshape(-1) for i in starts for j in starts])


NETS: dict[str, tuple[Callable[..., Any], Callable[[], np.ndarray]]] = {
    "convolution": (convolved, image),
    "patches by the client": (on_patches, lambda: patches(image())),
}

INVERSE_ROOT = approx.fit("inv_sqrt", (0.5, 2.0), degree=7)


def centred(x: Any) -> Any:
    """Columns without their means."""
    return x - x.mean(0)


def standardised(x: Any) -> Any:
    """Columns without their means, over their deviations."""
    c = centred(x)
    return c * INVERSE_ROOT((c * c).mean(0))


def gradient(x: Any, y: Any, w: Any) -> Any:
    """Of half the mean square of x w - y."""
    return x.T @ (x @ w - y) / x.shape[0]


TABLES: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "variance": (lambda x: jnp.var(x, 0), (0,)),
    "centring": (centred, (0,)),
    "standardising": (standardised, (0,)),
    "gradient, public w": (gradient, (0, 1)),
    "gradient, all encrypted": (gradient, (0, 1, 2)),
}
"""(function, encrypted arguments)."""


def main(arguments: list[str] | None = None) -> int:
    """Print the figures; returns 0."""
    parser = argparse.ArgumentParser(description="A convolution net, and tables.")
    parser.add_argument("--rows", type=int, nargs="*", default=[100, 500, 1797])
    parser.add_argument("--columns", type=int, nargs="*", default=[4, 16, 64])
    parser.add_argument("--turns", type=int, default=3, help="encrypted runs of each net")
    chosen = parser.parse_args([] if arguments is None else arguments)
    _show_nets(chosen.turns)
    _show_tables(chosen.rows, chosen.columns)
    return 0


def _show_nets(turns: int) -> None:
    print(f"nets: {ring()}, without refreshes", flush=True)
    runs = {name: _Net(fn, make()) for name, (fn, make) in NETS.items()}
    for _ in range(turns):
        for run in runs.values():
            run.once()
    for name, run in runs.items():
        ledger = run.circuit.ledger
        print(
            f"  {name:24s} {run.compiled:5.1f} s to compile; {ledger.inputs} ciphertexts in, "
            f"{ledger.rotations} rotations by {ledger.rotation_keys} keys, {ledger.products} "
            f"products, {ledger.plain_products} by plaintexts; {ledger.seconds:.3f} s predicted, "
            f"{min(run.spent, default=0.0):.3f} measured; error {run.error:.1e}"
        )
    one, other = runs.values()
    predicted = one.circuit.ledger.seconds / other.circuit.ledger.seconds
    measured = f", {min(one.spent) / min(other.spent):.2f} measured" if turns else ""
    print(f"  convolution / patches    {predicted:.2f} predicted{measured}", flush=True)


class _Net:
    """A net compiled, with keys, and what its encrypted runs take in CPU seconds."""

    def __init__(self, fn: Callable[..., Any], x: np.ndarray):
        program = hesim.trace(fn, x)
        started = time.process_time()
        self.circuit: Circuit = hesim.compile(program, ring(), interactive=False)
        self.compiled = time.process_time() - started
        self.spent: list[float] = []
        self.error = 0.0
        self._exact = np.asarray(program(x, precision="float64"))
        self._inputs = [x]
        self._operands = self.circuit.publics.evaluate(program.flatten((x,)))
        self._machine: PyfhelMachine | None = None

    def once(self) -> None:
        circuit = self.circuit
        if self._machine is None:
            steps = circuit.rotation_steps
            self._machine = PyfhelMachine.generate(circuit.params, steps, circuit.slots)
            self._executor = Executor(circuit, self._machine, self._operands, repeated=True)
        (tap,) = circuit.outputs
        assert tap is not None
        decrypted = sorted({int(c) for c in tap.ciphers})
        started = time.thread_time()
        vectors, _ = run_local(
            circuit,
            self._machine,
            self._inputs,
            self._operands,
            decrypted,
            executor=self._executor,
        )
        self.spent.append(time.thread_time() - started)
        self.error = float(np.abs(tap.read(vectors) - self._exact).max())


def table(fn: Callable[..., Any], encrypted: tuple[int, ...], rows: int, columns: int) -> Program:
    """A function of a table traced, with as many arguments as it has."""
    rng = np.random.default_rng(0)
    args = rng.normal(size=(rows, columns)), rng.normal(size=rows), rng.normal(size=columns)
    return hesim.trace(fn, *args[: 3 if fn is gradient else 1], encrypted=encrypted)


def _show_tables(rows: list[int], columns: list[int]) -> None:
    params = CKKSParams(14, 6, 40, 50, 60)
    print(f"\ntables: {params}")
    print("  rows cols" + " " * 26 + "keys (of) rotations  compile  predicted")
    for n in rows:
        for d in columns:
            for name, (fn, encrypted) in TABLES.items():
                program = table(fn, encrypted, n, d)
                started = time.process_time()
                ledger = hesim.compile(program, params).ledger
                spent = time.process_time() - started
                print(
                    f"  {n:4d} {d:4d} {name:24s} {ledger.rotation_keys:6d} "
                    f"({math.floor(3 * math.log2(n) + 16)}) {ledger.rotations:8d} {spent:7.1f} s "
                    f"{ledger.seconds:8.2f} s",
                    flush=True,
                )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
