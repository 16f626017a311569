"""Errors that single instructions of a Circuit make, in slot values."""

from __future__ import annotations

import math

from hesim.circuit.circuit import Kind
from hesim.noise import formulas
from hesim.noise.dc_slots import ALONE, Amplitudes, key_switch_dc_errors
from hesim.noise.profiles import NoiseProfile
from hesim.params import CKKSParams

__all__ = ["InstructionNoise"]


class InstructionNoise:
    """Slot variances of single instructions, in slot values squared; `has_dc_errors`: whether key
    switches have some at any level.
    """

    def __init__(self, params: CKKSParams, profile: NoiseProfile) -> None:
        self._coefficients = {
            (Kind.RESCALE, level): formulas.rescale(profile) for level in range(params.levels + 1)
        }
        for level in range(params.levels + 1):
            switch = formulas.key_switch(params, level, profile)
            self._coefficients[Kind.ROTATE, level] = switch
            self._coefficients[Kind.RELINEARIZE, level] = switch
        self._slots = {
            key: formulas.slot_std(noise, params.n, profile) ** 2
            for key, noise in self._coefficients.items()
        }
        self._refreshes = [
            formulas.refresh_std(params, level, profile) ** 2 for level in range(params.levels + 1)
        ]
        self._dc_errors: dict[int, dict[int, float]] = {}
        for level in range(params.levels + 1):
            self._dc_errors[level] = key_switch_dc_errors(params, level, profile)
            for kind in (Kind.ROTATE, Kind.RELINEARIZE):
                self._slots[kind, level] -= sum(self._dc_errors[level].values()) / params.slots
        self.has_dc_errors = any(self._dc_errors.values())

    def variance(self, kind: int, level: int, scale: float) -> float:
        """In all slots alike, without `dc_errors`; refreshes end at the canonical scale."""
        if kind == Kind.REFRESH:
            return self._refreshes[level]
        return self._slots.get((kind, level), 0.0) / scale**2

    def dc_errors(self, kind: int, level: int, scale: float, key: int) -> Amplitudes:
        """Besides, by slot of the ring; `key` names the switching key."""
        if kind not in (Kind.ROTATE, Kind.RELINEARIZE):
            return {}
        return {
            j: {((key, j), ALONE): math.sqrt(v) / scale} for j, v in self._dc_errors[level].items()
        }
