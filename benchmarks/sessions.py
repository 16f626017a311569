"""Batches in one session against as many runs: CPU seconds, keys, encoded plaintexts, memory.

The function is two matrix products with a square between them, of one text of 64 tokens, times a
padding mask that changes from batch to batch.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

import he_backend
import hesim
from he_backend.processes import session as processes

TOKENS, FEATURES = 64, 64


def layer(x: jax.Array, w: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """(tokens, features) -> the same."""
    return ((x @ w) ** 2 @ v) * mask[:, None]


def main(count: int = 10) -> None:
    """Print what both ways take for so many batches."""
    rng = np.random.default_rng(0)
    w, v = rng.normal(0, 0.1, (2, FEATURES, FEATURES))
    batches = [rng.uniform(-1, 1, (TOKENS, FEATURES)) for _ in range(count)]
    masks = [(np.arange(TOKENS) < length).astype(float) for length in range(TOKENS - count, TOKENS)]
    params = hesim.CKKSParams(log_n=14, levels=4, scale_bits=40, first_bits=50, special_bits=60)
    program = hesim.trace(layer, batches[0], w, v, masks[0], encrypted=(0,))
    circuit = hesim.compile(program, params)
    ledger = circuit.ledger
    print(
        f"N = 2^{params.log_n}, {len(circuit):,} instructions, {ledger.rotation_keys} rotation "
        f"keys, {ledger.plaintexts:,} plaintexts ({ledger.plaintext_bytes / 1e6:.0f} MB)"
    )
    arguments = [(x, w, v, mask) for x, mask in zip(batches, masks, strict=True)]

    def runs(note: Callable[[he_backend.Progress], None]) -> Iterator[he_backend.Report]:
        for each in arguments:
            yield he_backend.run(program, *each, circuit=circuit, progress=note)

    def session(note: Callable[[he_backend.Progress], None]) -> Iterator[he_backend.Report]:
        with he_backend.session(circuit, progress=note) as session:
            for each in arguments:
                yield session.run(*each)

    apart, together = measure(f"{count} runs", runs), measure("one session", session)
    print(f"CPU seconds, runs / session: {apart / together:.1f}")


def measure(
    name: str, way: Callable[[Callable[[he_backend.Progress], None]], Iterator[he_backend.Report]]
) -> float:
    """Print what a way of running batches takes; CPU seconds of all processes are returned."""
    pids: dict[str, int] = {}
    encoded: list[int] = []
    sizes: list[int] = []
    whole = processes.Session.run

    def noted(held: processes.Session, batch: processes.Batch) -> processes.Result:
        result = whole(held, batch)
        encoded.append(result.spent.encoded)
        own = [_resident(pid) for process, pid in pids.items() if "worker" not in process]
        sizes.append(sum(own))
        return result

    before, started, keys = _cpu(), time.perf_counter(), 0.0
    processes.Session.run = noted  # type: ignore[method-assign]
    try:
        for report in way(lambda progress: pids.update(progress.processes)):
            keys += report.key_seconds
    finally:
        processes.Session.run = whole  # type: ignore[method-assign]
    cpu, wall = _cpu() - before, time.perf_counter() - started
    print(f"{name}: {cpu:.1f} CPU seconds, {wall:.1f} wall, {keys:.1f} for keys")
    print(f"  plaintexts encoded: {', '.join(map(str, encoded))}")
    print(f"  MB of server and clients: {', '.join(f'{size / 1e6:.0f}' for size in sizes)}")
    return cpu


def _cpu() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
