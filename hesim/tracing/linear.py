"""Operations that are linear in their encrypted operand, written as products by public matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hesim.tracing.call import Call, identity_matrix

__all__ = ["by_matrix", "ragged_product", "solved", "symmetric"]

_MOST_ENTRIES = 2**24
"""Entries of a public matrix that stands for a linear operation."""


def by_matrix(linear: int) -> Callable[[Call], Callable[..., Any] | None]:
    """The rewriting of an operation that is linear in operand number `linear`, alone encrypted: its
    matrix, computed in the clear from the public operands, times that operand.
    """

    def rewrite(call: Call) -> Callable[..., Any] | None:
        if any(s != (k == linear) for k, s in enumerate(call.secret)):
            return None

        def whole(x: Any, *others: Any) -> Any:
            values = (*others[:linear], x, *others[linear:])
            return call.primitive.bind(*values, **call.params)

        others = [v for k, v in enumerate(call.operands) if k != linear]
        own = call.operands[linear]
        size = int(np.prod(own.shape, dtype=np.int64))
        result = jax.eval_shape(whole, own, *others)
        if size * int(np.prod(result.shape, dtype=np.int64)) > _MOST_ENTRIES:
            return None

        def fn(*values: Any) -> Any:
            x, rest = values[linear], (*values[:linear], *values[linear + 1 :])
            basis = identity_matrix(size, x.dtype).reshape(size, *x.shape)
            matrix = jax.vmap(lambda e: whole(e, *rest))(basis).reshape(size, -1)
            return (x.reshape(size) @ matrix).reshape(result.shape)

        return fn

    return rewrite


def solved(call: Call) -> Callable[..., Any] | None:
    """A triangular system with a public matrix: a product by its inverse."""
    if call.secret[0]:
        return None
    params = call.params

    def fn(a: Any, b: Any) -> Any:
        n = a.shape[-1]
        eye = jnp.broadcast_to(identity_matrix(n, a.dtype), a.shape)
        inverse = call.primitive.bind(a, eye, **params)
        return inverse @ b if params["left_side"] else b @ inverse

    return fn


def symmetric(call: Call) -> Callable[..., Any]:
    """alpha A A^T + beta C."""

    def fn(a: Any, c: Any) -> Any:
        product = call.params["alpha"] * (a @ jnp.swapaxes(a, -1, -2))
        return product + call.params["beta"] * c

    return fn


def ragged_product(call: Call) -> Callable[..., Any] | None:
    """A product of rows in groups, each by the matrix of its group, with public sizes of groups."""
    numbers = call.params["ragged_dot_dimension_numbers"]
    plain = (((1,), (1,)), ((), ()))
    given = tuple(tuple(map(tuple, part)) for part in numbers.dot_dimension_numbers)
    own = (tuple(numbers.lhs_ragged_dimensions), tuple(numbers.rhs_group_dimensions))
    if call.secret[2] or given != plain or own != ((0,), (0,)):
        return None

    def fn(rows: Any, matrices: Any, sizes: Any) -> Any:
        end = jnp.cumsum(sizes)
        number = jnp.arange(rows.shape[0])[:, None]
        mine = (number >= (end - sizes)[None]) & (number < end[None])
        if call.secret[0] and not call.secret[1]:
            each = jnp.einsum("mg,gkn->mkn", mine.astype(matrices.dtype), matrices)
            return jnp.einsum("mk,mkn->mn", rows, each)
        apart = jnp.where(mine[:, :, None], rows[:, None, :], jnp.zeros((), rows.dtype))
        return jnp.einsum("mgk,gkn->mn", apart, matrices)

    return fn
