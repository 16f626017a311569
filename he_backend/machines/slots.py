"""The plain interpreter of Circuits as a machine of this package: its keys are none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hesim.circuit.plain.slots import PlainMachine
from hesim.params import CKKSParams

__all__ = ["SlotsMachine"]


class SlotsMachine(PlainMachine):
    """`hesim.circuit.plain.slots.PlainMachine`, with the methods of a `KeyMaker`."""

    @classmethod
    def generate(
        cls, params: CKKSParams, rotation_steps: Iterable[int] = (), slots: int | None = None
    ) -> SlotsMachine:
        """A machine that rotates by these steps, as one with keys for them would."""
        return cls(params, slots, rotation_steps)

    @classmethod
    def make_keys(
        cls, params: CKKSParams, rotation_steps: Iterable[int], server: Path, client: Path
    ) -> None:
        """Nothing: there are no keys."""

    @classmethod
    def key_sizes(cls, params: CKKSParams, rotation_steps: Iterable[int]) -> dict[str, int]:
        """None: there are no keys."""
        return {}

    @classmethod
    def check_keys(cls, params: CKKSParams, rotation_steps: Iterable[int], server: Path) -> None:
        """Nothing: there are no keys."""

    @classmethod
    def key_holder(cls, params: CKKSParams, slots: int, client: Path) -> SlotsMachine:
        """A machine that encrypts and decrypts nothing really, and rotates by no step."""
        return cls(params, slots, ())

    @classmethod
    def evaluator(
        cls,
        params: CKKSParams,
        slots: int,
        levels: Iterable[int] = (),
    ) -> SlotsMachine:
        """A machine that rotates by no step as yet."""
        return cls(params, slots, ())

    def load_keys(self, server: Path, rotation_steps: Iterable[int]) -> None:
        """From now on it rotates by these steps."""
        self.rotation_steps = frozenset(int(step) for step in rotation_steps)
