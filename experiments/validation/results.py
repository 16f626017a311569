"""What a finished run found: figures read from its stages, and the guarantees that they must meet.

Everything here is plain data out of the run folder, so a table or a report can be made again at any
time, without training or encrypting anything.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from experiments.validation.bootstrapped import Bootstrapped
from experiments.validation.folder import RunFolder
from he_backend.report.html import Check, power_of_two
from he_backend.report.intervals import CONFIDENCE
from he_backend.report.report import OpRecord
from hesim.circuit.refresher import KEY_HOLDER, Refresher
from models.data import metrics

__all__ = ["COSINE_ERROR", "LOGIT_ERROR", "MARGIN", "RANK_ERROR", "Check", "Results", "Site"]

MARGIN = 2.0**-10
"""An encrypted label must be the polynomial model's where that model's margin exceeds this."""

LOGIT_ERROR = 2.0**-12
"""Largest permitted difference of an encrypted logit from the polynomial model's."""

COSINE_ERROR = 2.0**-8
"""Largest permitted difference of an encrypted cosine similarity from the polynomial model's."""

RANK_ERROR = 0.005
"""Largest permitted difference of Spearman's correlation from that in the clear."""

PREDICTION_FACTOR = 1.5
"""Predicted and measured standard deviation of the logits' error should agree within this."""


RARE = 0.02
"""Chance, at most, of what is not put down to chance."""


@dataclasses.dataclass(frozen=True)
class Site:
    """A polynomial of the model.

    Attributes:
      depth: levels, the map of its domain onto [-1, 1] being folded into a weight.
      max_error: on its domain; `certified` if it is proven.
      fitted, met: (low, high) of the function's own variable, met on the rows that the run says.
      outside: share of the values met that lie outside the domain.
    """

    name: str
    degree: int
    depth: int
    max_error: float
    certified: bool
    fitted: tuple[float, float]
    met: tuple[float, float]
    outside: float = 0.0

    @property
    def inside(self) -> bool:
        """Whether everything that was met lies in the fitted range."""
        return self.fitted[0] <= self.met[0] and self.met[1] <= self.fitted[1]


@dataclasses.dataclass(frozen=True)
class Results:
    """A finished run.

    Attributes:
      settings: of the run, plain.
      dataset: name, description, task, metric, classes, sizes.
      history: reports of the training, each {step, phase, loss, penalty, <scores>}.
      seeds: held-out scores in the clear, {seed, exact, polynomial} for each model trained.
      sites: the polynomials.
      plan: the traced program and its Circuit: listing, operations, depth, ledger, ring, output
        (index of the operation that gives the logits).
      labels, exact, polynomial: of all held-out sentences: targets, and logits (n, classes).
      reference, simulated, encrypted: logits (m, classes) of the first m of them: the polynomial
        model in float64, simulated under one random key, and decrypted.
      ops: operations of the program.
      batches: figures of each encrypted batch.
      seconds: by stage, in seconds.
      peak_bytes: bytes of memory of all processes of the run together, at their peaks.
      environment: versions and machine.
      bootstrapped: of the first sentences, on a machine that bootstraps; None if not asked for.

    Examples:
      >>> import tempfile
      >>> from experiments import Results, RunFolder, Settings
      >>> Results.load(RunFolder.claim(tempfile.mkdtemp(), Settings()))
      Traceback (most recent call last):
          ...
      experiments.errors.ExperimentError: ...
    """

    settings: dict[str, Any]
    dataset: dict[str, Any]
    history: list[dict[str, Any]]
    seeds: list[dict[str, Any]]
    sites: tuple[Site, ...]
    plan: dict[str, Any]
    labels: np.ndarray
    exact: np.ndarray
    polynomial: np.ndarray
    reference: np.ndarray
    simulated: np.ndarray
    encrypted: np.ndarray
    ops: tuple[OpRecord, ...]
    batches: list[dict[str, Any]]
    seconds: dict[str, float]
    peak_bytes: int
    environment: dict[str, Any]
    bootstrapped: Bootstrapped | None = None

    @classmethod
    def load(cls, folder: RunFolder) -> Results:
        """The results of a folder whose stages are all finished."""
        stage = "clear" if folder.done("clear") else "training"
        training, plan = folder.figures(stage), folder.figures("plan")
        clear = folder.arrays(stage)
        count = int(plan["batches"])
        names = [f"encrypted-{k}" for k in range(count)]
        batches = [folder.figures(name) for name in names]
        arrays = [folder.arrays(name) for name in names]
        joined = {
            key: np.concatenate([a[key][: b["sentences"]] for a, b in zip(arrays, batches)])
            for key in ("reference", "simulated", "encrypted")
        }
        own = max(int(training["peak_bytes"]), *(int(b["own_peak_bytes"]) for b in batches))
        others = max(int(b["peak_bytes"]) for b in batches)
        preparing = f"{'training' if stage == 'training' else 'fitting'} and compiling"
        return cls(
            settings=folder.settings,
            dataset=training["dataset"],
            history=training.get("history", []),
            seeds=training["seeds"],
            sites=tuple(_site(site) for site in training["sites"]),
            plan=plan,
            labels=clear["labels"],
            exact=clear["exact"],
            polynomial=clear["polynomial"],
            ops=_join_operations(batches, plan),
            batches=batches,
            seconds={
                preparing: float(training["seconds"]) + float(plan["seconds"]),
                "keys": sum(float(b["key_seconds"]) for b in batches),
                "evaluation": sum(float(b["seconds"]) for b in batches),
                "checking and comparing": sum(float(b["compare_seconds"]) for b in batches),
            },
            peak_bytes=own + others,
            environment=plan["environment"],
            bootstrapped=Bootstrapped.load(folder),
            **joined,
        )

    @property
    def was_encrypted(self) -> bool:
        """Whether ciphertexts were involved at all ("slots" only imitates them)."""
        return all(bool(b["encrypted"]) for b in self.batches)

    @property
    def sentences(self) -> int:
        """Sentences that were encrypted."""
        return len(self.encrypted)

    @property
    def refresher(self) -> Refresher:
        """Who refreshed, by name."""
        found = self.plan.get("refresher")
        return KEY_HOLDER if found is None else Refresher(**found)

    @property
    def regression(self) -> bool:
        return self.dataset["task"] == "regression"

    @property
    def labelled(self) -> bool:
        """Whether an answer is one of several classes."""
        return self.answer == "logits" and not self.regression

    @property
    def answer(self) -> str:
        """What a sentence, or a pair, is answered with: "logits", or the "cosine" of embeddings."""
        return str(self.settings.get("answer", "logits"))

    @property
    def answers(self) -> str:
        """The same in a reader's words, several of them."""
        return "logits" if self.answer == "logits" else "cosine similarities"

    @property
    def rows(self) -> str:
        """What has one answer, several of them."""
        return "sentences" if self.answer == "logits" else "pairs of sentences"

    @property
    def fused(self) -> int:
        """Operations without ciphertexts of their own: they were computed with the next one."""
        return sum(op.level < 0 for op in self.ops)

    @property
    def metric(self) -> str:
        """Name of the leading score."""
        return str(self.dataset["metric"])

    def score(self, logits: np.ndarray) -> float:
        """The leading score of logits (n, classes) of the first n held-out sentences."""
        targets = self.labels[: len(logits)]
        if self.regression:
            return metrics.REGRESSION[self.metric](logits[:, 0], targets)
        return metrics.CLASSIFICATION[self.metric](logits.argmax(-1), targets)

    def mean_score(self, kind: str) -> float:
        """Mean over seeds of the held-out score of the "exact" or "polynomial" models."""
        return float(np.mean([row[kind] for row in self.seeds]))

    @cached_property
    def error(self) -> np.ndarray:
        """Encrypted logits minus the polynomial model's."""
        return self.encrypted - self.reference

    @property
    def max_error(self) -> float:
        return float(np.max(np.abs(self.error)))

    @property
    def measured_std(self) -> float:
        """Root mean square of the answers' error, measured."""
        return float(np.sqrt(np.mean(self.error**2)))

    @property
    def predicted_std(self) -> float:
        """The same, from simulation under several keys; of cosines from one. NaN where nothing was
        compared, for which nothing was predicted.
        """
        if self.answer == "cosine":
            return float(np.sqrt(np.mean((self.simulated - self.reference) ** 2)))
        return self.ops[int(self.plan["output"])].predicted_std

    @property
    def ratio(self) -> float:
        """Measured over predicted standard deviation of the logits' error."""
        return self.measured_std / self.predicted_std if self.predicted_std else math.nan

    @property
    def agreement(self) -> float:
        """Share of encrypted sentences whose label is the polynomial model's."""
        return float(np.mean(self.encrypted.argmax(-1) == self.reference.argmax(-1)))

    @property
    def margins(self) -> np.ndarray:
        """Polynomial model's first logit minus its second, sorted by size, of each sentence."""
        best = np.sort(self.reference, axis=-1)
        return best[:, -1] - best[:, -2] if best.shape[1] > 1 else np.full(len(best), np.inf)

    @property
    def outside(self) -> list[str]:
        """Messages about polynomials that were fed values beyond their domain."""
        return [message for b in self.batches for message in b["outside"]]

    @property
    def bootstrapped_seconds(self) -> float:
        """Core-seconds of the evaluation, had each refresh been a bootstrap at its usual price."""
        return sum(float(b["bootstrapped_seconds"]) for b in self.batches)

    @property
    def seconds_a_sentence(self) -> float:
        """Wall-clock seconds of the encrypted evaluation over sentences."""
        return self.seconds["evaluation"] / self.sentences

    def total(self, count: str) -> int:
        """A count of the ledger over all batches."""
        return int(self.plan["ledger"][count]) * len(self.batches)

    def summary(self) -> dict[str, Any]:
        """The headline figures as JSON data."""
        return {
            "metric": self.metric,
            "sentences": self.sentences,
            "held_out": {
                "sentences": len(self.labels),
                "exact": self.mean_score("exact"),
                "polynomial": self.mean_score("polynomial"),
            },
            "scores": {
                "exact": self.score(self.exact[: self.sentences]),
                "polynomial": self.score(self.reference),
                "simulated": self.score(self.simulated),
                "encrypted" if self.was_encrypted else "plain vectors": self.score(self.encrypted),
            },
            "agreement": None if self.regression else self.agreement,
            "answer": self.answer,
            "logit_error": {
                "largest": self.max_error,
                "measured_std": self.measured_std,
                "predicted_std": self.predicted_std,
            },
            "bootstrapped": None if self.bootstrapped is None else self.bootstrapped.figures,
            "refreshes": self.total("refreshes"),
            "refresh_rounds": self.total("refresh_rounds"),
            "interactive": self.total("refreshes") > 0 and self.refresher.interactive,
            "seconds": self.seconds,
            "seconds_a_sentence": self.seconds_a_sentence,
            "bootstrapped_core_seconds": self.bootstrapped_seconds,
            "peak_bytes": self.peak_bytes,
            "key_bytes": int(self.plan["ledger"]["key_bytes"]),
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "environment": self.environment,
        }

    @property
    def checks(self) -> list[Check]:
        """What the run must show, and whether it did."""
        found = []
        if self.answer == "cosine":
            return self._cosine_checks()
        if self.bootstrapped is not None and not self.bootstrapped.reason:
            found.append(self._bootstrapped_check(self.bootstrapped.max_error))
        if not self.regression:
            clear_cut = self.margins > MARGIN
            same = self.encrypted.argmax(-1) == self.reference.argmax(-1)
            wrong = int(np.sum(clear_cut & ~same))
            found.append(
                Check(
                    "labels equal the polynomial model's where its margin exceeds 2^-10",
                    wrong == 0,
                    f"{int(np.sum(clear_cut)) - wrong} of {int(np.sum(clear_cut))} equal",
                )
            )
        found.append(
            Check(
                "logits within 2^-12 of the polynomial model's",
                bool(self.max_error <= LOGIT_ERROR),
                f"largest error {self.max_error:.2e} = {power_of_two(self.max_error)}",
            )
        )
        return [*found, *self._prediction_checks()]

    def _bootstrapped_check(self, error: float) -> Check:
        return Check(
            "bootstrapped logits within 2^-12 of the polynomial model's",
            error <= LOGIT_ERROR,
            f"largest error {error:.2e} = {power_of_two(error)}",
        )

    def _cosine_checks(self) -> list[Check]:
        exact, polynomial, encrypted = (
            metrics.spearman(values[: self.sentences, 0], self.labels[: self.sentences])
            for values in (self.exact, self.reference, self.encrypted)
        )
        return [
            Check(
                "cosine similarities within 2^-8 of the polynomial model's",
                bool(self.max_error <= COSINE_ERROR),
                f"largest error {self.max_error:.2e} = {power_of_two(self.max_error)}",
            ),
            Check(
                f"Spearman's correlation within {RANK_ERROR} of the polynomial model's",
                bool(abs(encrypted - polynomial) <= RANK_ERROR),
                f"{encrypted:.4f} and {polynomial:.4f}",
            ),
            Check(
                f"Spearman's correlation within {RANK_ERROR} of the exact functions'",
                bool(abs(encrypted - exact) <= RANK_ERROR),
                f"{encrypted:.4f} and {exact:.4f}",
                guarantee=False,
            ),
            *self._prediction_checks(),
        ]

    def _prediction_checks(self) -> list[Check]:
        if not self.was_encrypted:
            return []
        if math.isnan(self.predicted_std):
            return self._verdict()
        close = 1 / PREDICTION_FACTOR <= self.ratio <= PREDICTION_FACTOR
        return [
            *self._verdict(),
            Check(
                f"predicted standard deviation within a factor {PREDICTION_FACTOR}",
                bool(close),
                f"measured over predicted: {self.ratio:.2f}",
                guarantee=False,
            ),
        ]

    def _verdict(self) -> list[Check]:
        """Whether chance accounts for the batches that were not called as predicted."""
        from scipy import stats

        judged = [b for b in self.batches if b.get("as_predicted") is not None]
        if not judged:
            return []
        wrong = [b for b in judged if not b["as_predicted"]]
        # Of so many sound batches, one in a hundred is called unsound.
        chance = float(stats.binom.sf(len(wrong) - 1, len(judged), 1.0 - CONFIDENCE))
        detail = str(wrong[0]["verdict"] if wrong else judged[0]["verdict"])
        if len(judged) > 1:
            count = f"{len(judged) - len(wrong)} of {len(judged)} batches"
            detail = f"{count}; {'the first other one' if wrong else 'the first'}: {detail}"
        name = "errors of all operations are as predicted"
        return [Check(name, chance > RARE, detail, guarantee=False)]

    @property
    def broken(self) -> list[Check]:
        """Guarantees that the run did not keep."""
        return [c for c in self.checks if c.guarantee and not c.passed]


def bits(std: float) -> float:
    """Bits of precision: -log2 of a standard deviation; infinite for an exact result."""
    return -math.log2(std) if std > 0 else math.inf


def _site(row: dict[str, Any]) -> Site:
    fields = dict(row)
    fields["fitted"], fields["met"] = tuple(row["fitted"]), tuple(row["met"])
    return Site(**fields)


def _join_operations(
    batches: Sequence[dict[str, Any]], plan: dict[str, Any]
) -> tuple[OpRecord, ...]:
    """Operations over batches. Of those that were compared mean squares of standard deviations and
    of the ends of intervals, largest quantile, widest range; of all the seconds.
    """
    # The ledger's first row is what is encrypted.
    spending = plan["ledger"].get("operations", [])[1:]
    known = {field.name for field in dataclasses.fields(OpRecord)}
    compared = [batch.get("compared", True) for batch in batches]
    joined = []
    for k, rows in enumerate(zip(*(batch["ops"] for batch in batches), strict=True)):
        all_rows = [OpRecord(**{name: row[name] for name in known & set(row)}) for row in rows]
        every = [op for op, told in zip(all_rows, compared, strict=True) if told] or all_rows
        first, count = every[0], len(all_rows)
        label = plan["labels"][k].split(" ", 1)
        expected = float(spending[k]["seconds"]) if spending else math.nan
        joined.append(
            dataclasses.replace(
                first,
                level=min(op.level for op in every),
                measured_std=_rms([op.measured_std for op in every]),
                predicted_std=_rms([op.predicted_std for op in every]),
                measured_q999=max(op.measured_q999 for op in every),
                predicted_q999=max(op.predicted_q999 for op in every),
                seconds=sum(op.seconds for op in all_rows),
                minimum=min(op.minimum for op in every),
                maximum=max(op.maximum for op in every),
                low=_rms([op.low for op in every]),
                high=_rms([op.high for op in every]),
                chance=min(op.chance for op in every),
                predicted_seconds=expected * count,
                refreshes=int(spending[k]["refreshes"]) * count if spending else 0,
                function=label[1] if label[0] == "polynomial" and len(label) > 1 else "",
            )
        )
    return tuple(joined)


def _rms(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
