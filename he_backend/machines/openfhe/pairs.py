"""One dense secret for two contexts: that of the Circuit, and the longer one of its bootstraps.

OpenFHE gives a context that bootstraps by sparse encapsulation a main secret of 192 coefficients.
Nothing needs it so: the range of the modular reduction depends on the sparse secret of the lowest
prime alone (Bossuat, Troncoso-Pastoriza, Hubaux, "Bootstrapping for approximate homomorphic
encryption with negligible failure-probability by using sparse-secret encapsulation", ePrint
2022/024), and tables of security are for dense secrets. So the pair is made in a twin of the longer
context, uniform ternary, and its residues are put into keys of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from he_backend.machines.openfhe.contexts import context
from he_backend.machines.openfhe.library import openfhe
from he_backend.machines.openfhe.residues import cut, places, put
from hesim.params import CKKSParams

__all__ = ["Pair", "shared_pairs"]


@dataclass(frozen=True)
class Pair:
    """Keys of one context."""

    public: Any
    secret: Any


def shared_pairs(working: Any, levels: int, longer: Any, chain: CKKSParams) -> tuple[Pair, Pair]:
    """Pairs of the same secret for both contexts.

    Args:
      working: the context over the primes of `chain` up to `levels`.
      longer: the context over all of them.
    """
    made = context(chain).KeyGen()
    primes, n = chain.primes, chain.n
    secret = cut(_written(made.secretKey), n, primes)
    public = cut(_written(made.publicKey), n, primes * 2).reshape(2, -1, n)
    low = primes[: levels + 1]
    few = public[:, : levels + 1].reshape(-1, n)
    return (
        _with_residues(working.KeyGen(), n, low, secret[: levels + 1], few),
        _with_residues(longer.KeyGen(), n, primes, secret, public.reshape(-1, n)),
    )


def _with_residues(
    pair: Any, n: int, primes: tuple[int, ...], secret: np.ndarray, public: np.ndarray
) -> Pair:
    """A pair of the same context with this secret and public key."""
    text = _written(pair.secretKey)
    own = put(text, places(text, n, primes), secret)
    text = _written(pair.publicKey)
    shown = put(text, places(text, n, primes * 2), public)
    return Pair(
        openfhe.DeserializePublicKeyString(shown, openfhe.BINARY),
        openfhe.DeserializePrivateKeyString(own, openfhe.BINARY),
    )


def _written(key: Any) -> bytes:
    return openfhe.Serialize(key, openfhe.BINARY)
