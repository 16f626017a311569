"""What a machine refuses, each error saying what is wrong, where, and what to do next."""

from __future__ import annotations

from hesim.errors import HesimError

__all__ = [
    "BackendError",
    "BlobError",
    "CircuitError",
    "EncodeError",
    "MissingRotationKey",
    "ValueRangeError",
]

_NAMED_ROWS = 8


class BackendError(HesimError, RuntimeError):
    """Base class: something that a machine, the client or the server refuses to do.

    Attributes:
      operation: name of the Program operation, empty while unknown.
      source: the caller's file and line, empty while unknown.
      slots: the slots whose values are to blame, where values are.
      rows: the members of the batch that lie in these slots, where tensors have a batch.

    Examples:
      >>> import hesim
      >>> from hesim.circuit.plain.slots import PlainMachine
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> machine = PlainMachine(params)
      >>> try:
      ...     machine.drop(machine.encrypt(0.5, 0, params.scale(0)), 1)
      ... except hesim.HesimError as error:
      ...     print(error.at("mul", "model.py:12"))
      `mul` at model.py:12: cannot drop from level 0 to level 1
    """

    operation: str = ""
    source: str = ""
    slots: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()

    def at(self, operation: str, source: str) -> BackendError:
        """This error with its place added; a place that is already known stays."""
        if not self.operation:
            self.operation, self.source = operation, source
        return self

    def __str__(self) -> str:
        text = super().__str__() + _blamed(self.rows)
        if not self.operation:
            return text
        where = f" at {self.source}" if self.source else ""
        return f"`{self.operation}`{where}: {text}"


def _blamed(rows: tuple[int, ...]) -> str:
    """A few rows by number; many are no one's fault, since what wraps around is lost as a whole."""
    if not rows:
        return ""
    if len(rows) > _NAMED_ROWS:
        return f"; it is so in {len(rows)} rows of the batch"
    named = f"row {rows[0]}" if len(rows) == 1 else f"rows {', '.join(map(str, rows))}"
    return f"; it is so in {named} of the batch, counted from 0: the others can go on without"


class CircuitError(BackendError):
    """An instruction that CKKS cannot execute as written: scales, levels or components disagree.

    Examples:
      >>> import hesim
      >>> from hesim.circuit.plain.slots import PlainMachine
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> machine = PlainMachine(params)
      >>> machine.rescale(machine.encrypt(0.5, 0, params.scale(0)))
      Traceback (most recent call last):
          ...
      hesim.circuit.plain.errors.CircuitError: no level is left to rescale; ...
    """


class EncodeError(BackendError, ValueError):
    """A value that cannot be encoded: NaN, infinite, too long, or too large for the modulus.

    Examples:
      >>> import hesim
      >>> from hesim.circuit.plain.slots import PlainMachine
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> PlainMachine(params).encrypt(float("nan"), 1, params.scale(1))
      Traceback (most recent call last):
          ...
      hesim.circuit.plain.errors.EncodeError: ...
    """


class ValueRangeError(BackendError, ValueError):
    """A decrypted or exact value is outside what its level can carry, or its calibrated range.

    Examples:
      >>> import hesim
      >>> from hesim.circuit.plain.slots import PlainMachine
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> machine = PlainMachine(params)
      >>> machine.add([machine.encrypt(10.0, 0, params.scale(0))], [2])
      Traceback (most recent call last):
          ...
      hesim.circuit.plain.errors.ValueRangeError: values of mean magnitude 20 are too large ...
    """


class MissingRotationKey(BackendError, LookupError):
    """A rotation by a step for which no key was generated.

    Attributes:
      step: the missing rotation, in slots to the left.

    Examples:
      >>> import hesim
      >>> from hesim.circuit.plain.slots import PlainMachine
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> machine = PlainMachine(params, rotation_steps=(1, 2))
      >>> machine.rotate(machine.encrypt(0.5, 1, params.scale(1)), 3)
      Traceback (most recent call last):
          ...
      hesim.circuit.plain.errors.MissingRotationKey: there is no rotation key for step 3; ...
    """

    def __init__(self, message: str, step: int = 0):
        super().__init__(message)
        self.step = step


class BlobError(BackendError, ValueError):
    """Bytes that are not the ciphertext or key they should be: truncated, altered, or foreign.

    Examples:
      >>> import hesim
      >>> from hesim.circuit.plain.slots import PlainMachine
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> PlainMachine(params).from_bytes(b"cut off", 1, params.scale(1))
      Traceback (most recent call last):
          ...
      hesim.circuit.plain.errors.BlobError: the bytes are not the vector that was announced: ...
    """
