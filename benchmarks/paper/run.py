"""One sentence through a whole model, encrypted from its rows to its logits, by processes.

Plaintexts are encoded in the workers just before their use; what is done is kept in a folder, from
which an interrupted run goes on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

import he_backend
import hesim
from benchmarks.paper.cases import Sentence, key_holder, sentence, shapes
from benchmarks.paper.memory import FamilyPeak
from he_backend.processes.messages import Progress
from hesim.circuit.circuit import Circuit
from models.config import EncoderConfig

__all__ = ["run", "show_plan"]

_EVERY = 15.0
"""Seconds between two lines of progress."""


@dataclass
class _Lines:
    """Progress as lines of a log."""

    told: float = -_EVERY

    def __call__(self, p: Progress) -> None:
        if p.elapsed - self.told < _EVERY and p.tasks_total:
            return
        self.told = p.elapsed
        left = f", {p.eta:,.0f} s left" if np.isfinite(p.eta) else ""
        print(
            f"    {p.elapsed:6.0f} s  {p.fraction:6.1%}  {p.tasks_done:,} of {p.tasks_total:,} "
            f"tasks{left}  {p.op}",
            flush=True,
        )


def show_plan(circuit: Circuit, seconds: float) -> None:
    """Print what is planned, compiled in `seconds`."""
    ledger = circuit.ledger
    print(
        f"  compiled                 {seconds:8.1f} s\n"
        f"  planned                  {ledger.rotations:,} rotations, {ledger.products:,} products, "
        f"{ledger.plain_products:,} by plaintexts, {ledger.relinearizations:,} relinearizations, "
        f"{ledger.refreshes:,} refreshed in {ledger.refresh_rounds} rounds\n"
        f"  keys                     {ledger.rotation_keys} rotation keys, all "
        f"{ledger.key_bytes / 1e9:.2f} GB; {ledger.plaintexts:,} plaintexts, "
        f"{ledger.plaintext_bytes / 1e9:.0f} GB if all were kept\n"
        f"  predicted                {ledger.seconds:8.1f} core-seconds with encoding",
        flush=True,
    )


def run(config: EncoderConfig, log_n: int, folder: Path | None, workers: int) -> bool:
    """Encrypt one sentence, evaluate it and print predictions beside outcomes.

    Args:
      config: of the model. log_n: of the ring.
      folder: where an interrupted run leaves its work; None for a temporary one.
      workers: processes that evaluate.

    Returns:
      Whether the logits are within 2^-10 of those of the polynomial model.
    """
    ring = key_holder(log_n)
    print(f"{shapes(config)}: {ring}", flush=True)
    case = sentence(config)
    started = time.perf_counter()
    circuit = hesim.compile(case.program, ring)
    show_plan(circuit, time.perf_counter() - started)
    started = time.perf_counter()
    with FamilyPeak() as memory:
        report = he_backend.run(
            case.program,
            *case.args,
            circuit=circuit,
            run_dir=folder,
            workers=workers,
            clients=1,
            progress=_Lines(),
        )
    wall = time.perf_counter() - started
    exact = _polynomial(case)
    logits = np.asarray(report.outputs)
    error = float(np.abs(logits - exact).max())
    assert report.core_seconds is not None
    print(
        f"  seconds                  {report.evaluation_seconds:8.1f} encrypted on "
        f"{workers} workers, "
        f"{report.key_seconds:.1f} for keys, {wall:.1f} with checks in the clear\n"
        f"  core-seconds             {report.core_seconds:8.1f}, predicted "
        f"{circuit.ledger.seconds:.1f}: {circuit.ledger.seconds / report.core_seconds:.2f} of it\n"
        f"  memory                   {memory.peak / 1e9:8.2f} GB of all processes at the peak; "
        f"server, workers and client by themselves {report.peak_bytes / 1e9:.2f}, predicted "
        f"{report.predicted_peak_bytes / 1e9:.2f}\n"
        f"  logits                   {logits.ravel()}, of the polynomial model {exact.ravel()}\n"
        f"  largest error            {error:8.1e} = 2^{np.log2(max(error, 2.0**-60)):.1f}",
        flush=True,
    )
    return error <= 2.0**-10


def _polynomial(case: Sentence) -> np.ndarray:
    """Logits of the polynomial model in the clear."""
    found = jax.jit(case.model.encrypted_forward)(*case.args)
    return np.asarray(found, np.float64)
