"""OpenFHE's context over the primes of `CKKSParams`. Runs under the interpreter that has OpenFHE.

OpenFHE chooses primes itself, by no rule that it promises to keep. A context that is read from JSON
takes those that stand there, so ours are put in: a Circuit's levels and scales hold on every
machine, and are planned without OpenFHE.

The technique is FLEXIBLEAUTO, whose scales are exact. Its automatisms stay out of it: a ciphertext
is always shown to it as one product deep, at the scale that it really has. With FIXEDMANUAL, which
has no automatisms, bootstraps are wrong by the drift of the primes: 4 bits worse at N = 2^11, more
in larger rings.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from itertools import accumulate, repeat
from typing import Any

from he_backend.errors import BackendError
from he_backend.machines.openfhe.library import openfhe
from hesim.params import CKKSParams

__all__ = ["context", "root_of_unity"]

_LIMB = (1 << 64) - 1


def context(params: CKKSParams, *, encapsulated: bool = False) -> Any:
    """A crypto context with these primes, every feature that a machine uses enabled.

    encapsulated: whether it bootstraps by way of a sparse secret. Keys that it makes itself are
      then too sparse for its primes: it is given those of a twin that is not (see `pairs`).

    Raises:
      BackendError: the parameters have no digits, or OpenFHE does not take them.
    """
    if params.digits is None:
        raise BackendError(
            "OpenFHE switches keys in digits of several primes: give the parameters digits=3 or "
            "so; more digits need fewer special primes, and larger keys"
        )
    try:
        made = openfhe.GenCryptoContext(_asked(params, encapsulated))
        tree = json.loads(openfhe.Serialize(made, openfhe.JSON))
        _put_primes(tree, params)
        found = openfhe.DeserializeCryptoContextString(json.dumps(tree), openfhe.JSON)
    except (RuntimeError, KeyError, ValueError) as error:
        raise BackendError(f"OpenFHE does not take the parameters: {error}") from error
    for feature in ("PKE", "KEYSWITCH", "LEVELEDSHE", "ADVANCEDSHE", "FHE"):
        found.Enable(getattr(openfhe, feature))
    _check(found, params)
    return found


def _asked(params: CKKSParams, encapsulated: bool) -> Any:
    """The ring, whose security was checked by `CKKSParams`."""
    asked = openfhe.CCParamsCKKSRNS()
    asked.SetSecurityLevel(openfhe.HEStd_NotSet)
    kinds = openfhe.UNIFORM_TERNARY, openfhe.SPARSE_ENCAPSULATED
    asked.SetSecretKeyDist(kinds[encapsulated])
    asked.SetScalingTechnique(openfhe.FLEXIBLEAUTO)
    asked.SetKeySwitchTechnique(openfhe.HYBRID)
    asked.SetRingDim(params.n)
    asked.SetBatchSize(params.slots)
    asked.SetMultiplicativeDepth(params.levels)
    asked.SetFirstModSize(params.first_bits)
    asked.SetScalingModSize(params.scale_bits)
    asked.SetNumLargeDigits(params.digits)
    return asked


def _put_primes(tree: dict[str, Any], params: CKKSParams) -> None:
    inner = tree["value0"]["ptr_wrapper"]["data"]["cc"]["ptr_wrapper"]["data"]
    ring = inner["value0"]["value0"]["value0"]["elp"]["ptr_wrapper"]["data"]
    product = math.prod(params.primes)
    limbs = range(0, product.bit_length(), 64)
    ring["value0"]["cm"]["v"] = [(product >> shift) & _LIMB for shift in limbs]
    ring["value0"]["cm"]["m"] = product.bit_length()
    for entry, prime in zip(ring["p"], params.primes, strict=True):
        each = entry["ptr_wrapper"]["data"]["value0"]
        each["cm"]["v"], each["ru"]["v"] = prime, root_of_unity(prime, 2 * params.n)


@lru_cache(maxsize=256)
def root_of_unity(prime: int, order: int) -> int:
    """The least primitive root of unity modulo `prime`, its order a power of two.

    It is the one that OpenFHE takes by itself: its tables of roots go by the prime alone, so that
    with another one it would depend on what a process did before which of both is used.
    """
    candidates = (pow(base, (prime - 1) // order, prime) for base in range(2, prime))
    found = next(root for root in candidates if pow(root, order // 2, prime) == prime - 1)
    odd = repeat(found * found % prime, order // 2 - 1)
    return min(accumulate(odd, lambda root, step: root * step % prime, initial=found))


def _check(made: Any, params: CKKSParams) -> None:
    """What was read is what was written. Raises BackendError if it is not."""
    scales = [made.GetScalingFactorReal(params.levels - at) for at in range(params.levels + 1)]
    same = made.GetRingDimension() == params.n and all(
        math.isclose(scale, params.scale(at), rel_tol=2.0**-50) for at, scale in enumerate(scales)
    )
    if not same:
        raise BackendError(
            "OpenFHE did not take the primes of the parameters: is it the version that `make "
            "setup-openfhe` installs?"
        )
