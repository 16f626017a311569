"""A linear layer and its low-rank adapter (LoRA): merging, and choosing what is trained.

LoRA (Hu et al. 2022): y = x W + (alpha / r) (x A) B with A random and B zero at the start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from hesim.errors import ArgumentError

Params = dict[Any, Any]
"""Parameters as nested dictionaries (`nnx.to_pure_dict`); list positions are integer keys."""


class Linear(nnx.Module):
    """A matrix `kernel` (inputs, outputs), with `lora_a` (inputs, r) and `lora_b` (r, outputs)
    where rank r > 0, and a `bias` (outputs,) where asked for.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        rngs: nnx.Rngs,
        std: float | None = None,
        gain: float = 1.0,
        rank: int = 0,
        lora_scale: float = 0.0,
        bias: bool = False,
    ) -> None:
        spread = float(inputs) ** -0.5 if std is None else std
        self.kernel = nnx.Param(gain * spread * jax.random.normal(rngs.params(), (inputs, outputs)))
        self.lora_scale = lora_scale
        down, up = None, None
        if rank:
            bound = inputs**-0.5
            down = jax.random.uniform(rngs.params(), (inputs, rank), minval=-bound, maxval=bound)
            up = jnp.zeros((rank, outputs))
        self.lora_a = None if down is None else nnx.LoRAParam(down)
        self.lora_b = None if up is None else nnx.LoRAParam(up)
        self.bias = nnx.Param(jnp.zeros((outputs,))) if bias else None

    @property
    def merged(self) -> jax.Array:
        """W + (alpha / r) A B, computed in the clear: (inputs, outputs)."""
        weight = self.kernel[...]
        if self.lora_a is not None and self.lora_b is not None:
            weight = weight + self.lora_scale * (self.lora_a[...] @ self.lora_b[...])
        return weight

    def project(
        self,
        x: jax.Array,
        *,
        gamma: jax.Array | float = 1.0,
        beta: jax.Array | None = None,
        factor: float = 1.0,
        low_rank: bool = False,
        outputs: slice | None = None,
    ) -> jax.Array:
        """factor * ((gamma * x + beta) @ W + bias) in one level on x: (..., inputs) -> (...,
        outputs).

        gamma (inputs,) or a number, beta (inputs,) and the number factor are public and folded into
        the matrix, so x meets a single product. `low_rank=True` keeps x A B as two products, for
        adapters that are encrypted; W itself must be public then. `outputs` selects columns.
        """
        adapted = low_rank and self.lora_a is not None
        weight = self.kernel[...] if adapted else self.merged
        columns = slice(None) if outputs is None else outputs
        scale = factor * jnp.asarray(gamma)[..., None]
        y = x @ (scale * weight[:, columns])
        constant = None if beta is None else factor * (beta @ weight[:, columns])
        if self.bias is not None:
            own = factor * self.bias[...][columns]
            constant = own if constant is None else constant + own
        if constant is not None:
            y = y + constant
        if adapted:
            assert self.lora_a is not None and self.lora_b is not None
            down, up = self.lora_a[...], self.lora_b[...][:, columns]
            low = x @ (jnp.asarray(gamma)[..., None] * (self.lora_scale * factor) * down)
            if beta is not None:
                low = low + (self.lora_scale * factor * beta) @ down
            y = y + low @ up
        return y


def merge(params: Params, lora_scale: float) -> Params:
    """The same model with every adapter added to its matrix and B set to zero.

    Merging twice changes nothing.

    Args:
      params: nested dictionaries; adapters are `lora_a` (inputs, r) and `lora_b` (r, outputs)
        beside a `kernel` (inputs, outputs).
      lora_scale: alpha / r.

    Raises:
      TypeError: an adapter whose shapes do not fit its matrix, from JAX.

    Examples:
      >>> import jax.numpy as jnp
      >>> from models import merge
      >>> adapter = {"lora_a": jnp.ones((2, 1)), "lora_b": jnp.ones((1, 2))}
      >>> merge({"kernel": jnp.zeros((2, 2)), **adapter}, 0.5)["kernel"].tolist()
      [[0.5, 0.5], [0.5, 0.5]]
    """
    if "lora_a" in params and "lora_b" in params:
        kernel = params["kernel"] + lora_scale * (params["lora_a"] @ params["lora_b"])
        return {**params, "kernel": kernel, "lora_b": jnp.zeros_like(params["lora_b"])}
    return {k: merge(v, lora_scale) if isinstance(v, dict) else v for k, v in params.items()}


Path = tuple[Any, ...]


def is_adapter(path: Path) -> bool:
    """Whether a parameter belongs to a LoRA adapter."""
    return path[-1] in ("lora_a", "lora_b")


def is_adapter_or_head(path: Path) -> bool:
    """What the paper fine-tunes (section 5.1): the adapters, the pooler's matrices and the head."""
    return is_adapter(path) or path[0] in ("pooler", "head")


def partition(params: Params, chosen: Callable[[Path], bool]) -> tuple[Params, Params]:
    """Two parameter trees, (chosen, the rest), whose `combine` is the whole.

    Branches that hold nothing are left out.

    Args:
      params: nested dictionaries of arrays of any shape.
      chosen: whether a parameter is, by its path, a tuple of names.

    Raises nothing of its own.

    Examples:
      >>> from models import partition
      >>> partition({"head": {"w": 1}, "body": {"w": 2}}, lambda path: path[0] == "head")
      ({'head': {'w': 1}}, {'body': {'w': 2}})
    """

    def walk(tree: Params, path: Path) -> tuple[Params, Params]:
        yes: Params = {}
        no: Params = {}
        for name, child in tree.items():
            here = (*path, name)
            if isinstance(child, dict):
                left, right = walk(child, here)
                if left:
                    yes[name] = left
                if right:
                    no[name] = right
            else:
                (yes if chosen(here) else no)[name] = child
        return yes, no

    return walk(params, ())


def combine(first: Params, second: Params) -> Params:
    """The union of two disjoint parameter trees; undoes `partition`.

    Args:
      first: nested dictionaries of arrays of any shape.
      second: likewise, with other leaves.

    Raises:
      ArgumentError: both hold the same leaf.

    Examples:
      >>> from models import combine
      >>> combine({"a": {"w": 1}}, {"a": {"b": 2}, "c": 3})
      {'a': {'w': 1, 'b': 2}, 'c': 3}
    """
    out = dict(first)
    for name, child in second.items():
        if name not in out:
            out[name] = child
        elif isinstance(child, dict) and isinstance(out[name], dict):
            out[name] = combine(out[name], child)
        else:
            raise ArgumentError(f"both trees hold the parameter {name!r}")
    return out


def count(params: Params) -> int:
    """Number of scalars in a parameter tree."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(params))
