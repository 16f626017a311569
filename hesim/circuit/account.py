"""The ledger of a Circuit: every count from the instructions themselves."""

from __future__ import annotations

import numpy as np

from hesim.circuit.circuit import Kind, Ledger, Pack
from hesim.circuit.cost import BOOTSTRAP_SECONDS, instruction_seconds, refresh_seconds
from hesim.params import CKKSParams

__all__ = ["ledger"]


def ledger(
    params: CKKSParams,
    data: dict[str, np.ndarray],
    packs: tuple[Pack, ...],
    outputs: int,
    price: float | None,
) -> Ledger:
    """Counts and predicted seconds.

    Args:
      data: instruction arrays (`levels.arrays`).
      outputs: ciphertexts that are decrypted at the end.
      price: seconds of a refresh where the caller set one, for `seconds_bootstrapped`.
    """
    kind, level, ptr, arg = data["kind"], data["level"], data["arg_ptr"], data["arg"]
    terms = np.diff(ptr)
    seconds = refreshed = 0.0
    consumed = np.zeros(len(kind), np.int64)
    rounds = np.zeros(len(kind), np.int64)
    log_n = params.log_n
    scalar = np.array([p.scalar for p in packs] or [False])[data["plain_pack"]]
    for i in range(len(kind)):
        args = arg[ptr[i] : ptr[i + 1]]
        if kind[i] == Kind.DOT:
            args = np.concatenate([args, data["arg2"][ptr[i] : ptr[i + 1]]])
        k = int(kind[i])
        if len(args):
            consumed[i] = consumed[args].max()
            rounds[i] = rounds[args].max()
        below = int(level[args[0]]) if len(args) else int(level[i])
        if k == Kind.REFRESH:
            refreshed += refresh_seconds(below, int(level[i]), log_n)
            consumed[i] = 0
            rounds[i] += 1
        else:
            numbers = k == Kind.DOT_PLAIN and bool(scalar[data["arg2"][ptr[i]]])
            seconds += instruction_seconds(k, below, int(terms[i]), log_n, scalar=numbers)
            consumed[i] += k == Kind.RESCALE
    primes = data["plain_level"].astype(np.float64) + 1
    ring = 2.0 ** (log_n - 14) * log_n / 14
    seconds += (
        float(np.sum(np.where(scalar, 0.05 + 0.06 * primes, 1.2 + 0.13 * primes))) * 1e-3 * ring
    )
    steps = len(np.unique(data["param"][kind == Kind.ROTATE]))
    relinearizes = bool(np.any(kind == Kind.RELINEARIZE))

    def count(k: int) -> int:
        return int(np.sum(kind == k))

    def inner(k: int) -> int:
        return int(np.sum(terms[kind == k]))

    refreshes = count(Kind.REFRESH)
    each = BOOTSTRAP_SECONDS if price is None or not np.isfinite(price) else price
    return Ledger(
        depth=int(consumed.max(initial=0)),
        refreshes=refreshes,
        refresh_rounds=int(rounds.max(initial=0)),
        rotations=count(Kind.ROTATE),
        relinearizations=count(Kind.RELINEARIZE),
        rescales=count(Kind.RESCALE),
        additions=inner(Kind.ADD)
        - count(Kind.ADD)
        + inner(Kind.DOT)
        - count(Kind.DOT)
        + inner(Kind.DOT_PLAIN)
        - count(Kind.DOT_PLAIN),
        plain_additions=count(Kind.ADD_PLAIN),
        plain_products=inner(Kind.DOT_PLAIN),
        products=inner(Kind.DOT),
        drops=count(Kind.DROP),
        inputs=count(Kind.INPUT),
        outputs=outputs,
        rotation_keys=steps,
        key_bytes=params.key_bytes() * (steps + relinearizes),
        plaintexts=len(data["plain_pack"]),
        seconds=seconds + refreshed,
        seconds_bootstrapped=seconds + refreshes * each,
    )
