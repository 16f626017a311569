"""Ten models as somebody else writes them: plain Flax, NNX and Linen, and `jax.nn`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx


class Case(NamedTuple):
    """A function, a maker of its arguments, and the error to ask for at its output."""

    fn: Callable[..., Any]
    batch: Callable[[np.random.Generator], tuple[Any, ...]]
    tol: float
    encrypted: Any = None


def normal(*shape: int) -> Callable[[np.random.Generator], tuple[Any, ...]]:
    return lambda rng: (rng.normal(size=shape).astype(np.float32),)


class MLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.last(nnx.gelu(self.first(x)))


class MixerBlock(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = nn.LayerNorm()(x).swapaxes(1, 2)
        x = x + nn.Dense(3)(nn.gelu(nn.Dense(4)(y))).swapaxes(1, 2)
        return x + nn.Dense(8)(nn.gelu(nn.Dense(8)(nn.LayerNorm()(x))))


class Transformer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.before = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.between = nnx.LayerNorm(8, rngs=rngs)
        self.up, self.down = nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = x + self.attention(self.before(x))
        return x + self.down(nnx.gelu(self.up(self.between(x))))


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        states: Any = nn.RNN(nn.GRUCell(3))(x)
        return nn.Dense(2)(states[:, -1])


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        norm = lambda y: nn.BatchNorm(use_running_average=True)(y)
        x = nn.max_pool(nn.relu(norm(nn.Conv(2, (3, 3))(x))), (2, 2), (2, 2))
        x = nn.relu(x + norm(nn.Conv(2, (3, 3))(x)))
        return nn.Dense(2)(x.mean((1, 2)))


class AttentionPooling(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.key, self.value = nnx.Linear(6, 1, rngs=rngs), nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        weights = jax.nn.softmax(self.key(x), axis=1)
        return (weights * self.value(x)).sum(1)


class GatedBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.RMSNorm(8, rngs=rngs)
        self.gate, self.up = nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
        self.down = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        y = self.norm(x)
        return x + self.down(nnx.silu(self.gate(y)) * self.up(y))


class Scorer(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.log_softmax(nn.Dense(4)(jnp.tanh(nn.Dense(6)(x))))


class CNN(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(1, 3, (3,), rngs=rngs)
        self.last = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return nnx.sigmoid(self.last(nnx.avg_pool(nnx.elu(self.conv(x)), (2,), (2,)).mean(1)))


def logistic_step(w: Any, x: Any, y: Any) -> Any:
    def loss(w: Any) -> Any:
        return optax.sigmoid_binary_cross_entropy(x @ w, y).mean()

    updates, _ = optax.sgd(0.5).update(jax.grad(loss)(w), optax.sgd(0.5).init(w))
    return optax.apply_updates(w, updates)


def labelled(rng: np.random.Generator) -> tuple[Any, ...]:
    w = np.linspace(-0.5, 0.5, 6, dtype=np.float32)
    x = rng.normal(size=(16, 6)).astype(np.float32)
    return w, x, (rng.uniform(size=16) < 0.5).astype(np.float32)


def linen(module: nn.Module, *shape: int) -> Callable[[Any], Any]:
    variables = module.init(jax.random.key(0), jnp.zeros(shape))
    return lambda x: module.apply(variables, x)


CASES: dict[str, Callable[[], Case]] = {
    "mlp": lambda: Case(MLP(nnx.Rngs(0)), normal(16, 6), 1e-2),
    "mixer": lambda: Case(linen(MixerBlock(), 2, 3, 8), normal(16, 3, 8), 3e-2),
    "transformer": lambda: Case(Transformer(nnx.Rngs(0)), normal(16, 3, 8), 3e-2),
    "gru": lambda: Case(linen(Recurrent(), 2, 3, 2), normal(32, 3, 2), 1e-2),
    "resnet": lambda: Case(linen(ResNet(), 2, 4, 4, 1), normal(8, 4, 4, 1), 1e-1),
    "pooling": lambda: Case(AttentionPooling(nnx.Rngs(0)), normal(8, 5, 6), 1e-2),
    "logistic": lambda: Case(logistic_step, labelled, 1e-3, (1, 2)),
    "gated": lambda: Case(GatedBlock(nnx.Rngs(0)), normal(16, 8), 3e-2),
    "scorer": lambda: Case(linen(Scorer(), 2, 5), normal(16, 5), 2e-2),
    "cnn": lambda: Case(CNN(nnx.Rngs(0)), normal(8, 8, 1), 1e-2),
}
