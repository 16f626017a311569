"""A batch's report: what was given, what came out, and how far off it was expected to be."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from he_backend.carrying import result
from he_backend.evaluating import Outcome
from he_backend.machines.table import find
from he_backend.options import Asked, Options
from he_backend.report import twin
from he_backend.report.compare import op_records
from he_backend.report.phases import Phases
from he_backend.report.report import Report, Subject
from hesim.circuit.circuit import Circuit
from hesim.noise.profiles import NoiseProfile, profile, refreshed_by
from hesim.program import Program

if TYPE_CHECKING:
    from hesim.predict import OpPrediction, Prediction

__all__ = ["Given", "Reports"]


@dataclass(frozen=True)
class Given:
    """A batch: arguments, evaluated exactly if it is checked; public results by number; where its
    phases are told; how it is run.
    """

    args: Sequence[Any]
    exact: twin.Exact
    public: Mapping[int, np.ndarray]
    reporter: Phases
    asked: Asked


class Reports:
    """Makes the reports of a session's batches.

    Args:
      program, circuit, options: the session's.
    """

    def __init__(self, program: Program, circuit: Circuit, options: Options):
        self.program, self.circuit, self.options = program, circuit, options

    def report(self, given: Given, outcome: Outcome) -> Report:
        """Of a batch that was run; compared with the prediction, which is made here, if asked."""
        prediction = None
        if given.asked.compare:
            keys, sampled = self.options.keys, self.options.sampled
            given.reporter.phase(f"predicting the error under {keys} keys")
            among = outcome.vectors if sampled else None
            prediction = self._predicted(given, keys, among)
            given.reporter.phase("comparing")
        return self._report(given, outcome, prediction)

    @cached_property
    def _placed(self) -> Any:
        """Where errors arise in this Circuit."""
        from hesim.noise import placement

        return placement.of_circuit(self.program, self.circuit, self._profile)

    @cached_property
    def _profile(self) -> NoiseProfile:
        """The noise of the machine."""
        library = profile(find(self.options.backend).profile)
        return refreshed_by(library, self.circuit.error_law)

    def _predicted(
        self, given: Given, keys: int, among: Collection[int] | None = None
    ) -> Mapping[int, OpPrediction]:
        """Errors of operations under so many keys, of what was decrypted."""
        from hesim.predict import walked

        follows = given.asked.after is not None
        library, seen = self._profile, {"among": among, "decrypted": follows}
        found = walked(self.circuit, given.args, keys, library, **seen)
        found = found or dict(enumerate(self._simulated(given, keys).ops))
        factor = math.sqrt(1.0 + library.decryption_variance)
        return found if factor == 1.0 else {k: _times(op, factor) for k, op in found.items()}

    def _simulated(self, given: Given, keys: int = 1) -> Prediction:
        """Values of operations under so many keys, one by one: compiling a long program as a whole
        takes longer than a run of it. What a batch goes on from was not encrypted for it.
        """
        from hesim.predict import predict

        shared = {"keys": keys, "schedule": self._placed, "jit": False, "walk": False}
        shared |= {"decrypted": given.asked.after is not None, "profile": self._profile}
        return predict(self.program, self.circuit.params, given.args, **shared)

    def _report(
        self, given: Given, outcome: Outcome, prediction: Mapping[int, OpPrediction] | None
    ) -> Report:
        exact, compare = given.exact, given.asked.compare
        circuit, options, spent = self.circuit, self.options, outcome.spent
        vectors = outcome.vectors if compare else None
        ops, overall = op_records(
            *(circuit, exact, vectors, prediction, spent),
            encrypted=options.encrypts,
            profile=self._profile,
        )
        return Report(
            outputs=result(self.program, circuit, outcome.vectors, given.public),
            exact=exact.outputs,
            encrypted=options.encrypts,
            backend=options.backend,
            params=circuit.params,
            ledger=circuit.ledger,
            counts={name: spent.counts.get(name, 0) for name in circuit.ledger.counts()},
            seconds=outcome.key_seconds + outcome.seconds,
            key_seconds=outcome.key_seconds,
            phases=given.reporter.seconds(),
            core_seconds=sum(spent.seconds.values()),
            peak_bytes=outcome.peak_bytes,
            ops=ops,
            overall=overall,
            compared=compare,
            outside=tuple(str(message) for message in exact.outside),
            tasks=outcome.tasks,
            skipped=outcome.skipped,
            replaced=outcome.replaced,
            imported_jax=outcome.imported_jax,
            subject=Subject.of(self.program, circuit),
            refresher=circuit.refresher,
            predicted_peak_bytes=outcome.predicted_peak_bytes,
            simulate=lambda: self._simulated(given).outputs,
        )


def _times(op: OpPrediction, factor: float) -> OpPrediction:
    """The prediction with errors so many times as large: what decryption adds is in it."""
    by_key = tuple(factor * std for std in op.by_key)
    return replace(op, std=factor * op.std, q999=factor * op.q999, by_key=by_key)
