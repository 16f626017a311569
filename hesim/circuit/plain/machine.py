"""What executing a Circuit takes of a machine, and no more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from hesim.params import CKKSParams

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Bootstrapper", "Cipher", "Evaluator", "Plain"]


class Cipher(Protocol):
    """A ciphertext, with what everybody may know about it.

    Attributes:
      level: rescales left; level + 1 data primes.
      scale: exact scale of the message.
      components: polynomials, 2, or 3 between a product and its relinearization.
    """

    @property
    def level(self) -> int: ...
    @property
    def scale(self) -> float: ...
    @property
    def components(self) -> int: ...


class Plain(Protocol):
    """An encoded plaintext vector; `zero` if it rounds to nothing, and `nbytes` of memory."""

    @property
    def level(self) -> int: ...
    @property
    def scale(self) -> float: ...
    @property
    def zero(self) -> bool: ...
    @property
    def nbytes(self) -> int: ...


@runtime_checkable
class Evaluator(Protocol):
    """Computes on ciphertexts, without a secret key.

    No method changes its arguments; every result is a new ciphertext, and hides what it holds: a
    sum whose ciphertexts cancel has a fresh encryption of zero added. Vectors are float64 of
    `slots` values, tiled over the ring, so rotations are cyclic modulo `slots`. A refused operation
    raises CircuitError, MissingRotationKey, EncodeError or BlobError.

    Attributes:
      name: "slots", "pyfhel", ...
      params: the ring and its primes.
      slots: values to a vector, a power of two, at most params.slots.
      encrypts: whether the numbers are encrypted at all.
    """

    name: str
    params: CKKSParams
    slots: int
    encrypts: bool

    def encode(self, values: Float[np.ndarray, " slots"] | float, level: int, scale: float) -> Any:
        """A Plain at `level` and `scale`; a float stands for the same value in every slot."""
        ...

    def add(self, ciphers: Sequence[Any], factors: Sequence[int]) -> Any:
        """Sum of factor · cipher, all at one level and scale."""
        ...

    def add_plain(self, cipher: Any, plain: Any) -> Any:
        """cipher + plain, both at one level and scale."""
        ...

    def dot(self, left: Sequence[Any], right: Sequence[Any], factors: Sequence[int]) -> Any:
        """Sum of factor · left · right: three components, the product of the scales, same level."""
        ...

    def dot_plain(self, ciphers: Sequence[Any], plains: Iterable[Any]) -> Any:
        """Sum of cipher · plain; zero plaintexts are left out. The product of the scales.

        Plaintexts are taken one at a time, and let go of: a sum may have thousands, half a megabyte
        each.
        """
        ...

    def dot_scalars(
        self, ciphers: Sequence[Any], rows: Float[np.ndarray, "rows ciphers"], scale: float
    ) -> list[Any]:
        """One sum of cipher · scalar a row of `rows[row, cipher]`, scalars encoded at `scale`."""
        ...

    def rotate(self, cipher: Any, step: int) -> Any:
        """out[s] = in[(s + step) mod slots]; two components in and out."""
        ...

    def relinearize(self, cipher: Any) -> Any:
        """The same message with two components."""
        ...

    def rescale(self, cipher: Any) -> Any:
        """One level down, the scale divided by the prime that goes."""
        ...

    def drop(self, cipher: Any, level: int) -> Any:
        """The same message and scale at a lower `level`."""
        ...

    def set_exact_scale(self, cipher: Any, level: int, scale: float) -> Any:
        """`cipher`, its level checked, its scale set to exactly `scale`; only dust may differ."""
        ...

    def cipher_size(self, components: int, level: int) -> int:
        """Bytes that `to_bytes` returns."""
        ...

    def to_bytes(self, cipher: Any) -> bytes: ...

    def from_bytes(self, blob: bytes, level: int, scale: float, components: int = 2) -> Any:
        """The ciphertext in `blob`, which must be exactly as announced, else BlobError."""
        ...

    def check_bytes(self, blob: bytes, level: int, scale: float, components: int = 2) -> None:
        """Raises BlobError where `from_bytes` would: for whoever passes a ciphertext on."""
        ...


@runtime_checkable
class Bootstrapper(Protocol):
    """An Evaluator that refreshes by itself."""

    def bootstrap(self, cipher: Any, level: int) -> Any:
        """The same message, of slots of at most 1, with fresh levels: at `level`, at its canonical
        scale. `cipher` has two components, the canonical scale of its level, and levels enough.
        """
        ...
