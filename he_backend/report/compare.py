"""Measured against predicted error, operation by operation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from he_backend.report.intervals import Observed, Overall, judge
from he_backend.report.report import OpRecord
from hesim.circuit.circuit import Circuit, TensorLocation
from hesim.circuit.plain.execute import Spent
from hesim.noise import formulas as noise_formulas
from hesim.noise.profiles import NoiseProfile
from hesim.noise.profiles import profile as find_profile
from hesim.predict import OpPrediction

if TYPE_CHECKING:
    from he_backend.report.twin import Exact
    from hesim.program import Equation

__all__ = ["Vectors", "op_records"]

FUSED = "computed together with a later operation"
NOT_READ = "without decrypted values"
NOT_FINITE = "with a prediction that is not finite"
FEW_KEYS = "without a spread between keys (compare with keys=2 or more)"
FED_ZERO = "fed by an exact zero that the machine holds encrypted"

_FRESH = 64.0
"""Errors of a fresh encryption that a result predicted as exact may have."""

_AMPLIFIED = 2.0**16
"""Times the error of an exact operand that a result may have; beyond that it is no such thing."""

_ROUNDING = 2.0**-40
"""Rounding of a long chain in float64, as a part of the largest value."""


EXACT = OpPrediction(0.0, 0.0, -1, (0.0,))
"""Of a result without a ciphertext."""


class Vectors(Mapping[int, np.ndarray]):
    """Slot vectors by ciphertext, read when asked for; absent ones are simply not there."""

    def __init__(self, present: Sequence[int], read: Callable[[int], np.ndarray]):
        self._present = frozenset(present)
        self._read = read

    def __getitem__(self, c: int) -> np.ndarray:
        if c not in self._present:
            raise KeyError(c)
        return self._read(c)

    def __iter__(self) -> Iterator[int]:
        return iter(self._present)

    def __len__(self) -> int:
        return len(self._present)


def op_records(
    circuit: Circuit,
    exact: Exact,
    vectors: Mapping[int, np.ndarray] | None,
    prediction: Mapping[int, OpPrediction] | None,
    spent: Spent,
    encrypted: bool = True,
    profile: str | NoiseProfile = "seal",
) -> tuple[tuple[OpRecord, ...], Overall | None]:
    """One record an operation, and how much noisier the run is than predicted, if that is known.

    Args:
      circuit: its taps say where each operation's result lies.
      exact: the exact twin, with the value of each operation if the run compares.
      vectors: decrypted slot values of the tapped ciphertexts, or None if the run did not compare.
      prediction: by operation, of those that have a ciphertext; or None.
      spent: seconds by operation. What the ledger predicts of an operation is of its Circuit.
      encrypted: whether the machine encrypts; if not, errors below an interval are no surprise.
      profile: of the machine's library.
    """
    # An operation may have no ciphertext of its own: dead, or a product left to the sum after it.
    taps = {tap.op: tap for tap in circuit.taps}
    errors = {
        k: _error(tap, vectors, exact.ops[k])
        for k, tap in taps.items()
        if vectors is not None and 0 <= k < len(exact.ops)
    }
    judged: dict[int, _Judged] = {}
    overall = None
    known = dict(prediction or {})
    if prediction is not None and vectors is not None:
        # What has no ciphertext is zero, and known to be.
        known |= {k: EXACT for k, tap in taps.items() if k >= 0 and not len(tap.ciphers)}
        judged, overall = _judge(circuit, taps, errors, exact, known, encrypted, profile)
    # The ledger's first row is what is encrypted.
    spending = circuit.ledger.operations[1:]
    ops = circuit.program.ops if circuit.program is not None else ()
    records = []
    for k, (name, source) in enumerate(zip(circuit.op_names, circuit.op_sources, strict=True)):
        tap, error = taps.get(k), errors.get(k, np.zeros(0))
        expected = known.get(k)
        found = judged.get(k, _Judged(unjudged=FUSED if tap is None else NOT_READ))
        records.append(
            OpRecord(
                name=name,
                source=source,
                level=_level(circuit, tap),
                measured_std=_rms(error),
                predicted_std=expected.std if expected else float("nan"),
                measured_q999=_quantile(np.abs(error)),
                predicted_q999=expected.q999 if expected else float("nan"),
                seconds=float(spent.seconds.get(k, 0.0)),
                minimum=exact.ranges[k][0],
                maximum=exact.ranges[k][1],
                low=found.low,
                high=found.high,
                chance=found.chance,
                unjudged=found.unjudged if vectors is not None else "",
                elements=error.size,
                size=exact.ops[k].size if vectors is not None else 0,
                predicted_seconds=spending[k].seconds if spending else float("nan"),
                refreshes=spending[k].refreshes if spending else 0,
                met=exact.fed[k][:2] if k in exact.fed else None,
                outside=exact.fed[k][2] if k in exact.fed else 0,
                **(_function(ops[k]) if ops else {}),
            )
        )
    return tuple(records), overall


def _function(equation: Equation) -> dict[str, Any]:
    """Fields of an OpRecord on the function that a polynomial stands in for; of others, none."""
    if equation.name != "polynomial":
        return {}
    poly = equation.params["poly"]
    intervals = tuple((float(low), float(high)) for low, high in poly.intervals)
    return {"function": str(poly.name), "degree": int(poly.degree), "domain": intervals}


@dataclass(frozen=True)
class _Judged:
    """Interval of an operation's error, the chance that a sound run is as far from it, or why none
    was made.
    """

    low: float = 0.0
    high: float = math.inf
    chance: float = math.nan
    unjudged: str = ""


def _judge(
    circuit: Circuit,
    taps: Mapping[int, TensorLocation],
    errors: Mapping[int, np.ndarray],
    exact: Exact,
    prediction: Mapping[int, OpPrediction],
    encrypted: bool,
    profile: str | NoiseProfile,
) -> tuple[dict[int, _Judged], Overall | None]:
    """What each operation with an error is judged to be, and all together.

    What an operand that is predicted as exact, and held encrypted all the same, brings into a
    result is not predicted: such results are left out, and the rest judged again.
    """
    measured = {k: _rms(error) for k, error in errors.items() if error.size}
    operands = _operands(circuit)
    found: dict[int, _Judged] = {}
    held: dict[int, float] = {}  # std of what was predicted as exact and is not
    rest: list[int] = []
    for k, std in measured.items():
        by_key = prediction[k].by_key if k in prediction else ()
        if len(by_key) and not any(by_key):
            high = _of_zero(circuit, taps[k], exact.ranges[k], profile)
            found[k] = _Judged(high=high, chance=1.0 if std <= high else 0.0)
            if 0.0 < std <= high:
                held[k] = std
        elif not np.all(np.isfinite(by_key)):
            found[k] = _Judged(unjudged=NOT_FINITE)
        elif len(by_key) < 2 or not all(by_key):
            found[k] = _Judged(unjudged=FEW_KEYS)
        else:
            rest.append(k)
    while True:
        rest.sort()
        seen = [
            Observed(
                measured[k],
                prediction[k].by_key,
                errors[k].size,
                tuple(_near(k, rest, operands)),
            )
            for k in rest
        ]
        intervals, overall = judge(seen, above_only=not encrypted)
        fed = set()
        for k, interval in zip(rest, intervals, strict=True):
            inherited = max((held[j] for j in operands[k] if j in held), default=0.0)
            if interval.high < measured[k] <= _AMPLIFIED * inherited:
                fed.add(k)
                held[k] = measured[k]
                found[k] = _Judged(unjudged=FED_ZERO)
        if not fed:
            break
        rest = [k for k in rest if k not in fed]
    for k, interval in zip(rest, intervals, strict=True):
        found[k] = _Judged(interval.low, interval.high, interval.chance)
    return found, overall


def _near(k: int, known: Sequence[int], operands: Sequence[Sequence[int]]) -> list[int]:
    """Places in `known`, sorted operations, of the nearest results that operation k is made of."""
    places = {j: place for place, j in enumerate(known)}
    reached: set[int] = set()
    seen: set[int] = set()
    waiting = list(operands[k])
    while waiting:
        j = waiting.pop()
        if j in places:
            reached.add(places[j])
        elif j not in seen:
            waiting += operands[j]
        seen.add(j)
    return sorted(reached)


def _of_zero(
    circuit: Circuit,
    tap: TensorLocation,
    values: tuple[float, float],
    profile: str | NoiseProfile,
) -> float:
    """Largest std of an error that is predicted as none.

    A machine that knows a ciphertext's contents holds an encryption of them all the same: a fresh
    one, through a few operations at most. Beside that there is the rounding of float64.
    """
    rounding = _ROUNDING * max(1.0, *(abs(x) for x in values if math.isfinite(x)))
    if not len(tap.ciphers):
        return rounding
    library = find_profile(profile)
    noise = noise_formulas.fresh(circuit.params.n, library)
    scale = float(circuit.scale[tap.ciphers].min())
    std = noise_formulas.slot_std(noise, circuit.params.n, library) / scale
    return rounding + _FRESH * std * abs(tap.gain)


def _operands(circuit: Circuit) -> list[list[int]]:
    """By operation, those whose results it reads."""
    if circuit.program is None:
        return [[] for _ in circuit.op_names]
    made: dict[int, int] = {}
    found = []
    for k, equation in enumerate(circuit.program.ops):
        ids = [getattr(v, "id", None) for v in equation.inputs]
        found.append([made[i] for i in ids if i in made])
        made |= {v.id: k for v in equation.outputs}
    return found


def _level(circuit: Circuit, tap: TensorLocation | None) -> int:
    if tap is None or not len(tap.ciphers):
        return -1
    return int(circuit.level[tap.ciphers].min())


def _error(tap: TensorLocation, vectors: Mapping[int, np.ndarray], exact: np.ndarray) -> np.ndarray:
    """Differences of the elements that were decrypted; a client refuses NaN, so NaN is absent."""
    found: Any = tap.read(vectors)
    present = ~np.isnan(found)
    return found[present] - exact[present]


def _rms(error: np.ndarray) -> float:
    """Root mean square; NaN of nothing, infinite where there is no difference to speak of."""
    if not error.size:
        return float("nan")
    largest = float(np.max(np.abs(error)))
    if not math.isfinite(largest):
        return math.inf
    return largest * float(np.sqrt(np.mean((error / largest) ** 2))) if largest else 0.0


def _quantile(values: np.ndarray) -> float:
    return float(np.quantile(values, 0.999, method="higher")) if values.size else float("nan")
