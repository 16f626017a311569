"""Sums whose ciphertexts cancel: what is left of them is hidden by a fresh encryption of zero.

A machine hands on no ciphertext that hides nothing (SEAL calls it transparent and refuses it).
Where all components of a sum but the first are zero whatever the data, as in x - x or (x + w) - x,
it adds a fresh encryption of zero, whose error is then the sum's.

Whether they are is decided by evaluating the components at one random point, modulo a prime of 61
bits: sums and products of ciphertexts are sums and products of numbers there, whatever a machine
rounds or decomposes (rotations, relinearizations, rescales) is a number that depends on what it is
made of alone, and only what is the same for all data comes out as zero.
"""

from __future__ import annotations

import hashlib

from hesim.circuit.circuit import Circuit, Kind
from hesim.noise import formulas
from hesim.noise.formulas import Noise
from hesim.noise.profiles import NoiseProfile

__all__ = ["cancelled", "hiding_noise", "hiding_variances"]

_PRIME = 2**61 - 1

_Components = tuple[int, ...]


def cancelled(circuit: Circuit) -> dict[int, int]:
    """Instructions whose results hide nothing before a fresh encryption of zero is added, and of
    how many components they are.

    Public vectors are told apart by their place in the Circuit, not by their values.
    """
    found: dict[int, int] = {}
    values: dict[int, _Components] = {}
    for i in range(len(circuit)):
        value = _component_values(circuit, i, values)
        if not any(value[1:]):
            found[i] = len(value)
            fresh = (_number("zero", i, k) for k in range(len(value)))
            value = tuple((a + b) % _PRIME for a, b in zip(value, fresh, strict=True))
        values[i] = value
    return found


def hiding_noise(circuit: Circuit, profile: NoiseProfile) -> dict[int, Noise]:
    """By instruction, the error of the encryption of zero in its result, in units of 1/scale.

    One of three components is a product of two encryptions of zero, whose error is nothing beside
    that of any product, and is left out.
    """
    noise = formulas.encrypt(circuit.params.n, profile)
    return {i: noise for i, components in cancelled(circuit).items() if components == 2}


def hiding_variances(circuit: Circuit, profile: NoiseProfile) -> dict[int, float]:
    """By operation, the variance in slot values that encryptions of zero add to its result, in the
    mean over the ciphertexts that hold it.
    """
    found: dict[int, float] = {}
    held = {tap.op: max(len(tap.ciphers), 1) for tap in circuit.taps}
    for i, noise in hiding_noise(circuit, profile).items():
        op = int(circuit.source[i])
        std = formulas.slot_std(noise, circuit.params.n, profile) / float(circuit.scale[i])
        found[op] = found.get(op, 0.0) + std**2 / held.get(op, 1)
    return found


def _component_values(circuit: Circuit, i: int, values: dict[int, _Components]) -> _Components:
    """Components of result i at the random point."""
    kind, part = int(circuit.kind[i]), circuit.args(i)
    terms = [values[a] for a in circuit.arg[part].tolist()]
    others = circuit.arg2[part].tolist()
    factors = circuit.factor[part].tolist()
    if kind in (Kind.INPUT, Kind.REFRESH):
        return _number("fresh", i, 0), _number("fresh", i, 1)
    if kind == Kind.ADD:
        return _summed([_times(c, f) for c, f in zip(terms, factors, strict=True)])
    if kind == Kind.DOT:
        products = [_product(a, values[b]) for a, b in zip(terms, others, strict=True)]
        return _summed([_times(c, f) for c, f in zip(products, factors, strict=True)])
    if kind == Kind.DOT_PLAIN:
        plains = [_plaintext(circuit, p) for p in others]
        return _summed([_times(c, p) for c, p in zip(terms, plains, strict=True)])
    first = terms[0]
    if kind == Kind.ADD_PLAIN:
        return ((first[0] + _plaintext(circuit, others[0])) % _PRIME, *first[1:])
    if kind == Kind.ROTATE:
        step = int(circuit.param[i])
        moved = first[0] * _number("rotation", step) + _number("rotated", step, 0, first[1])
        return moved % _PRIME, _number("rotated", step, 1, first[1])
    if kind == Kind.RELINEARIZE:
        last = first[2] if len(first) == 3 else 0
        parts = zip(first, (_number("relinearized", k, last) for k in (0, 1)))
        return tuple((a + b) % _PRIME for a, b in parts)
    if kind == Kind.RESCALE:
        level = int(circuit.level[i])
        return tuple(_number("rescaled", level, c) if c else 0 for c in first)
    return first


def _times(value: _Components, factor: int) -> _Components:
    return tuple(c * factor % _PRIME for c in value)


def _summed(values: list[_Components]) -> _Components:
    length = max(map(len, values))
    columns = ([v[k] for v in values if k < len(v)] for k in range(length))
    return tuple(sum(column) % _PRIME for column in columns)


def _product(a: _Components, b: _Components) -> _Components:
    cross = a[0] * b[1] + a[1] * b[0]
    return a[0] * b[0] % _PRIME, cross % _PRIME, a[1] * b[1] % _PRIME


def _plaintext(circuit: Circuit, p: int) -> int:
    """A plaintext at the random point: a number written in the Circuit is itself, as encoded."""
    number, row = int(circuit.plain_pack[p]), int(circuit.plain_row[p])
    pack, scale = circuit.packs[number], float(circuit.plain_scale[p])
    if pack.operand < 0 and pack.scalar:
        value = pack.vector(row, ())
        assert isinstance(value, float)
        return round(value * scale) % _PRIME
    return _number("plaintext", number, row, scale)


def _number(*what: object) -> int:
    """A number modulo the prime that stands for `what`, the same whenever it is asked for."""
    digest = hashlib.blake2b(repr(what).encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little") % _PRIME
