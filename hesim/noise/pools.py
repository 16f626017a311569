"""Noise draws: one pool of normal numbers and one sampled key, shared by a whole simulation.

Drawing normal numbers for every element of every rescale would cost more than the model itself. A
pool of up to 2^16 is drawn once from the key, and each draw reads it at an offset of its own;
within a pool's length all numbers are independent. Longer simulations read the same numbers again
at other places: every draw keeps its distribution (its variance has a relative standard error of
0.55 % from the pool, 0.004 bit of its standard deviation), and correlations join elements at
unrelated positions only.

The secret key enters as W_j = |S_j|²/h, one exponential number per slot. Element i of a flattened
tensor takes slot i modulo the slot count, so tensors of one shape meet the same key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hesim.noise.formulas import Noise, secret_norm
from hesim.noise.profiles import NoiseProfile
from hesim.params import CKKSParams
from hesim.program import Program, Var

if TYPE_CHECKING:
    from hesim.noise.dc_slots import Origin
    from hesim.noise.placement import Schedule

__all__ = ["Draws", "noise_values", "origins", "pool_size"]

_LARGEST_POOL = 1 << 16
_STRIDE = 7919


def pool_size(elements: int) -> int:
    """Numbers to draw for a simulation that uses this many in all: a power of two, 2^10 to 2^16."""
    return min(max(1 << 10, 1 << max(elements - 1, 0).bit_length()), _LARGEST_POOL)


def origins(schedule: Schedule) -> list[Origin]:
    """Of the errors in single slots of all operations."""
    return sorted(
        {o for place in schedule.values() if place.dc_errors for o in place.dc_errors.origins}
    )


def noise_values(program: Program, schedule: Schedule, handed_on: Mapping[int, float]) -> int:
    """Noise values that a simulation uses, at most; handed_on: leaves of the result by number."""
    total = sum(v.size for v in program.inputs if v.encrypted) + len(origins(schedule))
    total += sum(math.prod(program.outputs[k].shape) for k in handed_on)
    for equation in program.ops:
        place = schedule[equation.index]
        sizes = {v.id: v.size for v in equation.inputs if isinstance(v, Var)}
        total += sum(sizes[i] for i in place.refreshed) + sum(sizes[i] for i in place.lowered)
        if place.refreshed_after:
            total += sum(v.size for v in equation.outputs)
        if place.dc_errors is not None and place.dc_errors.copied:
            total += sum(v.size for v in equation.outputs)
        known = bool(any(place.operand_stds or ()) or place.added_std)
        if place.rescaled or place.rotated or known or equation.name == "refresh":
            total += sum(sizes.values()) + sum(v.size for v in equation.outputs)
    return total


class Draws:
    """The random numbers of one simulation.

    Args:
      key: a JAX random key.
      params, profile: what the noise is of.
      elements: noise values that the simulation will use, for the size of the pool.
    """

    def __init__(self, key: Any, params: CKKSParams, profile: NoiseProfile, elements: int) -> None:
        of_pool, of_secret = jax.random.split(key)
        self._key = key
        self._events = 0
        self._size = pool_size(elements)
        pool = jax.random.normal(of_pool, (self._size,), jnp.float32)
        secret = jax.random.exponential(of_secret, (params.slots,), jnp.float32)
        # Without the barrier the compiler draws the pool again inside every fused consumer.
        self._pool, self._secret = jax.lax.optimization_barrier(
            (jnp.concatenate([pool, pool]), secret)
        )
        self._norm = secret_norm(params.n, profile)
        self._half = 0.5 * params.n
        self._skip = 0 if elements <= self._size else _STRIDE
        self._cursor = 0
        self._shapes: dict[tuple[Any, ...], Any] = {}

    def noise(
        self, like: Float[Array, "*shape"], noise: Noise, scale: float, *, moved: bool = False
    ) -> Float[Array, "*shape"]:
        """An error of the shape and dtype of ``like``, in values: coefficients over ``scale``.

        Given the key, an element's variance is (N/2)·(direct + keyed·h·W) / scale². ``moved`` takes
        W from other slots than those of the element, as an error made before or after a rotation.
        """
        direct, keyed = noise.direct, noise.keyed * self._norm
        std = math.sqrt(self._half * (direct + keyed)) / scale
        if std == 0.0:
            return jnp.zeros_like(like)
        return std * self.unit(like, noise, moved=moved)

    def unit(
        self, like: Float[Array, "*shape"], noise: Noise, *, moved: bool = False
    ) -> Float[Array, "*shape"]:
        """The same with a mean square of 1 over elements and keys; only the proportion of the two
        variances of ``noise`` counts.
        """
        direct, keyed = noise.direct, noise.keyed * self._norm
        out = self._normal(like.size).astype(like.dtype)
        if keyed > 0.0:
            out = out * self._shape(out, keyed / (direct + keyed), moved)
        return self._filled(out, like)

    def plain(self, like: Float[Array, "*shape"], std: float) -> Float[Array, "*shape"]:
        """Normal numbers of this std, as for the rounding of an encoded plaintext."""
        return std * self._filled(self._normal(like.size).astype(like.dtype), like)

    def event(self, probability: float) -> Bool[Array, ""]:
        """A bool that is true with this probability, independent of everything else."""
        self._events += 1
        return jax.random.bernoulli(jax.random.fold_in(self._key, self._events), probability)

    def _normal(self, count: int) -> Any:
        """The next numbers of the pool, as many as asked for or as there are."""
        taken = min(count, self._size)
        out = jax.lax.slice(self._pool, (self._cursor,), (self._cursor + taken,))
        self._cursor = (self._cursor + count + self._skip) % self._size
        return out

    def _filled(self, numbers: Any, like: Any) -> Any:
        """A shape filled with numbers, over and over where it is larger; whole repetitions are a
        broadcast, which the compiler fuses with what uses them.
        """
        repeats = -(-like.size // max(numbers.size, 1))
        if repeats > 1:
            numbers = jnp.broadcast_to(numbers, (repeats, numbers.size)).reshape(-1)[: like.size]
        return numbers.reshape(like.shape)

    def _shape(self, like: Any, part: float, moved: bool) -> Any:
        """sqrt(1 - part + part·W) for each element; its mean square is 1."""
        place = (like.size, like.dtype, part, moved)
        if place not in self._shapes:
            w = self._secret[::-1] if moved else self._secret
            shape = jax.lax.optimization_barrier(jnp.sqrt(1.0 - part + part * w.astype(like.dtype)))
            self._shapes[place] = self._filled(shape[: like.size], like)
        return self._shapes[place]
