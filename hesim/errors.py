"""The errors that hesim raises, each saying what is wrong, where, and what to do next."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from approx.errors import HesimError

if TYPE_CHECKING:
    from hesim.source import Source

__all__ = [
    "ArgumentError",
    "BundleError",
    "ConstantValuesWarning",
    "EmptySlotsWarning",
    "FolderInUseError",
    "HesimError",
    "LayoutError",
    "LevelError",
    "NotHomomorphicError",
    "Obstacle",
    "OverBudgetError",
    "ParameterError",
    "SwallowedNoiseWarning",
    "TooLargeError",
    "TraceError",
    "UnknownNoiseError",
    "ValueOverflowError",
    "ValueOverflowWarning",
    "reading",
]


_MOST_SHOWN = 20
"""Obstacles of one function that its error lists, beside the first."""

_OF_BAD_FILES = (ValueError, LookupError, TypeError, AttributeError, EOFError)


class ArgumentError(HesimError, ValueError):
    """An argument or a setting that a call cannot take, or that does not fit another one.

    Examples:
      >>> import hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> program = hesim.trace(lambda x: x + 1, np.zeros(2))
      >>> circuit = hesim.compile(program, params)
      >>> hesim.certify(circuit, (np.zeros(2),), secrets=np.zeros((8, 5)))
      Traceback (most recent call last):
          ...
      hesim.errors.ArgumentError: secrets have shape (8, 5), not (keys, slots) = (8, 2048): ...
    """


class BundleError(HesimError, ValueError):
    """A bundle that cannot be made, read or called so: names the file, argument or operation.

    Examples:
      >>> import hesim, tempfile
      >>> hesim.load(tempfile.mkdtemp())
      Traceback (most recent call last):
          ...
      hesim.errors.BundleError: ... holds no bundle: ...
    """


class ParameterError(HesimError, ValueError):
    """CKKS parameters that cannot work, or are not secure at the level asked for.

    Examples:
      >>> import hesim
      >>> hesim.CKKSParams(log_n=14, levels=2, scale_bits=40, first_bits=30, special_bits=60)
      Traceback (most recent call last):
          ...
      hesim.errors.ParameterError: first_bits=30 is not above scale_bits=40: ...
    """


class TraceError(HesimError, ValueError):
    """A function or its arguments cannot be traced as asked (shapes, dtypes, `encrypted`).

    Examples:
      >>> import hesim, numpy as np
      >>> one = np.float32(1)
      >>> hesim.trace(lambda x: x if x > 0 else -x, one)
      Traceback (most recent call last):
          ...
      hesim.errors.TraceError: <lambda> needs the number in a traced value at ...
    """


@dataclass(frozen=True)
class Obstacle:
    """One operation on encrypted values that additions and products cannot express.

    Attributes:
      operation: name of the JAX primitive.
      source: the caller's file, line and function, or None if JAX kept none.
      reason, instead: why, and what to use instead.
      layer: the library function that it lies in; empty if it is the caller's own.
    """

    operation: str
    source: Source | None
    reason: str
    instead: str
    layer: str = ""

    def __str__(self) -> str:
        inside = f" in {self.layer}" if self.layer else ""
        where = f" at {self.source}" if self.source is not None else ""
        what = f"`{self.operation}` on an encrypted value{inside}{where}"
        return f"{what}: {self.reason} {self.instead}"


class NotHomomorphicError(HesimError, TypeError):
    """Operations on encrypted values that additions and products cannot express.

    Attributes:
      operation, source: of the first one.
      obstacles: all of them, in the order in which they were met.

    Examples:
      >>> import hesim, jax.numpy as jnp, numpy as np
      >>> try:
      ...     hesim.trace(lambda x: jnp.tanh(x), np.zeros(4))
      ... except hesim.NotHomomorphicError as error:
      ...     print(error.operation, error.source is not None)
      tanh True
    """

    def __init__(
        self,
        operation: str,
        source: Source | None,
        reason: str,
        instead: str,
        *,
        layer: str = "",
        more: Sequence[Obstacle] = (),
        hint: str = "",
    ):
        self.operation = operation
        self.source = source
        self.obstacles = (Obstacle(operation, source, reason, instead, layer), *more)
        text = str(self.obstacles[0])
        if more:
            shown = "".join(f"\n - {one}" for one in more[:_MOST_SHOWN])
            text += f"\nAnd {len(more)} more to replace:{shown}"
        if len(more) > _MOST_SHOWN:
            text += f"\n - ... and {len(more) - _MOST_SHOWN} others"
        super().__init__(f"{text}\n{hint}" if hint else text)

    @classmethod
    def of(cls, obstacles: Sequence[Obstacle], hint: str = "") -> NotHomomorphicError:
        """One error for all obstacles of a function, at least one; `hint`: said at the end."""
        first, *more = obstacles
        return cls(
            first.operation,
            first.source,
            first.reason,
            first.instead,
            layer=first.layer,
            more=more,
            hint=hint,
        )


class FolderInUseError(HesimError, BlockingIOError):
    """Another process, or another thread of this one, is using a folder."""


class LevelError(HesimError, ValueError):
    """A computation needs more levels than the parameters carry, and a refresh is forbidden.

    Attributes:
      needed: levels that it would take; None if it is not known, or none suffice.

    Examples:
      >>> import hesim, math, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> program = hesim.trace(lambda x: (x * x) * (x * x), np.zeros(4))
      >>> hesim.compile(program, params, refresh_price=math.inf)
      Traceback (most recent call last):
          ...
      hesim.errors.LevelError: ...
    """

    def __init__(self, message: str, needed: int | None = None):
        self.needed = needed
        super().__init__(message)


class LayoutError(HesimError, ValueError):
    """A tensor does not fit the slots, or two layouts do not agree.

    Examples:
      >>> import hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> program = hesim.trace(lambda x: x + 1, np.zeros((2, 2)))
      >>> hesim.compile(program, params, layouts=[(0,), (1,)])
      Traceback (most recent call last):
          ...
      hesim.errors.LayoutError: layouts has 2 entries, but 1 inputs are encrypted.
    """


class UnknownNoiseError(HesimError, LookupError):
    """The table of noise rules has no row for a primitive, whose errors would be left out."""


class TooLargeError(LayoutError, MemoryError):
    """An operation whose layout does not fit into the memory that is free.

    Attributes:
      operation: name and place of the operation.
      size: bytes that it would take.
      free: bytes that it may take.

    Examples:
      >>> import hesim
      >>> error = hesim.TooLargeError("`add` at model.py:7", 23_000_000_000, 8_000_000_000)
      >>> isinstance(error, (hesim.LayoutError, MemoryError)), "23.0 GB" in str(error)
      (True, True)
    """

    def __init__(self, operation: str, size: int, free: int):
        self.operation, self.size, self.free = operation, size, free
        super().__init__(
            f"{operation}: laying it out takes about {size / 1e9:,.1f} GB of memory, and "
            f"{free / 1e9:,.1f} GB are free. Split the batch or the tensor into several runs, sum "
            f"in parts, or compile on a machine with more memory."
        )


class OverBudgetError(LayoutError, MemoryError):
    """Nothing that was planned runs within the bytes that the caller allows.

    Attributes:
      needed: bytes of the plan that takes the fewest. memory: that are allowed.

    Examples:
      >>> import hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> program = hesim.trace(lambda x: x.sum(), np.zeros(8))
      >>> hesim.compile(program, params, memory=1_000_000)
      Traceback (most recent call last):
          ...
      hesim.errors.OverBudgetError: <lambda> takes at least ...
    """

    def __init__(self, message: str, needed: int, memory: int):
        self.needed, self.memory = needed, memory
        super().__init__(message)


class ValueOverflowError(HesimError, OverflowError):
    """Values met in calibration, or in a certified run, wrap around the modulus at some level.

    Examples:
      >>> import hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> program = hesim.trace(lambda x: x * x, np.zeros(2))
      >>> ranges = hesim.calibrate(program, [(np.array([1.0, 1e4]),)])
      >>> ranges.check(params)
      Traceback (most recent call last):
          ...
      hesim.errors.ValueOverflowError: ...
    """


class EmptySlotsWarning(UserWarning):
    """A plan leaves slots empty that more members of the batch would fill at the same price."""


class ConstantValuesWarning(UserWarning):
    """Calibration met one value only where a polynomial is fitted: its domain holds little else."""


class SwallowedNoiseWarning(UserWarning):
    """Simulated noise is smaller than the rounding of the numbers that it is added to."""


class ValueOverflowWarning(UserWarning):
    """Values that a prediction met wrap around the modulus: encrypted, they would be refused."""


@contextmanager
def reading(path: str | Path | BinaryIO, what: str) -> Iterator[None]:
    """ParameterError that names the file, for whatever goes wrong in reading a saved `what`; a file
    that cannot be opened is an OSError.
    """
    try:
        yield
    except (*_OF_BAD_FILES, zipfile.BadZipFile) as error:
        # NumPy's own words for a foreign file speak of unpickling it.
        cause = "" if "pickle" in str(error) else f" ({error})"
        raise ParameterError(
            f"{path} holds no {what}, is damaged, or is of another version{cause}: save it "
            f"again with {what}.save"
        ) from error
