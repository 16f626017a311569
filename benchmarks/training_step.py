"""A training step as one traced program, whole or in parts: forward, loss, backward, AdamW-HE.

Weights and words are random, which costs what trained ones cost. Adapters start with B = 0, where
gradients by A are 0: compare gradients from other adapters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import jax
import numpy as np
import optax

import hesim
from hesim.errors import ArgumentError, ConstantValuesWarning
from hesim.program import Program
from models.config import EncoderConfig
from models.data.batches import Batch
from models.encrypted.twin import encryptable
from models.encrypted.update import (
    PolynomialSoftmax,
    encrypted_arguments,
    lora_update,
    polynomial_loss,
    training_sites,
)
from models.nn.encoder import Model
from models.nn.lora import Params, combine, is_adapter_or_head, partition
from models.sites.sites import FitSettings, fit_ranges
from models.train.evaluate import collect_ranges
from models.train.optim import adamw_he

__all__ = ["PARTS", "TrainingStep", "training_step"]

Method = Literal["lora", "full"]
Attention = Literal["gaussian", "softmax"]
Part = Literal["step", "forward", "gradient", "optimizer"]

PARTS: tuple[Part, ...] = ("step", "forward", "gradient", "optimizer")
"""The whole step, and the programs that it consists of: logits; logits and gradients; the optimizer
given gradients. The gradient is forward and backward in one, as the backward pass reads what the
forward pass computed."""

_CARRIED = MappingProxyType({0: 0, 1: 1})
"""Of a step: what is trained, and the optimizer's state."""

_CLASSES = 2


@dataclass(frozen=True)
class TrainingStep:
    """A traced step, or a part of one.

    Attributes:
      config, model: the polynomial twin. part: which program it is.
      program, args: what is trained, moments, sentences and labels are encrypted.
      carried: for `hesim.compile`: of a step, the state; of a part nothing.
      sentences: in a batch.
    """

    config: EncoderConfig
    model: Model
    part: Part
    program: Program
    args: tuple[Any, ...]
    carried: Mapping[int, int]
    sentences: int


@dataclass(frozen=True)
class _Setting:
    """What the parts share: model, optimizer, and values."""

    model: Model
    optimizer: optax.GradientTransformation
    softmax: PolynomialSoftmax | None
    trained: Params
    frozen: Params
    x: np.ndarray
    mask: np.ndarray
    labels: np.ndarray

    @property
    def state(self) -> Any:
        return self.optimizer.init(self.trained)


def training_step(
    config: EncoderConfig,
    method: Method = "lora",
    attention: Attention = "gaussian",
    sentences: int = 1,
    *,
    part: Part = "step",
    fit: FitSettings | None = None,
    stacked: bool = True,
) -> TrainingStep:
    """A step of a model with fresh weights on random words, with polynomials at all sites and a
    polynomial root in the optimizer.

    Args:
      config: of the model; its attention and, without adapters, its rank are replaced.
      method: "lora" trains the adapters, pooler and head, and every other weight is public; "full"
        every matrix behind the embedding, all of them encrypted, and no adapters. LayerNorms'
        vectors are public.
      attention: "softmax" as `models.encryptable` has it.
      sentences: in the batch, each `config.sequence` tokens.
      part: of `PARTS`.
      fit: of the model's polynomials; by default degrees as models have them, over twice the range
        that the words meet.
      stacked: matrices of one shape share the optimizer's ciphertexts. Where one fills a ciphertext
        by itself there is nothing to share, and the plan is found sooner without.

    Raises:
      ArgumentError: no such method or part, or no rank to train.
    """
    if method not in ("lora", "full") or part not in PARTS:
        raise ArgumentError(f"method {method!r} is lora or full, part {part!r} of {PARTS}")
    if method == "lora" and config.lora_rank < 1:
        raise ArgumentError("adapters need a rank: training_step(config.replace(lora_rank=2))")
    rank = config.lora_rank if method == "lora" else 0
    twin = encryptable(config.replace(attention=attention, lora_rank=rank))
    made = _setting(twin, method, sentences, fit or FitSettings(margin=1.0), stacked)
    function, args, encrypted = _function(made, part)
    program = hesim.trace(function, *args, encrypted=encrypted)
    carried = _CARRIED if part == "step" else MappingProxyType({})
    return TrainingStep(twin, made.model, part, program, args, carried, sentences)


def _setting(
    config: EncoderConfig, method: str, sentences: int, fit: FitSettings, stacked: bool
) -> _Setting:
    rng = np.random.default_rng(0)
    size = sentences, config.sequence
    tokens = rng.integers(3, config.vocabulary, size).astype(np.int32)
    targets = rng.integers(0, _CLASSES, sentences).astype(np.int32)
    data = Batch(tokens, np.ones(size, np.float32), targets)
    exact = Model(config, low_rank=method == "lora")
    params = exact.init(jax.random.key(0))
    with warnings.catch_warnings():  # one row has one variance where one token is read
        warnings.simplefilter("ignore", ConstantValuesWarning)
        sites = fit_ranges(config, collect_ranges(exact, params, data), fit)
    model = exact.with_sites(sites)
    chosen = is_adapter_or_head if method == "lora" else _is_matrix
    trained, frozen = partition(params, chosen)
    own = training_sites(_CLASSES)
    root = own.get("optimizer.inv_sqrt")
    optimizer = adamw_he(1e-2, eps=6e-4, inv_sqrt=root, prescale=1.0, stacked=stacked)
    labels = np.eye(_CLASSES, dtype=np.float32)[targets]
    x = np.asarray(model.embed(params, tokens))
    softmax = PolynomialSoftmax.of(own)
    return _Setting(model, optimizer, softmax, trained, frozen, x, data.mask, labels)


def _is_matrix(path: tuple[Any, ...]) -> bool:
    """Whether a parameter is a matrix that encrypted rows are multiplied by."""
    return path[-1] == "kernel" and path[0] != "embedding"


def _function(made: _Setting, part: Part) -> tuple[Callable[..., Any], tuple[Any, ...], Any]:
    """The function of a part, its arguments, and which of them are encrypted."""
    state = made.state
    if part == "step":
        update = lora_update(made.model, made.optimizer, made.softmax)
        rest = made.frozen, made.x, made.mask, made.labels, np.float32(1)
        return update, (made.trained, state, *rest), encrypted_arguments(state)
    if part == "optimizer":
        grads = jax.tree.map(np.zeros_like, made.trained)
        moments = encrypted_arguments(state)[1]
        return _stepped(made), (made.trained, state, grads), (True, moments, True)
    if part == "forward":
        return _logits(made), (made.trained, made.frozen, made.x, made.mask), (0, 2)
    rest = made.frozen, made.x, made.mask, made.labels
    return _gradient(made), (made.trained, *rest), (0, 2, 4)


def _logits(made: _Setting) -> Callable[..., Any]:
    def logits(trained: Params, frozen: Params, x: jax.Array, mask: jax.Array) -> jax.Array:
        return made.model.encrypted_forward(combine(trained, frozen), x, mask)

    return logits


def _gradient(made: _Setting) -> Callable[..., Any]:
    forward = _logits(made)

    def gradient(trained: Params, frozen: Params, x: Any, mask: Any, labels: Any) -> Any:
        def loss(chosen: Params) -> tuple[jax.Array, jax.Array]:
            logits = forward(chosen, frozen, x, mask)
            return polynomial_loss(logits, labels, made.softmax), logits

        return jax.grad(loss, has_aux=True)(trained)

    return gradient


def _stepped(made: _Setting) -> Callable[..., Any]:
    def step(trained: Params, state: Any, grads: Params) -> Any:
        updates, state = made.optimizer.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state

    return step
