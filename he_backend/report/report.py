"""Report: what a run returns, and how far each operation was from exact and from predicted."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from he_backend.report.environment import environment
from he_backend.report.verdict import verdict
from hesim.circuit.refresher import BOOTSTRAP_SECONDS, KEY_HOLDER, Refresher
from hesim.display import html_block, html_table, shown_as_text
from hesim.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from he_backend.report.intervals import Overall
    from hesim.circuit.circuit import Circuit
    from hesim.circuit.costs.spending import Ledger
    from hesim.params import CKKSParams
    from hesim.program import Program

__all__ = ["OpRecord", "Report", "Subject"]


@dataclass(frozen=True)
class OpRecord:
    """One operation of the Program in a comparing run.

    Attributes:
      name: primitive.
      source: the caller's file and line.
      level: lowest level of its result's ciphertexts, -1 if they were not looked at.
      measured_std: root mean square of (decrypted - exact), in units of the values.
      predicted_std: the same from simulation under several random keys.
      measured_q999, predicted_q999: 99.9 % quantile of the absolute error.
      seconds: CPU seconds that workers and clients spent on it, summed over processes.
      minimum, maximum: range of the exact values.
      low, high: prediction interval of measured_std, given its operands' errors: see
        `he_backend.report.intervals`; wide enough for all operations of the run together.
      chance: probability that a sound run has some operation as far from its prediction as this.
      unjudged: why there is no interval, in a comparing run; empty where there is one.
      elements, size: elements of the result that were compared, and that it has.
      predicted_seconds: CPU seconds for one core, without the encoding of plaintexts.
      refreshes: ciphertexts that are refreshed for it.
      function, degree, domain: of a polynomial: what it stands in for, and the intervals on which
        it was fitted.
      met: range of what it was fed; None for other operations.
      outside: how many values of that were outside its domain.

    Examples:
      >>> import he_backend, hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> x = np.linspace(-1, 1, 64)
      >>> program = hesim.trace(lambda x: x * x, x)
      >>> report = he_backend.run(
      ...     program, x, params=params, backend="slots", compare=True, keys=2)
      >>> op = report.ops[0]
      >>> op.name, op.level, op.measured_std < op.predicted_std  # slots adds no noise
      ('mul', 0, True)
    """

    name: str
    source: str
    level: int
    measured_std: float
    predicted_std: float
    measured_q999: float
    predicted_q999: float
    seconds: float
    minimum: float = 0.0
    maximum: float = 0.0
    low: float = 0.0
    high: float = math.inf
    chance: float = math.nan
    unjudged: str = ""
    elements: int = 0
    size: int = 0
    predicted_seconds: float = math.nan
    refreshes: int = 0
    function: str = ""
    degree: int = 0
    domain: tuple[tuple[float, float], ...] = ()
    met: tuple[float, float] | None = None
    outside: int = 0

    @property
    def label(self) -> str:
        """Its name; of a polynomial, the function that it stands in for."""
        return f"{self.name} {self.function}".rstrip()

    @property
    def place(self) -> str:
        """Level of its result, or why there is none, for tables."""
        if self.level >= 0:
            return str(self.level)
        return "no ciphertext" if self.elements else "with a later one"

    @property
    def judged(self) -> bool:
        """Whether its error was measured and held against an interval."""
        return not self.unjudged and not math.isnan(self.measured_std) and self.high < math.inf

    @property
    def ratio(self) -> float:
        """Measured over predicted std; NaN where one is zero."""
        both = self.measured_std > 0 and self.predicted_std > 0
        return self.measured_std / self.predicted_std if both else float("nan")

    @property
    def excess_bits(self) -> float:
        """Bits by which measured_std is above its prediction interval, negative below it, 0 in it.

        Infinite where a positive error is expected and exactly none was met.
        """
        if math.isnan(self.measured_std) or self.low <= self.measured_std <= self.high:
            return 0.0
        if self.measured_std == 0.0:
            return -math.inf
        bound = self.high if self.measured_std > self.high else self.low
        return math.log2(self.measured_std / bound)


@dataclass(frozen=True)
class Subject:
    """What was run.

    Attributes:
      name: of the traced function.
      arguments: one text per argument leaf, e.g. "args[0]: float32[64, 8], encrypted".
      batch: members that lie side by side in the slots, 1 if none do.
      depth: levels on the longest path of the Program, refreshes left out.
      listing: the Program, one line an operation.
      environment: date, Python, machine, versions of packages; see `he_backend.report.environment`.
    """

    name: str
    arguments: tuple[str, ...]
    batch: int
    depth: int
    listing: str
    environment: dict[str, Any]

    @classmethod
    def of(cls, program: Program, circuit: Circuit) -> Subject:
        """Of a Program and the Circuit that was compiled from it, now and here."""
        arguments = tuple(
            f"{label}: {v.dtype}[{', '.join(map(str, v.shape))}], "
            f"{'encrypted' if v.encrypted else 'public'}"
            for v, label in zip(program.inputs, program.labels, strict=True)
        )
        together = [tap.batch for tap in circuit.taps if tap.batch_axis >= 0]
        return cls(
            name=program.name,
            arguments=arguments,
            batch=max(together, default=1),
            depth=program.depth,
            listing=str(program),
            environment=environment(),
        )


@dataclass(frozen=True)
class Report:
    """The result of `he_backend.run`.

    Attributes:
      outputs: decrypted results, as fn returns them (float64). Decryptions are for the client only.
        None in the place of what a session carries to its next batch, which nobody decrypts.
      exact: the same function in float64, in the clear; None if the run was not checked.
      encrypted: False for a machine that only imitates it ("slots"): then nothing was encrypted.
      backend: name of the machine.
      params: ring and primes.
      ledger: what the Circuit says it spends.
      counts: what was counted, by operation; it agrees with the ledger.
      refreshes: refreshed ciphertexts.
      refresh_rounds: refreshes that depend on each other. A run whose key holder does them, in
        round trips, is interactive.
      seconds: wall-clock seconds of all attempts: making keys, encrypting, evaluating, decrypting.
      key_seconds: those of them in which keys were made, 0 where they were there.
      phases: wall-clock seconds of everything that the call did, by phase: compiling, the twins and
        the comparison, too.
      core_seconds: CPU seconds that workers and clients spent on the Circuit together.
      peak_bytes: bytes of memory of server, workers and clients at their peaks.
      compared: whether every operation's result was decrypted and held against the exact one.
      ops: one OpRecord an operation in a comparing run; otherwise only names, levels and seconds.
      overall: of a comparing run, how much noisier it is than predicted by all operations together;
        None where that cannot be told.
      outside: messages about polynomials that were fed values outside their domain, and about
        slots that a bootstrap is not made for.
      tasks, skipped, replaced: pieces of work, those done by earlier attempts, workers that died.
      imported_jax: whether a worker imported JAX, which none should.
      simulate: computes `simulated`.
      subject: what was run, when, and by which versions.
      refresher: who refreshed.
      predicted_peak_bytes: what peak_bytes was predicted to be; 0 where nothing is encrypted.

    Examples:
      >>> import he_backend, hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> program = hesim.trace(lambda x: x * x, np.ones(2))
      >>> report = he_backend.run(program, np.ones(2), params=params, backend="slots")
      >>> report.refreshes, report.interactive, report.max_error < 1e-9, report.ledger.products
      (0, False, True, 1)
    """

    outputs: Any
    exact: Any
    encrypted: bool
    backend: str
    params: CKKSParams
    ledger: Ledger
    counts: dict[str, int]
    seconds: float
    key_seconds: float
    core_seconds: float
    peak_bytes: int
    ops: tuple[OpRecord, ...]
    compared: bool
    phases: Mapping[str, float] = field(default_factory=dict)
    overall: Overall | None = None
    outside: tuple[str, ...] = ()
    tasks: int = 0
    skipped: int = 0
    replaced: int = 0
    imported_jax: bool = False
    subject: Subject | None = None
    refresher: Refresher = KEY_HOLDER
    predicted_peak_bytes: int = 0
    simulate: Callable[[], Any] = field(default=lambda: None, repr=False)

    @property
    def refreshes(self) -> int:
        """Refreshed ciphertexts."""
        return self.ledger.refreshes

    @property
    def refresh_rounds(self) -> int:
        """Refreshes that depend on each other: round trips to the key holder, or bootstraps."""
        return self.ledger.refresh_rounds

    @property
    def evaluation_seconds(self) -> float:
        """Wall-clock seconds without making keys."""
        return self.seconds - self.key_seconds

    @property
    def bootstrapped_seconds(self) -> float:
        """Core-seconds, had each refresh been a bootstrap of one ciphertext at its usual price; as
        they are where it was one.
        """
        price = BOOTSTRAP_SECONDS if self.refresher.interactive else 0.0
        return self.core_seconds + self.refreshes * price

    @property
    def interactive(self) -> bool:
        """Whether the key holder had to help during the evaluation."""
        return self.ledger.refreshes > 0 and self.refresher.interactive

    @cached_property
    def simulated(self) -> Any:
        """The simulation under one random key, as fn's result; computed when first asked for."""
        return self.simulate()

    @property
    def first_unpredicted(self) -> OpRecord | None:
        """The first operation whose error leaves its prediction interval, None if none does.

        Its operands' errors are allowed for: what went wrong happened there, or between it and
        them. What all operations together say is in `overall`.
        """
        return next((op for op in self.ops if op.excess_bits), None)

    @property
    def as_predicted(self) -> bool | None:
        """Whether every operation, and all of them together, are as far from exact as predicted: of
        a sound run in 99 of 100. None if nothing was judged.
        """
        if not any(op.judged for op in self.ops):
            return None
        sound = self.overall is None or self.overall.sound
        return sound and self.first_unpredicted is None

    def verdict(self) -> str:
        """What the comparison found: how many operations were judged, of how many, whether one left
        its prediction interval or all together are noisier than predicted, how likely that is by
        chance, and what could not be judged. Empty if the run did not compare.
        """
        return verdict(self.ops, self.overall) if self.compared else ""

    def plot(self) -> Figure:
        """A matplotlib Figure: measured std of every operation over its prediction interval."""
        from he_backend.report.html import error_figure

        return error_figure(self)

    @property
    def max_error(self) -> float:
        """Largest absolute difference between outputs and exact, over all leaves that were
        decrypted; NaN if the run was not checked.
        """
        from jax import tree_util

        if self.exact is None:
            return math.nan
        whole = (self.outputs, self.exact)
        pairs = zip(*(tree_util.tree_leaves(x, is_leaf=lambda y: y is None) for x in whole))
        errors = (np.abs(np.subtract(a, b)) for a, b in pairs if a is not None)
        return max((float(np.max(error, initial=0.0)) for error in errors), default=0.0)

    def __str__(self) -> str:
        how = "encrypted" if self.encrypted else "on plain vectors, nothing encrypted"
        rounds = (
            f"interactive: {self.refreshes} ciphertexts refreshed by the key holder in "
            f"{self.refresh_rounds} rounds"
            if self.interactive
            else f"{self.refreshes} ciphertexts refreshed by {self.refresher.name}"
            if self.refreshes
            else "no refresh"
        )
        lines = [
            f"{self.backend} ({how}), N = 2^{self.params.log_n}, {self.params.levels} levels",
            f"{self.seconds:.2f} s, {self.key_seconds:.2f} s of them for keys, "
            f"peak {self.peak_bytes / 1e9:.2f} GB; {rounds}",
            f"largest error {self.max_error:.3g}" if self.exact is not None else "not checked",
        ]
        if self.encrypted:
            lines.insert(
                2,
                f"predicted {self.ledger.seconds:.2f} core-seconds, spent {self.core_seconds:.2f}; "
                f"predicted peak {self.predicted_peak_bytes / 1e9:.2f} GB",
            )
        if self.skipped:
            lines.append(f"resumed: {self.skipped} of {self.tasks} tasks were done before")
        if self.replaced:
            lines.append(f"{self.replaced} workers died and were replaced")
        lines += [f"warning: {message}" for message in self.outside]
        if self.compared:
            lines.append(self.verdict())
            lines.append(
                f"{'operation':<22} {'level':>5} {'measured':>10} {'predicted':>10} "
                f"{'interval':>20} {'bits off':>8} {'seconds':>8}"
            )
            lines += [
                f"{op.label:<22} {op.level if op.level >= 0 else '-':>5} "
                f"{_error(op.measured_std):>10} {_error(op.predicted_std):>10} "
                f"{_interval(op):>20} {_excess(op):>8} {op.seconds:>8.3f}  {op.source}"
                for op in self.ops
            ]
        return "\n".join(lines)

    _repr_pretty_ = shown_as_text

    def _repr_html_(self) -> str:
        summary = str(self).split("\noperation ", 1)[0].split("\n")
        errors = ("measured", "predicted", "interval", "bits off") if self.compared else ()
        rows: list[tuple[str, ...]] = [
            ("operation", "level", *errors, "seconds", "seconds predicted", "source")
        ]
        for op in self.ops:
            numbers = (op.measured_std, op.predicted_std) if self.compared else ()
            rows.append(
                (
                    op.label,
                    op.place,
                    *map(_error, numbers),
                    *((_interval(op), _excess(op)) if self.compared else ()),
                    f"{op.seconds:.3f}",
                    f"{op.predicted_seconds:.3f}" if op.predicted_seconds >= 0 else "–",
                    op.source,
                )
            )
        name = f"{self.subject.name}: " if self.subject is not None else ""
        return html_block(name + summary[0], *summary[1:], inner=html_table(rows))

    def to_html(self, path: str | os.PathLike) -> Path:
        """Write one self-contained HTML page, whole or not at all, and return its path."""
        from he_backend.report.html import page

        target, text = Path(path), page(self)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as file:
            file.write(text.encode())
        return target


def _error(std: float) -> str:
    return f"{std:.2e}" if std == std else "–"


def _interval(op: OpRecord) -> str:
    return f"[{op.low:.2e}, {op.high:.2e}]" if math.isfinite(op.high) else ""


def _excess(op: OpRecord) -> str:
    return f"{op.excess_bits:+.2f}" if op.excess_bits else ""
