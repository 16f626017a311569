"""`python -m benchmarks noise`: predicted against measured noise of every operation, in SEAL.

Each ciphertext operation is run encrypted through Pyfhel under 20 keys, in three rings and with two
prime chains, on values of five distributions, and its errors are held against `hesim.certify`: with
keys drawn at random (std, 99.9 % quantile), and with the measured machine's own key. A row passes

- if log2 of the measured over the predicted std is within 0.1 bit, or within 2.5 standard errors
  (bootstrap over keys, and the prediction's own) where tails make these wider;
- and if that of the 99.9 % quantile is within 0.3 bit, whatever its standard error.

Where the error sits in a few slots (rotations with a 60-bit first prime), 20 keys do not tell a
quantile to 0.3 bit. So cases with a row whose quantile has a standard error above 0.1 bit are
measured under twice as many keys, and again, up to `--most`; whether the row passes plays no part.
A bootstrap over 20 keys tells the spread of a std too small where few keys have most of the error:
256 keys drawn by `certify` say 0.15 bit for the encrypted matmul at 2^15 with a 60-bit first prime,
where it says 0.06 to 0.10. Such a case wants `--cases "encrypted matmul" --keys 80`.

Every key's result is written as it comes, so an interrupted run resumes (predictions with random
keys are made anew when their code changes, those with the measured key belong to the measurement):

    python -m benchmarks.noise [--out runs/noise] [--rings 13 14 15] [--first-bits 60 50]
                               [--values uniform ...] [--keys 20] [--most 160]
                               [--cases instructions ...]
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: figures are for one core

import numpy as np

import hesim
from benchmarks.noise import cases as noise_cases
from benchmarks.noise.cases import DISTRIBUTIONS, Case
from benchmarks.noise.measure import Ring, encode_std, parameters, quantile
from hesim.certify import certify
from hesim.params import CKKSParams

LEVELS = 10
_NUMBERS = 1 << 20
"""Keys times slots of one batch of a prediction: 256 keys at N = 2^13, 64 at 2^15."""

_BATCHES = (2, 32)
"""Least and most batches of a prediction; between them it ends at a standard error of `_SURE`."""

_SURE = 0.03
"""Bits, of the predicted std and of the predicted quantile."""

_UNSETTLED = 0.1
"""Standard error of a quantile, in bits, above which a case is measured under more keys."""

_BOOTSTRAPS = 400


def _digest() -> str:
    """Of the code behind predictions, as this process has loaded it."""
    folder = Path(hesim.__file__).parent
    names = (
        "certify",
        "certificates",
        "noise/embedding",
        "noise/formulas",
        "noise/normals",
        "noise/profiles",
    )
    sources = b"".join((folder / f"{name}.py").read_bytes() for name in names)
    settings = repr((_NUMBERS, _BATCHES, _SURE))
    return hashlib.sha256(sources + settings.encode()).hexdigest()[:12]


_VERSION = _digest()


@dataclass(frozen=True)
class Line:
    """One line of the table; all figures in bits (log2).

    Attributes:
      ring: log2 N. first_bits: of the first prime. values: distribution. row: what was done.
      keys: measured. std, q999: measured. std_off, q999_off: measured minus predicted.
      std_error, q999_error: standard errors of those differences.
      own_key_off: measured minus predicted std where predictions are made from the measured keys.
      own_key_worst: the same for the worst single key.
    """

    ring: int
    first_bits: int
    values: str
    row: str
    keys: int
    std: float
    std_off: float
    std_error: float
    q999: float
    q999_off: float
    q999_error: float
    own_key_off: float
    own_key_worst: float

    @property
    def passes(self) -> bool:
        """By the rule in this file's docstring."""
        return abs(self.std_off) <= max(0.1, 2.5 * self.std_error) and abs(self.q999_off) <= 0.3


def main(
    out: str = "runs/noise",
    rings: Sequence[int] = (13, 14, 15),
    first_bits: Sequence[int] = (60, 50),
    distributions: Sequence[str] = DISTRIBUTIONS,
    keys: int = 20,
    cases: Sequence[str] = (),
    levels: int = LEVELS,
    most: int = 160,
) -> bool:
    """Measures what is missing in `out`, prints the table and saves it there; True if all pass."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    for ring in rings:
        for first in first_bits:
            lines += _ring(folder, ring, first, levels, distributions, keys, tuple(cases), most)
    _save(folder, lines)
    print_table(lines)
    print(f"table: {folder / 'noise.csv'} and {folder / 'noise.json'}")
    return all(line.passes for line in lines)


def _ring(
    folder: Path,
    ring: int,
    first: int,
    levels: int,
    distributions: Sequence[str],
    keys: int,
    only: tuple[str, ...],
    most: int,
) -> list[Line]:
    params = parameters(ring, first, levels)
    cases = {name: noise_cases.build(params, name, only) for name in distributions}
    place = folder / f"n{ring}_q{first}_l{levels}"
    place.mkdir(exist_ok=True)
    _measure(place, params, cases, keys)
    lines = _lines(place, params, cases)
    while keys < most:
        unsure = {(x.values, x.row) for x in lines if x.q999_error > _UNSETTLED}
        chosen = {
            d: [case for case in group if any((d, row) in unsure for row in case.rows)]
            for d, group in cases.items()
        }
        chosen = {d: group for d, group in chosen.items() if group}
        if not chosen:
            break
        keys = min(2 * keys, most)
        _measure(place, params, chosen, keys)
        lines = _lines(place, params, cases)
    return lines


def _measure(place: Path, params: CKKSParams, cases: dict[str, list[Case]], keys: int) -> None:
    """Measures these cases under as many keys, those left out that have been already."""
    names = [(d, row) for d, group in cases.items() for row in _rows(group)]
    paths = [place / f"key{k:02d}.npz" for k in range(keys)]
    missing = [p for p in paths if not _complete(p, names)]
    machine = Ring(params, cases) if missing else None
    for k, path in enumerate(missing):
        assert machine is not None
        started = time.perf_counter()
        found = machine.measure()
        partial = path.with_suffix(".partial.npz")
        np.savez_compressed(
            partial,
            names=np.array([f"{d}/{row}" for d, row in found]),
            mean_square=np.array([r.mean_square for r in found.values()]),
            predicted=np.array([r.predicted for r in found.values()]),
            counts=np.array([r.counts for r in found.values()], dtype=np.uint32),
        )
        partial.replace(path)
        print(
            f"{place.name}, {len(names)} rows: key {k + 1} of {len(missing)} in "
            f"{time.perf_counter() - started:.0f} s",
            flush=True,
        )


def _lines(place: Path, params: CKKSParams, cases: dict[str, list[Case]]) -> list[Line]:
    """The table's lines from all keys in the folder that have their row."""
    measured = [_load(p) for p in sorted(place.glob("key*.npz")) if "partial" not in p.name]
    lines = []
    first = round(math.log2(params.primes[0]))
    for distribution, group in cases.items():
        expected = _expected(place, params, distribution, group)
        for row in _rows(group):
            own = [m for m in measured if f"{distribution}/{row}" in m]
            lines.append(_line(params.log_n, first, distribution, row, own, expected[row]))
    return lines


def _rows(group: list[Case]) -> list[str]:
    return ["encode", *(row for case in group for row in case.rows)]


def _complete(path: Path, names: list[tuple[str, str]]) -> bool:
    if not path.exists():
        return False
    with np.load(path) as data:
        return set(data["names"].tolist()) >= {f"{d}/{row}" for d, row in names}


def _load(path: Path) -> dict[str, tuple[float, float, np.ndarray]]:
    with np.load(path) as data:
        columns = [data[k] for k in ("mean_square", "predicted", "counts")]
        return {
            name: (float(m), float(p), c)
            for name, m, p, c in zip(data["names"].tolist(), *columns, strict=True)
        }


def _expected(
    place: Path, params: CKKSParams, distribution: str, group: list[Case]
) -> dict[str, tuple[float, float, float, float]]:
    """Predicted (std, its standard error in bits, 99.9 % quantile, its error) by row, kept in a
    file of the code's version.
    """
    path = place / f"predicted_{distribution}_{_VERSION}.json"
    rows = set(_rows(group))
    kept = json.loads(path.read_text()) if path.exists() else {}
    if not rows <= set(kept):
        std = encode_std(params, np.resize(group[0].inputs[0], params.slots))
        constant = distribution == "constant"
        kept["encode"] = (std, 0.0, std * (1.0 if constant else 3.2905), 0.0)
        for case in group:
            kept.update(_predicted(case, _NUMBERS // params.slots))
        path.write_text(json.dumps(kept))
    return {row: tuple(kept[row]) for row in rows}  # type: ignore[misc]


def _predicted(case: Case, keys: int) -> dict[str, tuple[float, float, float, float]]:
    """The same for the rows of one case, in batches of fresh keys until they are known well."""
    stds: dict[str, list[float]] = {row: [] for row in case.rows}
    tails: dict[str, list[float]] = {row: [] for row in case.rows}
    found: dict[str, tuple[float, float, float, float]] = {}
    for batch in range(_BATCHES[1]):
        predicted = certify(
            case.circuit, inputs=case.inputs, operands=case.operands, keys=keys, seed=batch + 1
        )
        for op in predicted.ops:
            stds[op.name].append(op.std)
            tails[op.name].append(_log(op.q999))
        if batch + 1 < _BATCHES[0]:
            continue
        for row in case.rows:
            squares, bits = np.square(stds[row]), np.array(tails[row])
            root = math.sqrt(len(bits))
            mean = float(squares.mean())
            spread = float(squares.std(ddof=1)) / (2 * mean * math.log(2) * root) if mean else 0.0
            tail = float(bits.std(ddof=1)) / root
            found[row] = (math.sqrt(mean), spread, 2.0 ** float(bits.mean()), tail)
        if all(max(x[1], x[3]) < _SURE for x in found.values()):
            break
    return found


def _line(
    ring: int,
    first: int,
    distribution: str,
    row: str,
    measured: list[dict[str, tuple[float, float, np.ndarray]]],
    expected: tuple[float, float, float, float],
) -> Line:
    squares, own, counts = zip(*(m[f"{distribution}/{row}"] for m in measured), strict=True)
    squares, own, counts = np.array(squares), np.array(own), np.array(counts)
    std, q999 = _half_log(squares.mean()), quantile(counts.sum(0), 0.999)
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(squares), (_BOOTSTRAPS, len(squares)))
    spread = float(np.std([_half_log(squares[d].mean()) for d in draws]))
    tails = float(np.std([quantile(counts[d].sum(0), 0.999) for d in draws]))
    return Line(
        ring=ring,
        first_bits=first,
        values=distribution,
        row=row,
        keys=len(squares),
        std=std,
        std_off=std - _log(expected[0]),
        std_error=math.hypot(spread, expected[1]),
        q999=q999,
        q999_off=q999 - _log(expected[2]),
        q999_error=math.hypot(tails, expected[3]),
        own_key_off=std - _half_log(own.mean()),
        own_key_worst=max((_half_log(s) - _half_log(o) for o, s in zip(own, squares)), key=abs),
    )


def _log(value: float) -> float:
    return math.log2(max(value, 2.0**-200))


def _half_log(square: float) -> float:
    return 0.5 * _log(float(square))


def print_table(lines: Iterable[Line]) -> None:
    """The table: bits; `off` is measured minus predicted, `±` its standard error."""
    lines = list(lines)
    print(
        f"{'N':>3} {'q0':>2} {'values':<12} {'operation':<26} {'std':>7} {'off':>6} {'±':>5} "
        f"{'q999':>7} {'off':>6} {'±':>5}   own key: off, worst keys"
    )
    for x in lines:
        print(
            f"{x.ring:>3} {x.first_bits:>2} {x.values:<12} {x.row:<26} {x.std:7.2f} "
            f"{x.std_off:+6.3f} {x.std_error:5.3f} {x.q999:7.2f} {x.q999_off:+6.3f} "
            f"{x.q999_error:5.3f}   {x.own_key_off:+6.3f} {x.own_key_worst:+6.3f} {x.keys:>4}"
            f"{'' if x.passes else '  FAILS'}"
        )
    tight = [x for x in lines if abs(x.std_off) <= 0.1]
    wide = [x for x in lines if abs(x.std_off) > 0.1]
    failed = [x for x in lines if not x.passes]
    far = max((abs(x.std_off) / max(x.std_error, 1e-9) for x in wide), default=0.0)
    print(
        f"{len(lines)} rows: {len(tight)} stds within 0.1 bit, {len(wide)} others, at most "
        f"{far:.1f} standard errors off; quantiles within "
        f"{max(abs(x.q999_off) for x in lines):.2f} bit; given the key within "
        f"{max(abs(x.own_key_off) for x in lines):.2f} bit; {len(failed)} rows fail"
    )


def _save(folder: Path, lines: list[Line]) -> None:
    records = [{**asdict(line), "passes": line.passes} for line in lines]
    (folder / "noise.json").write_text(json.dumps(records, indent=1))
    with (folder / "noise.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)
