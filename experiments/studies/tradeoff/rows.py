"""What a trade-off study keeps: a row a fine-tuned configuration, its costs, and its tasks."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from experiments.errors import ExperimentError
from experiments.studies.tradeoff.knobs import Knobs
from hesim.circuit.costs.spending import Ledger
from hesim.files import write_whole
from models.data import metrics

__all__ = ["OUTSIDE", "Cost", "Row", "Spot", "Task", "read_all", "save"]

OUTSIDE = 1e-4
"""Share of the values at a site beyond which a configuration counts as one that leaves its range:
the polynomial may be anything there.
"""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a plan spends, of a Circuit's ledger, for `sentences` side by side.

    depth: levels on the longest path, whatever is refreshed on it. refreshes: ciphertexts that are
    refreshed, by the key holder or by bootstraps, in `rounds` that wait for one another. products,
    plain_products: of two ciphertexts, and with a public one. rotations, rotation_keys: how many,
    and by how many different steps; key_bytes: of all keys of the server. seconds: of one core,
    with refreshes at the configuration's own price. peak_bytes: of one process that evaluates.
    """

    sentences: int
    depth: int
    refreshes: int
    rounds: int
    products: int
    plain_products: int
    rotations: int
    rotation_keys: int
    key_bytes: int
    peak_bytes: int
    seconds: float

    @classmethod
    def of(cls, ledger: Ledger, sentences: int, knobs: Knobs) -> Cost:
        """Of a Circuit for so many sentences, compiled at the price of these knobs."""
        seconds = ledger.seconds if knobs.interactive else ledger.seconds_bootstrapped
        return cls(
            sentences=sentences,
            depth=ledger.depth,
            refreshes=ledger.refreshes,
            rounds=ledger.refresh_rounds,
            products=ledger.products,
            plain_products=ledger.plain_products,
            rotations=ledger.rotations,
            rotation_keys=ledger.rotation_keys,
            key_bytes=ledger.key_bytes,
            peak_bytes=ledger.peak_bytes,
            seconds=seconds,
        )


@dataclasses.dataclass(frozen=True)
class Task:
    """A task's held-out rows. metric: the leading measure. classes: 1 for ratings. targets: class
    numbers or ratings. majority: of the most frequent label, in points.
    """

    name: str
    metric: str
    classes: int
    targets: tuple[float, ...]
    majority: float

    def points(self, answers: Any, rows: Any = slice(None)) -> float:
        """Of answers (rows,), by the leading measure, times 100. rows: which ones count."""
        found = metrics.REGRESSION if self.classes == 1 else metrics.CLASSIFICATION
        return 100 * found[self.metric](np.asarray(answers)[rows], np.asarray(self.targets)[rows])


@dataclasses.dataclass(frozen=True)
class Row:
    """One configuration, fine-tuned on one task with one seed.

    Attributes:
      knobs, task, seed, share: which one; share of the training rows that it was given.
      exact: held-out score in points, by the task's measure, with the exact functions.
      polynomial, simulated: through polynomials, and with the noise of the plan for one sentence.
      answers: class numbers or ratings, simulated; without noise where nothing can be encrypted.
      spread: standard deviation of the exact logits. approximation: root mean square of what the
        polynomials change in them. noise: of what the noise does. certified: of a logit's error of
        one sentence, by `hesim.certify`, for the first seed.
      outside, site: largest share of values outside of a domain, and where.
      lost: rows whose polynomials ran away.
      one, many: names of the costs of both layouts; empty where there is no plan.
      reason: why it was not simulated, or is not to be trusted; empty where all is well.
      seconds: of CPU, for scoring it.
      unfinished: whether its process ended, or an error that no configuration explains: the next
        call tries it again.
    """

    knobs: Knobs
    task: str
    seed: int
    share: float
    exact: float
    polynomial: float = math.nan
    simulated: float = math.nan
    answers: tuple[float, ...] = ()
    spread: float = math.nan
    approximation: float = math.nan
    noise: float = math.nan
    certified: float = math.nan
    outside: float = 0.0
    site: str = ""
    lost: int = 0
    one: str = ""
    many: str = ""
    reason: str = ""
    seconds: float = 0.0
    unfinished: bool = False

    @property
    def sound(self) -> bool:
        """Whether it may be recommended: simulated, and within its ranges."""
        return math.isfinite(self.simulated) and not self.lost and self.outside <= OUTSIDE


@dataclasses.dataclass(frozen=True)
class Spot:
    """One configuration run encrypted, one sentence at a time.

    seconds: core-seconds of a sentence, refreshed by the key holder, whoever it is in the plan, and
    without the encoding of plaintexts, which is done once for all sentences;
    error: root mean square of the logits less those of the polynomials in the clear; both with what
    was predicted before. encrypted: False on a machine that encrypts nothing. reason: why it could
    not be run, with NaN for all four figures; empty where it was.
    """

    knobs: Knobs
    task: str
    seed: int
    sentences: int
    backend: str
    encrypted: bool
    predicted_seconds: float
    seconds: float
    predicted_error: float
    error: float
    reason: str = ""


T = TypeVar("T", Row, Cost, Task, Spot)


def save(path: Path, found: Row | Cost | Task | Spot) -> None:
    """As JSON, complete or not at all."""
    write_whole(path, json.dumps(_plain(dataclasses.asdict(found))).encode())


def read_all(kind: type[T], folder: Path, name: str = "*") -> dict[str, T]:
    """What a folder holds, by the names of the files, or of one. ExperimentError names a file that
    is damaged.
    """
    found: dict[str, T] = {}
    for path in sorted(folder.glob(f"{name}.json")):
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            found[path.stem] = _made(kind, values)
        except (OSError, ValueError, TypeError, AttributeError, ExperimentError) as error:
            raise ExperimentError(
                f"{path} is damaged, or of an older version ({error}): delete it, and what it held "
                "is computed again"
            ) from error
    return found


def _made(kind: type[T], values: Mapping[str, Any]) -> T:
    made = dict(values)
    for name in ("answers", "targets"):
        if name in made:
            made[name] = tuple(math.nan if each is None else each for each in made[name])
    if "knobs" in made:
        made["knobs"] = Knobs(**made["knobs"])
    for field in dataclasses.fields(kind):
        if field.type == "float" and made.get(field.name, 0.0) is None:
            made[field.name] = math.nan
    found = kind(**made)
    for field in dataclasses.fields(kind):
        value = getattr(found, field.name)
        if not _fits(value, str(field.type)):
            raise ExperimentError(f"{field.name} is {value!r}, no {field.type}")
    return found


_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "str": str,
    "bool": bool,
}


def _fits(value: Any, kind: str) -> bool:
    """Whether a value is of a field's type, by its name."""
    if kind.startswith("tuple"):
        return isinstance(value, tuple) and all(_fits(each, "float") for each in value)
    if kind not in _TYPES:
        return True
    return isinstance(value, _TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))


def _plain(value: Any) -> Any:
    """Numbers that JSON knows: None for what is not finite."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
