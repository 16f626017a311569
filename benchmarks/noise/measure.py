"""All rows of the noise table under one fresh key: encrypted, and predicted from that key."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.noise.cases import Case
from benchmarks.noise.keys import KeyReader
from he_backend.local import run_local
from he_backend.machines.pyfhel.machine import PyfhelMachine
from he_backend.machines.slots import SlotsMachine
from hesim.certify import certify
from hesim.noise import formulas
from hesim.noise.profiles import profile
from hesim.params import CKKSParams

__all__ = ["BINS_PER_BIT", "Ring", "Row", "encode_std", "histogram", "parameters", "quantile"]

BINS_PER_BIT = 32
_LOWEST, _HIGHEST = -70, 10
_DRAWS = 4
"""Draws of the remaining randomness for the prediction from a key."""


@dataclass(frozen=True)
class Row:
    """Errors of one row under one key.

    Attributes:
      mean_square: of the measured error. predicted: what is expected of it given the key.
      counts: histogram of log2 |error|, see `histogram`.
    """

    mean_square: float
    predicted: float
    counts: np.ndarray


def parameters(log_n: int, first_bits: int, levels: int) -> CKKSParams:
    """40-bit levels between the first prime and a 60-bit special one, secure or not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CKKSParams(log_n, levels, 40, first_bits, 60, security=None)


def histogram(errors: np.ndarray) -> np.ndarray:
    """Counts of log2 |error| in bins of 1 / `BINS_PER_BIT` bit; zeros are in the lowest."""
    bits = np.log2(np.maximum(np.abs(errors).ravel(), 2.0**_LOWEST))
    places = np.floor((bits - _LOWEST) * BINS_PER_BIT).astype(int)
    bins = (_HIGHEST - _LOWEST) * BINS_PER_BIT
    return np.bincount(np.clip(places, 0, bins - 1), minlength=bins)


def quantile(counts: np.ndarray, q: float) -> float:
    """log2 of a quantile of |error|, to half a bin."""
    place = int(np.searchsorted(np.cumsum(counts), q * counts.sum()))
    return _LOWEST + (place + 0.5) / BINS_PER_BIT


def encode_std(params: CKKSParams, x: np.ndarray) -> float:
    """Predicted std of the error of an encoded vector, decoded again; of a constant one its only
    coefficient's.
    """
    scale = params.scale(params.levels)
    if np.all(x == x[0]):
        return abs(float(round(x[0] * scale) / scale - x[0]))
    library = profile("seal")
    rounded = formulas.encode_std(params, params.levels, library, scalar=False)
    rms = float(np.sqrt(2.0 * np.mean(x**2)))
    return math.hypot(rounded, formulas.float_std(rms, params.n, library))


class Ring:
    """What is measured in one ring: cases by distribution, and their exact slot values."""

    def __init__(self, params: CKKSParams, cases: Mapping[str, list[Case]]) -> None:
        self.params, self.cases = params, cases
        self.reader = KeyReader(params)
        steps = {s for group in cases.values() for c in group for s in c.circuit.rotation_steps}
        self.steps = sorted(steps)
        self._exact: dict[tuple[str, str], dict[int, np.ndarray]] = {}
        for distribution, group in cases.items():
            for case in group:
                plain = SlotsMachine(params, case.circuit.slots)
                self._exact[distribution, case.name] = self._run(plain, case)

    def measure(self) -> dict[tuple[str, str], Row]:
        """Rows by (distribution, row) under a fresh key, with rows' names as in the cases."""
        machine = PyfhelMachine.generate(self.params, self.steps)
        secret, switches = self.reader.read(machine)
        given: dict[str, Any] = {
            "secrets": np.repeat(secret[None], _DRAWS, axis=0),
            "switches": {k: np.repeat(e[None], _DRAWS, axis=0) for k, e in switches.items()},
            "seed": int(np.random.SeedSequence().entropy) % 2**32,  # type: ignore[arg-type]
        }
        found: dict[tuple[str, str], Row] = {}
        for distribution, group in self.cases.items():
            found[distribution, "encode"] = self._encoded(machine, group[0].inputs[0])
            for case in group:
                exact = self._exact[distribution, case.name]
                vectors = self._run(machine, case)
                predicted = certify(
                    case.circuit, inputs=case.inputs, operands=case.operands, **given
                )
                for tap, op in zip(case.circuit.taps, predicted.ops, strict=True):
                    errors = tap.read(vectors) - tap.read(exact)
                    row = Row(float(np.mean(errors**2)), op.std**2, histogram(errors))
                    found[distribution, op.name] = row
        return found

    def _encoded(self, machine: PyfhelMachine, x: np.ndarray) -> Row:
        top = self.params.levels
        vector = np.resize(x, self.params.slots)
        plain = machine.encode(vector, top, self.params.scale(top))
        errors = np.real(plain.handle.decode())[: vector.size] - vector
        return Row(
            float(np.mean(errors**2)), encode_std(self.params, vector) ** 2, histogram(errors)
        )

    def _run(self, machine: Any, case: Case) -> dict[int, np.ndarray]:
        machine.slots = case.circuit.slots
        vectors, _ = run_local(case.circuit, machine, case.inputs, case.operands, case.ciphers)
        return vectors
