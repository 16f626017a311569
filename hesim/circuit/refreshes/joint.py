"""Several ciphertexts in one for a refresh: where each of them goes in it, and how it comes out.

Of a ciphertext only columns count that some result depends on, and of copies one. Copies lie, in
every layout, at distances of powers of two, so what is left is found bit by bit of the column's
number. It is taken out by a mask, beside what others leave free, and behind the refresh by a mask
again, from which copies are made by rotations. Where a ciphertext has a copy at the free place
already, it is not rotated. Imports no JAX.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hesim.circuit.refreshes.contents import PRIME
from hesim.circuit.refreshes.origins import Origin

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Int64

__all__ = ["Core", "Member", "core", "joined"]

_COPIES = 256
"""Places of copies, at most, at which a ciphertext is tried without a rotation."""

_PLACES = 4096
"""Places, at most, at which it is tried with one."""


@dataclass(frozen=True, eq=False)
class Core:
    """What of a ciphertext has to go through a refresh.

    Attributes:
      columns: where it is taken to lie, one copy of each element.
      bits: of columns' numbers, by which its copies are reached from there.
      source: node that has it, over `factor`. at: columns by which it lies further up there.
      count: columns of the ciphertext.
    """

    columns: Int[np.ndarray, " elements"]
    bits: tuple[int, ...]
    source: int
    factor: float
    at: tuple[int, ...]
    count: int


@dataclass(frozen=True, eq=False)
class Member:
    """A ciphertext's place in a joint one.

    Attributes:
      node: of the ciphertext. cipher: which of the joint ones.
      source, factor: node that holds it, over that factor.
      turned: columns by which that is moved up to get there; 0 for none.
      place: bool, columns in which it then lies.
      back: steps of rotate-and-add that make its copies behind the mask.
      shift: columns by which it is moved down again before them.
    """

    node: int
    cipher: int
    source: int
    factor: float
    turned: int
    place: Bool[np.ndarray, " all"]
    back: tuple[int, ...]
    shift: int


def core(
    prints: Int64[np.ndarray, "draws columns"],
    needed: Bool[np.ndarray, " columns"],
    sources: Iterable[tuple[Origin, Int64[np.ndarray, "draws columns"]]],
) -> Core | None:
    """What of a ciphertext has to be refreshed; None if all of it is zero.

    Args:
      prints: as of `contents.fingerprints`. needed: columns on which results depend.
      sources: nodes that may have it, itself first, and their fingerprints; the last one is taken
        that does.

    Examples:
      >>> import numpy as np
      >>> from hesim.circuit.refreshes.joint import core
      >>> from hesim.circuit.refreshes.origins import Origin
      >>> held = np.array([[5, 7, 5, 7]])
      >>> found = core(held, np.ones(4, bool), [(Origin(0, 1.0, np.array([[1]])), held)])
      >>> found.columns.tolist(), found.bits, found.at
      ([0, 1], (2,), (0, 2))
    """
    count = prints.shape[1]
    held: np.ndarray = np.any(prints != 0, axis=0)
    columns = np.flatnonzero(held & needed)
    if not len(columns):
        return None
    bits: list[int] = []
    for bit in (1 << k for k in range(count.bit_length() - 1)):
        fewer = np.unique(columns & ~bit)
        alike = np.array_equal(prints[:, columns & ~bit], prints[:, columns])
        if len(fewer) < len(columns) and alike and _reach(fewer, [*bits, bit], held):
            columns = fewer
            bits.append(bit)
    found: tuple[Origin, tuple[int, ...]] | None = None
    for origin, other in sources:
        at = _lies(prints[:, columns], columns, other * origin.prints % PRIME)
        found = (origin, at) if at else found
    assert found is not None, "what a ciphertext holds lies in itself"
    return Core(columns, tuple(bits), found[0].node, found[0].factor, found[1], count)


def _lies(own: np.ndarray, columns: np.ndarray, prints: np.ndarray) -> tuple[int, ...]:
    """Columns by which `own`, which lies in `columns`, lies further up in another ciphertext."""
    count = prints.shape[1]
    first = np.flatnonzero(np.all(prints == own[:, :1], axis=0))
    distances = np.sort((first - columns[0]) % count)[:_COPIES].tolist()
    return tuple(d for d in distances if np.array_equal(prints[:, (columns + d) % count], own))


def _spread(columns: np.ndarray, bits: Sequence[int]) -> np.ndarray:
    for bit in bits:
        columns = np.concatenate([columns, columns | bit])
    return columns


def _reach(columns: np.ndarray, bits: Sequence[int], held: np.ndarray) -> bool:
    """Whether copies come to columns alone that are not zero: what reads zeros must find them."""
    return bool(held[_spread(columns, bits)].all())


def joined(cores: Sequence[tuple[int, Core]]) -> list[Member]:
    """Places of ciphertexts, by node, in as few as can be found, the largest first."""
    members: list[Member] = []
    taken: list[np.ndarray] = []
    for node, own in sorted(cores, key=lambda entry: -len(entry[1].columns)):
        found = next(
            (m for k, held in enumerate(taken) if (m := _placed(node, own, k, held)) is not None),
            None,
        )
        if found is None:
            taken.append(np.zeros(own.count, bool))
            found = _placed(node, own, len(taken) - 1, taken[-1])
            assert found is not None, "an empty ciphertext has room for any"
        taken[found.cipher] = taken[found.cipher] | found.place
        members.append(found)
    return members


def _placed(node: int, own: Core, cipher: int, taken: np.ndarray) -> Member | None:
    """The place of a ciphertext beside what is taken, if there is any."""
    count = len(taken)
    if taken.sum() + len(own.columns) > count:
        return None
    others = (d for d in _distances(count) if d not in own.at)
    for d in itertools.chain(own.at, itertools.islice(others, _PLACES)):
        columns = (own.columns + d) % count
        if taken[columns].any():
            continue
        # Up by some of the copies' distances, it is at another copy's place: they lie below, too.
        inner = not d & ~sum(own.bits)
        place = np.zeros(count, bool)
        place[columns] = True
        return Member(
            *(node, cipher, own.source, own.factor),
            turned=0 if d in own.at else (d - own.at[0]) % count,
            place=place,
            back=tuple(bit if inner and d & bit else -bit for bit in own.bits),
            shift=0 if inner else d,
        )
    return None


def _distances(count: int) -> Iterator[int]:
    """0 to count - 1, multiples of large powers of two first."""
    yield 0
    step = count
    while step > 1:
        step //= 2
        yield from range(step, count, 2 * step)
