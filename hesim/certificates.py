"""Certificates: what `hesim.certify` finds about each operation, and how it gathers it.

Imports no JAX.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hesim.circuit.circuit import Circuit
from hesim.display import html_block, html_table, shown_as_text

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Certificate", "OpCertificate", "Record", "Left"]

_SAMPLE = 4096
_WORST = 5


@dataclass(frozen=True)
class OpCertificate:
    """Errors of one operation's result, over its elements and over keys.

    Attributes:
      name, source, level: of the operation; level of its result, -1 if it has no ciphertext.
      std: root mean square error in units of the values; NaN if it has no ciphertext.
      standard_error: of `std`, from its spread over keys, relative; infinite for one key.
      q999: 99.9 % quantile of absolute errors.
      worst: slots with the largest errors over keys and ciphertexts, as (slot, std).
      by_key: `std` under each key alone.
    """

    name: str
    source: str
    level: int
    std: float
    standard_error: float
    q999: float
    worst: tuple[tuple[int, float], ...]
    by_key: tuple[float, ...] = ()


@dataclass(frozen=True)
class Left:
    """What a run of a Circuit with carried ciphertexts leaves for the next: arrays as in the walk.

    Attributes:
      runs: how many there were, this one included.
      weight: |S|^2 of the secret keys.
      switches: errors of the switching keys' first digits, by rotation step.
      ciphers: message and errors, by the input instruction that they are at the next run.
      common: errors that all bootstraps have in common; None before the first.
    """

    runs: int
    weight: np.ndarray
    switches: dict[int, tuple[np.ndarray, np.ndarray | None]]
    ciphers: dict[int, tuple[np.ndarray, np.ndarray]]
    common: np.ndarray | None = None


@dataclass(frozen=True)
class Certificate:
    """What a Circuit's run is predicted to be wrong by.

    Attributes:
      ops: one per operation of the Circuit, cumulative: errors from all causes before it.
      outputs: one per result leaf, None where it is public; with what decryption adds.
      keys: secret keys sampled.
      seconds: wall time of the whole, in seconds.
      spare_bits: by level, bits to spare: log2 of half the modulus over a bound on the coefficients
        of any message there, intermediate ones included.
      left: what the next run's `after=` goes on from; None if the Circuit carries nothing.

    Examples:
      >>> import hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> x = np.linspace(-1, 1, 64)
      >>> circuit = hesim.compile(hesim.trace(lambda x: x * x, x), params)
      >>> found = hesim.certify(circuit, (x,), keys=2)
      >>> found.ops[0].name, found.ops[0].level, min(found.spare_bits.values()) > 0
      ('mul', 0, True)
    """

    ops: tuple[OpCertificate, ...]
    outputs: tuple[OpCertificate | None, ...]
    keys: int
    seconds: float
    spare_bits: dict[int, float]
    left: Left | None = field(default=None, repr=False, compare=False)

    def table(self) -> str:
        """Operations with their errors, as text."""
        lines = [f"{'operation':<20} {'level':>5} {'log2 std':>9} {'log2 q999':>9}  source"]
        for op in self.ops:
            if op.level >= 0:
                bits = (f"{math.log2(x):9.2f}" if x > 0 else f"{'-':>9}" for x in (op.std, op.q999))
                lines.append(f"{op.name:<20} {op.level:>5} {' '.join(bits)}  {op.source}")
        return "\n".join(lines)

    __str__ = table

    _repr_pretty_ = shown_as_text

    def _repr_html_(self) -> str:
        rows = [("operation", "level", "log2 std", "log2 q999", "source")]
        for op in self.ops:
            if op.level >= 0:
                std, q999 = (f"{math.log2(x):.2f}" if x > 0 else "-" for x in (op.std, op.q999))
                rows.append((op.name, str(op.level), std, q999, op.source))
        title = f"Errors over {self.keys} secret keys, cumulative"
        return html_block(title, inner=html_table(rows))


class Record:
    """Errors of one tensor, gathered ciphertext by ciphertext: of those in `among`; of all where it
    is None, or has none of the tensor's.
    """

    def __init__(self, circuit: Circuit, tap: Any, keys: int, among: frozenset[int] | None = None):
        self.tap = tap
        self.members = tap.batch if tap.batch_axis >= 0 else 1
        self.level = int(circuit.level[tap.ciphers].min()) if len(tap.ciphers) else -1
        self.squares = np.zeros(keys)
        self.by_slot = np.zeros(circuit.slots)
        there = tap.cipher > -2
        if among is not None and among.isdisjoint(tap.ciphers.tolist()):
            among = None
        if among is not None:
            there &= (tap.cipher < 0) | np.isin(tap.cipher, list(among))
        self.count = int(np.sum(there)) * self.members
        self.sample: list[np.ndarray] = []
        order = np.argsort(tap.cipher, kind="stable")
        names, starts = np.unique(tap.cipher[order], return_index=True)
        columns = np.split(tap.column[order], starts[1:])
        kept = [(int(c), k) for c, k in zip(names, columns) if c >= 0]
        self.columns = {c: k for c, k in kept if among is None or c in among}
        self.stride = max(1, self.count // _SAMPLE) | 1
        self.start = 0

    def add(self, cipher: int, errors: Float[np.ndarray, "keys slots"]) -> None:
        tap, columns = self.tap, self.columns[cipher]
        slots = self._slots(columns)
        found = errors[:, slots] * tap.gain
        squares = found**2
        self.squares += squares.sum(axis=1)
        self.by_slot += np.bincount(slots, squares.mean(axis=0), len(self.by_slot))
        # Each key starts elsewhere: slots near the first ones are the worst of all.
        for row in found:
            self.sample.append(np.abs(row[self.start :: self.stride]))
            self.start = (self.start + 1) % self.stride

    def _slots(self, columns: np.ndarray) -> np.ndarray:
        return (columns[:, None] * self.tap.width + np.arange(self.members)).reshape(-1)

    def certificate(self, name: str, source: str, added: float = 0.0) -> OpCertificate:
        """`added`: variance of independent noise, as a multiple of the error's own."""
        if self.level < 0:
            return OpCertificate(name, source, -1, math.nan, math.inf, math.nan, ())
        wider = math.sqrt(1.0 + added)
        each = self.squares / max(self.count, 1)
        mean, keys = float(each.mean()), len(each)
        spread = math.inf
        if keys > 1:
            spread = float(each.std(ddof=1)) / (2 * mean * math.sqrt(keys)) if mean else 0.0
        uses = np.zeros(len(self.by_slot))
        for columns in self.columns.values():
            uses += np.bincount(self._slots(columns), minlength=len(uses))
        by_slot = np.sqrt(self.by_slot / np.maximum(uses, 1.0))
        worst = np.argsort(by_slot)[::-1][:_WORST]
        return OpCertificate(
            name,
            source,
            self.level,
            wider * math.sqrt(mean),
            spread,
            wider * float(np.quantile(np.concatenate(self.sample), 0.999, method="higher")),
            tuple((int(s), wider * float(by_slot[s])) for s in worst if by_slot[s] > 0),
            tuple((wider * np.sqrt(each)).tolist()),
        )
