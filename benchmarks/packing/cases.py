"""One pre-LN block of a transformer with Gaussian-kernel attention, and the gradient of its LoRA
matrices: hidden 128, 64 tokens, 2 heads, a gated feed-forward of 2 × 256; a smaller one; the model
of the demo, and a training step of a model like it.

The mean of LayerNorm is left out: inputs and what is added to them are centred in the clear. The
kernel is exp(2qk - q² - k²) with its width folded into the matrices of q and k.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import approx
import hesim
from benchmarks.lora_step import lora_step
from experiments.planning import plan_model
from hesim.params import CKKSParams
from hesim.program import Program
from models.config import EncoderConfig

__all__ = ["CASES", "PackingCase", "ring"]

RANK = 2


@dataclass(frozen=True)
class Shape:
    """Sizes of a block."""

    tokens: int = 64
    hidden: int = 128
    heads: int = 2
    ffn: int = 256


SMALL = Shape(32, 64, 4, 128)


@dataclass(frozen=True)
class PackingCase:
    """A traced function, its arguments, how many sentences they are, and ring and primes."""

    program: Program
    args: tuple[Any, ...]
    sentences: int
    ring: CKKSParams


def ring() -> CKKSParams:
    """N = 2^14 and the shortest chain that holds a polynomial of degree 15, at 128 bits."""
    return CKKSParams(14, 4, 40, 50, 60)


def sentences(count: int, shape: Shape | None = None) -> PackingCase:
    """The block on `count` sentences side by side; on one without an axis for them."""
    rng = np.random.default_rng(0)
    block = _Block(rng, shape or Shape())
    x = block.states(rng, count)
    return PackingCase(hesim.trace(block, x), (x,), count, ring())


def gradient() -> PackingCase:
    """The gradient by LoRA matrices of rank 2 on q, k and v, given that by the block's results: one
    sentence, all of them encrypted.
    """
    rng = np.random.default_rng(0)
    shape = Shape()
    block = _Block(rng, shape)
    x, upstream = block.states(rng, 1), block.states(rng, 1) * np.float32(0.3)
    adapters = [
        {
            "a": (0.1 * rng.normal(size=(shape.hidden, RANK))).astype(np.float32),
            "b": (size * rng.normal(size=(RANK, shape.hidden))).astype(np.float32),
        }
        for size in (0.1 * block.near, 0.1 * block.near, 0.1)
    ]

    def loss(adapters: Any, x: Any, upstream: Any) -> Any:
        return jnp.sum(block(x, adapters) * upstream)

    args = (adapters, x, upstream)
    program = hesim.trace(jax.grad(loss), *args, encrypted=(0, 1, 2))
    return PackingCase(program, args, 1, ring())


def demo() -> PackingCase:
    """The demo's model on one sentence, on the demo's ring: fresh weights, random words."""
    planned = plan_model("demo", batch=1)
    model, config = planned.model, planned.model.config
    weights = model.init(jax.random.key(1))  # none of its values leaves a domain
    words = np.random.default_rng(0).integers(5, config.vocabulary, (1, config.sequence))
    mask = np.ones(words.shape, np.float32)
    args = (weights, np.asarray(model.embed(weights, words)), mask)
    return PackingCase(planned.program, args, 1, planned.circuit.params)


def step() -> PackingCase:
    """A whole LoRA training step of rank 2: one layer of 64 features, one sentence of 32 tokens."""
    config = EncoderConfig(
        layers=1,
        hidden=64,
        heads=2,
        ffn=128,
        sequence=32,
        vocabulary=64,
        pooler=(64,),
        lora_rank=RANK,
        first_norm=True,
    )
    return PackingCase(*lora_step(config, 1), 1, ring())


CASES: dict[str, Callable[[], PackingCase]] = {
    "block": lambda: sentences(1),
    "gradient": gradient,
    "block64": lambda: sentences(64),
    "block128": lambda: sentences(128),
    "small": lambda: sentences(1, SMALL),
    "small32": lambda: sentences(32, SMALL),
    "demo": demo,
    "step": step,
}
"""By name."""


class _Block:
    """Weights and polynomials; a call is the traced function."""

    def __init__(self, rng: np.random.Generator, shape: Shape):
        self.shape = shape
        hidden, ffn = shape.hidden, shape.ffn

        def weights(rows: int, columns: int, size: float) -> np.ndarray:
            drawn = rng.normal(size=(rows, columns)) * size / np.sqrt(rows)
            return drawn.astype(np.float32)

        self.near = near = (2 * (hidden // shape.heads) ** 0.5) ** -0.5
        centring = (np.eye(hidden) - 1 / hidden).astype(np.float32)
        self.qkv = [weights(hidden, hidden, s) for s in (0.8 * near, 0.8 * near, 0.5)]
        self.out = weights(hidden, hidden, 0.3) @ centring
        self.gate, self.up = weights(hidden, ffn, 1.2), weights(hidden, ffn, 1.0)
        self.down = weights(ffn, hidden, 0.5) @ centring
        self.inv_sqrt = approx.fit("inv_sqrt", (0.2, 5.0), degree=15)
        self.exp = approx.fit("exp", (-16.0, 0.0), degree=15)
        self.gelu = approx.fit("gelu", (-6.0, 6.0), degree=15)

    def states(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Centred float32 (sentences, tokens, hidden), without the first axis for one."""
        x = rng.normal(size=(count, self.shape.tokens, self.shape.hidden)).astype(np.float32)
        x -= x.mean(-1, keepdims=True)
        return x if count > 1 else x[0]

    def __call__(self, x: Any, adapters: Any = (None, None, None)) -> Any:
        """(..., tokens, hidden) -> the same."""
        n = self._normalised(x)
        q, k, v = (
            self._heads(n @ w if pair is None else n @ w + (n @ pair["a"]) @ pair["b"])
            for w, pair in zip(self.qkv, adapters, strict=True)
        )
        near = jnp.einsum("...id,...jd->...ij", q + q, k)
        distance = near - jnp.sum(q * q, -1)[..., :, None] - jnp.sum(k * k, -1)[..., None, :]
        attended = jnp.einsum("...ij,...jd->...id", self.exp(distance), v)
        x = x + attended.swapaxes(-2, -3).reshape(x.shape) @ self.out
        n = self._normalised(x)
        return x + (self.gelu(n @ self.gate) * (n @ self.up)) @ self.down

    def _normalised(self, x: Any) -> Any:
        return x * self.inv_sqrt(jnp.mean(x * x, -1, keepdims=True))

    def _heads(self, x: Any) -> Any:
        heads = self.shape.heads
        return x.reshape(*x.shape[:-1], heads, self.shape.hidden // heads).swapaxes(-2, -3)
