"""Bundle: a Circuit, its public operands, and the form of its arguments and results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hesim.bundles import content, structure
from hesim.bundles.opened import OpenOperand, filled
from hesim.circuit.circuit import Circuit, Kind
from hesim.circuit.plain.errors import ValueRangeError
from hesim.display import shown_as_text, text_table
from hesim.errors import BundleError

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Shaped

__all__ = ["Bundle", "Leaf"]


@dataclass(frozen=True)
class Leaf:
    """One array of a call.

    Attributes:
      label: its name, as `hesim.trace` gives it. shape: as traced.
      dtype: name of the dtype that it was traced with.
      encrypted: whether it is encrypted; otherwise a public argument that was left open.
      low, high: values that it may have, if examples were met; infinite otherwise.
    """

    label: str
    shape: tuple[int, ...]
    dtype: str
    encrypted: bool
    low: float = -np.inf
    high: float = np.inf


@dataclass(frozen=True, eq=False, repr=False)
class Bundle:
    """A compiled program that runs without JAX and without the code that it was traced from.

    It is made by `hesim.bundle`, written by `hesim.save` and read by `hesim.load`. A call takes the
    arguments that are encrypted or were left open, in the order of the traced function's.

    Attributes:
      name: of the traced function.
      circuit: what is executed.
      call: structure of the arguments of a call, whose leaves are numbers in `leaves`.
      leaves: what these are.
      operands: public operands of the Circuit, float64, each of any shape, None where one is open;
        None as a whole in the part of a key holder.
      opened: how open operands are made.
      result: structure of the result, whose leaves are numbers.
      publics: by number, the arrays of the result that are public, of any shape.
      ranges: smallest and largest slot value that a decrypted ciphertext may have, by number.
      versions: of this package and of libraries, where it was made.
      whole: of a key holder's part, the digest of the Bundle that it is a part of; else empty.

    Examples:
      >>> import hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> x, w = np.ones(4), np.arange(4.0)
      >>> circuit = hesim.compile(hesim.trace(lambda x, w: {"y": x * w}, x, w), params)
      >>> bundle = hesim.bundle(circuit, x, w)
      >>> bundle
      Bundle of <lambda>: 1 encrypted argument, N = 2^12, 1 levels, 0 refreshes
      >>> bundle.for_key_holder().operands is None
      True
    """

    name: str
    circuit: Circuit
    call: structure.Structure
    leaves: tuple[Leaf, ...]
    operands: tuple[Float64[np.ndarray, "..."] | None, ...] | None
    opened: tuple[OpenOperand, ...]
    result: structure.Structure
    publics: Mapping[int, Shaped[np.ndarray, "..."]]
    ranges: Mapping[int, tuple[float, float]]
    versions: Mapping[str, str] = field(default_factory=dict)
    whole: str = ""

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of all that there is to this Bundle; the same once it was loaded."""
        return content.digest(self)

    @property
    def evaluated(self) -> str:
        """The digest of the Bundle that is evaluated: of the whole, in a key holder's part too."""
        return self.whole or self.digest

    @cached_property
    def decrypted(self) -> tuple[int, ...]:
        """Ciphertexts that hold the result, each once, ascending."""
        taps = (tap for tap in self.circuit.outputs if tap is not None)
        return tuple(sorted({int(c) for tap in taps for c in tap.ciphers}))

    @cached_property
    def carried(self) -> frozenset[int]:
        """Encrypted leaves, by number, that a call takes as they lie where another one left them,
        if it goes on from that.
        """
        inputs = {i for _, i in self.circuit.carried}
        secret = [k for k, leaf in enumerate(self.leaves) if leaf.encrypted]
        found = dict.fromkeys(secret, bool(inputs))
        for i in np.flatnonzero(self.circuit.kind == Kind.INPUT).tolist():
            family, _ = self.circuit.input_rows[int(self.circuit.param[i])]
            leaf = secret[self.circuit.inputs[family].operand]
            found[leaf] = found[leaf] and i in inputs
        return frozenset(k for k, whole in found.items() if whole)

    @cached_property
    def returned(self) -> tuple[int, ...]:
        """Of the ciphertexts that hold the result those that are not carried to another call."""
        left = {c for c, _ in self.circuit.carried}
        return tuple(c for c in self.decrypted if c not in left)

    def for_key_holder(self) -> Bundle:
        """The part that whoever encrypts and decrypts needs: no operand, no number of the function.

        It has the Circuit's instructions, which say what may be asked for and at which level and
        scale, the form of arguments and results, ranges, and the digest of the whole.
        """
        if self.operands is None:
            return self
        none = {name: getattr(self.circuit, name)[:0] for name in _OF_PLAINTEXTS}
        outline = dataclasses.replace(
            self.circuit,
            packs=(),
            taps=(),
            operand_count=0,
            program=None,
            publics=None,
            **none,
        )
        return dataclasses.replace(
            self, circuit=outline, operands=None, opened=(), whole=self.digest
        )

    def arguments(self, *args: Any, follows: bool = False) -> list[Shaped[np.ndarray, "..."]]:
        """The leaves of a call, in order: float64 if they are encrypted, else as traced.

        Args:
          args: of the call. follows: whether it goes on from another call, so that carried ones are
            not looked at: None may stand for such an argument. Zeros are returned for them.

        Raises:
          BundleError: another structure, shape or kind of values than those of the function.
          ValueRangeError: values to encrypt that are not finite, or unlike the examples.
        """
        names = [leaf.label for leaf in self.leaves]
        if len(args) != len(list(self.call["tuple"])):
            raise BundleError(
                f"{self.name} takes {len(self.call['tuple'])} arguments here, with the leaves "
                f"{', '.join(names)}, not {len(args)}: the others are part of the bundle"
            )
        left = self.carried if follows else frozenset()
        given = [
            structure.filled(part, dict.fromkeys(structure.numbers(part)))
            if arg is None and left.issuperset(structure.numbers(part))
            else arg
            for part, arg in zip(self.call["tuple"], args, strict=True)
        ]
        found = structure.leaves_of(self.call, given, "the tuple of arguments")
        return [
            np.zeros(leaf.shape) if k in left else _checked(found[k], leaf)
            for k, leaf in enumerate(self.leaves)
        ]

    def secret(self, leaves: Sequence[Shaped[np.ndarray, "..."]]) -> list[Any]:
        """Of the leaves of a call, those that are encrypted."""
        return [x for x, leaf in zip(leaves, self.leaves, strict=True) if leaf.encrypted]

    def filled(self, leaves: Mapping[int, Any] | Sequence[Any]) -> list[Float64[np.ndarray, "..."]]:
        """All operands, open ones from the leaves of a call; encrypted leaves are not looked at.

        Raises:
          BundleError: it is a key holder's part, which has none, or an open argument is not finite.
        """
        if self.operands is None:
            raise BundleError(
                "this is the key holder's part of a bundle, which has no operands: evaluate the "
                "whole one"
            )
        held = {leaf: leaves[leaf] for leaf in {each.leaf for each in self.opened}}
        labels = [leaf.label for leaf in self.leaves]
        return filled(self.operands, self.opened, held, labels)

    def outputs(self, vectors: Mapping[int, Float[np.ndarray, " slots"]]) -> Any:
        """The result out of decrypted slot vectors, by ciphertext: NumPy arrays in dicts, lists and
        tuples. None stands for what is carried and was not decrypted.
        """
        left = {c for c, _ in self.circuit.carried} - set(vectors)
        read = {
            k: self.publics[k]
            if tap is None
            else None
            if left.intersection(tap.ciphers.tolist())
            else tap.read(vectors)
            for k, tap in enumerate(self.circuit.outputs)
        }
        return structure.filled(self.result, read)

    def __repr__(self) -> str:
        p, ledger = self.circuit.params, self.circuit.ledger
        part = "Key holder's part of the bundle" if self.operands is None else "Bundle"
        return (
            f"{part} of {self.name}: {_counted(self.leaves)}, N = 2^{p.log_n}, {p.levels} levels, "
            f"{ledger.refreshes:,} refresh{'' if ledger.refreshes == 1 else 'es'}"
        )

    def __str__(self) -> str:
        rows = [("argument", "shape", "dtype", "", "from", "to"), *map(_row, self.leaves)]
        return f"{self!r}\n{text_table(rows)}\ndigest {self.evaluated}"

    _repr_pretty_ = shown_as_text


_OF_PLAINTEXTS = ("plain_pack", "plain_row", "plain_level", "plain_scale")


def _checked(given: Any, leaf: Leaf) -> np.ndarray:
    try:
        raw = np.asarray(given)
        real = not np.iscomplexobj(raw)
        fits = np.can_cast(raw.dtype, leaf.dtype, "same_kind") or (leaf.encrypted and real)
        with np.errstate(over="ignore"):
            kept = raw if real else np.real(raw)
            array = kept.astype(np.float64 if leaf.encrypted else leaf.dtype)
    except (TypeError, ValueError) as error:
        raise BundleError(f"{leaf.label} is no array of {leaf.dtype}: {error}") from error
    if array.shape != leaf.shape or not fits:
        raise BundleError(
            f"{leaf.label} must be {leaf.dtype} of shape {leaf.shape}, with which the program was "
            f"traced, not {raw.dtype} of shape {array.shape}"
        )
    infinite = int(np.sum(~np.isfinite(array)))
    if infinite:
        raise ValueRangeError(
            f"{infinite} of {array.size} values are NaN or infinite; clean the input first"
        ).at(f"input {leaf.label}", "")
    if array.dtype.kind in "iu" and not np.array_equal(array, raw):
        raise BundleError(f"{leaf.label} has values that are no {leaf.dtype}")
    if not leaf.encrypted:
        return array
    low, high = array.min(initial=np.inf), array.max(initial=-np.inf)
    if low < leaf.low or high > leaf.high:
        raise ValueRangeError(
            f"values from {low:.4g} to {high:.4g} leave [{leaf.low:.4g}, {leaf.high:.4g}], where "
            f"those of the bundle's examples lay: they may lead out of a polynomial's domain, "
            f"which nobody sees once they are encrypted. Make the bundle with examples like them"
        ).at(f"input {leaf.label}", "")
    return array


def _counted(leaves: Sequence[Leaf]) -> str:
    secret = sum(leaf.encrypted for leaf in leaves)
    shown = f"{secret} encrypted argument{'s' if secret != 1 else ''}"
    return f"{shown} and {len(leaves) - secret} left open" if secret < len(leaves) else shown


def _row(leaf: Leaf) -> tuple[str, ...]:
    kind = "encrypted" if leaf.encrypted else "open, in the clear"
    bounds = (f"{b:.4g}" if np.isfinite(b) else "" for b in (leaf.low, leaf.high))
    return (leaf.label, str(leaf.shape), leaf.dtype, kind, *bounds)
