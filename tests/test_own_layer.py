"""Layers, losses and optimizers that no line of the project was written for train encrypted: their
backward pass is `jax.grad`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import approx
import hesim
from models import adamw_he
from tests.hesim.circuit.conftest import close, quiet_params
from tests.hesim.circuit.test_carried import run_carried

STEPS = 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 5)).astype("f")
CLASSES = np.eye(3, dtype="f")[np.argmax(X @ RNG.normal(size=(5, 3)), axis=1)]


class Gated(nnx.Module):
    """A gated unit with projections of its own, between an RMS norm and a residual sum."""

    def __init__(self, gate: Callable, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(5))
        self.gate = nnx.Linear(5, 6, rngs=rngs)
        self.up = nnx.Linear(5, 6, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(6, 5, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)
        self.act = gate

    def __call__(self, x):
        n = self.scale[...] * x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 0.3)
        x = x + self.down(self.act(self.gate(n)) * self.up(n))
        return self.head(x)


def cross_entropy(logits, y):
    return optax.softmax_cross_entropy(logits, y).mean() + 0.05 * jnp.mean(logits**2)


def one_hot_squares(logits, y):
    return jnp.mean((logits - y) ** 4)


class Training(NamedTuple):
    """A step (weights, optimizer state, x, y) -> (weights, state), and the arguments of the first.

    `encrypted` is as of `hesim.trace`: all but counters.
    """

    step: Callable[..., tuple[Any, Any]]
    args: tuple[Any, ...]
    encrypted: tuple[Any, ...]

    def calls(self, step: Callable[..., Any], count: int = STEPS) -> list[tuple[Any, ...]]:
        """Arguments of so many steps, each with the results of the one before, and the last
        results as arguments.
        """
        found = [self.args]
        for _ in range(count):
            found.append((*step(*found[-1]), *self.args[2:]))
        return found

    def in_the_clear(self) -> list[tuple[Any, ...]]:
        """The same of the function as it is, by JAX alone."""
        return self.calls(jax.jit(self.step))


def training(gate: Callable, loss: Callable, optimizer: optax.GradientTransformation) -> Training:
    graph, weights = nnx.split(Gated(gate, nnx.Rngs(3)), nnx.Param)

    def step(weights, state, x, y):
        grads = jax.grad(lambda w: loss(nnx.merge(graph, w)(x), y))(weights)
        updates, state = optimizer.update(grads, state, weights)
        return optax.apply_updates(weights, updates), state

    state = optimizer.init(weights)
    moments = jax.tree.map(lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating), state)
    return Training(step, (weights, state, X, CLASSES), (True, moments, True, True))


def silu_adam() -> Training:
    return training(jax.nn.silu, cross_entropy, adamw_he(0.05, eps=1e-2))


def tanh_momentum() -> Training:
    """With an `approx` object for a gate, and rates that a schedule in the optimizer makes."""
    rates = optax.warmup_cosine_decay_schedule(0.01, 0.04, 2, 10)
    chain = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(rates, momentum=0.8))
    gate = approx.fit("tanh", (-5, 5), degree=9)
    return training(gate, one_hot_squares, chain)


def optax_adam() -> Training:
    """Optax's own Adam, its epsilon under the root."""
    return training(jnp.tanh, cross_entropy, optax.adam(0.05, eps=0.0, eps_root=1e-2))


def exact(program: hesim.Program, made: Training) -> list[tuple[Any, ...]]:
    with jax.enable_x64(True):
        return made.calls(lambda *args: program(*args, precision="float64"))


def encrypted_as(made: Training) -> tuple[hesim.Program, Any]:
    """The program of the polynomial step, and that step; ranges from a training in the clear."""
    smooth = hesim.approximate(
        made.step, made.in_the_clear(), encrypted=made.encrypted, tol=5e-3, margin=0.3
    )
    return hesim.trace(smooth, *made.args, encrypted=made.encrypted), smooth


@pytest.mark.parametrize("make", [silu_adam, tanh_momentum, optax_adam])
def test_a_layer_of_ones_own_trains_step_by_step(make):
    made = make()
    program, smooth = encrypted_as(made)
    circuit = hesim.compile(program, quiet_params(), carried={0: 0, 1: 1})
    calls = exact(program, made)
    found = run_carried(circuit, calls[:STEPS])
    for k, outputs in enumerate(found):
        for got, wanted in zip(outputs, jax.tree.leaves(calls[k + 1][:2]), strict=True):
            if got is not None:
                close(got, np.asarray(wanted), f"step {k}", 1e-9)
    weights, _ = made.args[:2]
    *_, plain = made.in_the_clear()
    *_, polynomial = calls
    for first, true, near in zip(*map(jax.tree.leaves, (weights, plain[0], polynomial[0]))):
        moved = np.abs(true - first).max()  # by the untouched function, in JAX alone
        assert np.abs(near - true).max() < 0.1 * moved


@pytest.mark.slow
def test_it_trains_encrypted_as_far_from_exact_as_predicted():
    machine = pytest.importorskip("he_backend.machines.pyfhel.machine").PyfhelMachine
    made = silu_adam()
    program, _ = encrypted_as(made)
    circuit = hesim.compile(program, quiet_params(), carried={0: 0, 1: 1})
    calls = exact(program, made)
    certificate = None
    for k, outputs in enumerate(run_carried(circuit, calls[:STEPS], machine)):
        certificate = hesim.certify(circuit, calls[k], keys=16, after=certificate)
        triples = zip(outputs, jax.tree.leaves(calls[k + 1][:2]), certificate.outputs, strict=True)
        errors = [
            (got - np.asarray(wanted)).ravel() / predicted.std
            for got, wanted, predicted in triples
            if got is not None and predicted is not None
        ]
        assert abs(0.5 * np.log2(np.mean(np.concatenate(errors) ** 2))) < 0.5
        assert all(p is None or p.std < 1e-5 for p in certificate.outputs)
