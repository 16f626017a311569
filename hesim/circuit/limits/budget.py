"""Circuits that run within a number of bytes: with as many rotation keys as there is room for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hesim.circuit.circuit import Kind, PlaintextFamily
from hesim.circuit.cost import instruction_seconds
from hesim.circuit.costs.bootstraps import BootstrapMemory, bootstrap_memory
from hesim.circuit.costs.memory import (
    KEPT_PLAINTEXTS,
    cipher_bytes,
    evaluator_bytes,
    plaintext_bytes,
)
from hesim.circuit.costs.table import current
from hesim.circuit.limits.rotation_keys import chosen_steps, composed
from hesim.circuit.refresher import KEY_HOLDER, Refresher
from hesim.errors import OverBudgetError
from hesim.params import CKKSParams

__all__ = ["peak_bytes", "within"]

_TRIES = 4
"""Times that the keys are chosen, since ciphertexts between rotations take memory, too."""


def peak_bytes(
    params: CKKSParams,
    data: Mapping[str, np.ndarray],
    packs: tuple[PlaintextFamily, ...],
    slots: int,
    refresher: Refresher = KEY_HOLDER,
) -> tuple[int, int]:
    """Bytes of one process that runs these instructions, and of the evaluation keys in them.

    data: as of `emission.arrays`. slots: effective ones, of which the refresher, if it bootstraps,
    refreshes as many.
    """
    steps, relinearizes = _keys(data)
    keys = params.key_bytes(len(steps) + relinearizes)
    scalar = np.array([p.scalar for p in packs] or [False])[data["plain_pack"]]
    plain = plaintext_bytes(params, data["plain_level"], scalar)
    alive = cipher_bytes(params, data)
    vectors = data["plain_level"][~scalar]
    boots = BootstrapMemory()
    if np.any(data["kind"] == Kind.REFRESH):
        boots = bootstrap_memory(params, refresher, slots)
    keys += boots.keys
    kept = min(plain, KEPT_PLAINTEXTS) + boots.matrices
    return evaluator_bytes(params, keys, alive, kept, vectors), keys


def _keys(data: Mapping[str, np.ndarray]) -> tuple[list[int], bool]:
    """Rotation steps in use, and whether anything is relinearized."""
    kind = data["kind"]
    steps = np.unique(data["param"][kind == Kind.ROTATE]).tolist()
    return steps, bool(np.any(kind == Kind.RELINEARIZE))


def within(
    params: CKKSParams,
    data: dict[str, np.ndarray],
    packs: tuple[PlaintextFamily, ...],
    slots: int,
    memory: int,
    name: str,
    refresher: Refresher = KEY_HOLDER,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """These instructions, with rotations composed of others if memory does not hold all keys, and
    the new number of each.

    Args:
      data, packs: instructions. slots: that rotations are cyclic in.
      memory: bytes. name: of the program. refresher: who refreshes.

    Raises:
      OverBudgetError: not even with the fewest keys do they fit.
    """
    count = len(data["kind"])
    peak, _ = peak_bytes(params, data, packs, slots, refresher)
    if peak <= memory:
        return data, np.arange(count)
    each = current().key_factor * params.key_bytes()
    uses = _seconds_by_step(params, data)
    _, relinearizes = _keys(data)
    fixed = peak - each * len(uses)
    for _ in range(_TRIES):
        steps = chosen_steps(uses, slots, int((memory - fixed) // each))
        if steps is None:
            break
        found, number = composed(data, steps, slots)
        peak, _ = peak_bytes(params, found, packs, slots, refresher)
        if peak <= memory:
            return found, number
        fixed = peak - each * (len(steps) if steps else 0)
    least = int(fixed + each * min(len(uses), 1))
    boots = ", keys and matrices of bootstraps" if refresher.own_levels else ""
    raise OverBudgetError(
        f"{name} takes at least {least / 1e6:,.0f} MB to evaluate under {params}, and "
        f"memory={memory:,} bytes: of these, {(fixed - each * relinearizes) / 1e6:,.0f} MB are the "
        f"machine, ciphertexts and plaintexts{boots}, and each key takes {each / 1e6:,.1f} MB "
        f"({len(uses) + relinearizes} without a limit). Use more memory, fewer levels, a "
        "smaller ring or a smaller batch.",
        least,
        memory,
    )


def _seconds_by_step(params: CKKSParams, data: Mapping[str, np.ndarray]) -> dict[int, float]:
    """Predicted seconds of the rotations by each step."""
    rotations = np.flatnonzero(data["kind"] == Kind.ROTATE)
    pairs = np.stack([data["param"][rotations], data["level"][rotations]], axis=1)
    distinct, counts = np.unique(pairs, axis=0, return_counts=True)
    out: dict[int, float] = {}
    for (step, level), times in zip(distinct.tolist(), counts.tolist(), strict=True):
        seconds = times * instruction_seconds(Kind.ROTATE, level, 1, params.log_n)
        out[step] = out.get(step, 0.0) + seconds
    return out
