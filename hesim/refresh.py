"""`refresh`: the identity that marks where a ciphertext gets its levels back."""

from __future__ import annotations

from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, ArrayLike, PyTree, Shaped

__all__ = ["refresh", "refresh_p"]

refresh_p = Primitive("refresh")
refresh_p.def_impl(lambda x: x)
refresh_p.def_abstract_eval(lambda x: x.update(weak_type=False))


def _jvp(primals: tuple[Any], tangents: tuple[Any]):
    (x,), (t,) = primals, tangents
    return refresh_p.bind(x), t


ad.primitive_jvps[refresh_p] = _jvp
batching.defvectorized(refresh_p)
mlir.register_lowering(refresh_p, mlir.lower_fun(lambda x: x, multiple_results=False))


def refresh(x: PyTree[Shaped[ArrayLike, "..."]]) -> PyTree[Shaped[Array, "..."]]:
    """Asks for fresh levels here: a pytree of arrays of any shape, returned unchanged in value.

    Exact evaluation and gradients see the identity. Under encryption every ciphertext of the
    value makes a round trip to the key holder (or is bootstrapped, on a machine that can), and
    continues at whatever level the rest of the computation needs.

    Args:
      x: what is to be refreshed.

    Raises:
      TypeError: a leaf that is no array, from JAX.

    Examples:
      >>> import hesim, numpy as np
      >>> program = hesim.trace(lambda x: hesim.refresh(x * x) * x, np.ones(3))
      >>> [op.name for op in program.ops], program.depth
      (['mul', 'refresh', 'mul'], 2)
    """
    return jax.tree.map(refresh_p.bind, x)
