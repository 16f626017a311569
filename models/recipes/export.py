"""A training step as a portable program for other machines (`jax.export`), made on a CPU.

What an accelerator could not run, or only slowly, is refused: float64 numbers and calls back to the
host.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import optax

from hesim.errors import ParameterError
from models.config import EncoderConfig
from models.data.batches import Batch
from models.nn.encoder import Model
from models.nn.lora import is_adapter_or_head, partition
from models.objectives.mlm import MaskedBatch
from models.recipes.pretrain import Pretraining, make_loss, make_optimizer
from models.train.classifier import make_task_loss
from models.train.step import PLAIN_STEP, StepOptions, initial_state, update_function

__all__ = [
    "PLATFORMS",
    "export_step",
    "has_float64",
    "host_calls",
    "pretraining_arguments",
    "task_arguments",
]

PLATFORMS = ("tpu", "cuda")
"""What steps are exported for by default."""

_CALLBACK = re.compile(r"\b(\w*callback)\[")


def pretraining_arguments(settings: Pretraining) -> tuple[Any, Any]:
    """(step function, shapes of its arguments) of a pre-training; nothing is computed."""
    s = settings
    model, optimizer = Model(s.config), make_optimizer(s)
    loss = make_loss(model, s, penalised=bool(s.penalty and s.targets))
    options = StepOptions(s.accumulate, s.precision)
    key = jax.random.key(0)
    state = jax.eval_shape(lambda k: initial_state(model.init(k), optimizer, k), key)
    rows, length = s.batch, s.config.sequence
    chosen = length if s.config.causal else max(1, round(s.share * length))
    batch = MaskedBatch(
        tokens=jax.ShapeDtypeStruct((rows, length), jnp.int32),
        mask=jax.ShapeDtypeStruct((rows, length), jnp.float32),
        places=jax.ShapeDtypeStruct((rows, chosen), jnp.int32),
        words=jax.ShapeDtypeStruct((rows, chosen), jnp.int32),
        weights=jax.ShapeDtypeStruct((rows, chosen), jnp.float32),
        progress=jax.ShapeDtypeStruct((), jnp.float32),
    )
    return update_function(loss, optimizer, options), (state, batch)


def task_arguments(
    config: EncoderConfig,
    optimizer: optax.GradientTransformation,
    rows: int,
    options: StepOptions = PLAIN_STEP,
) -> tuple[Any, Any]:
    """(step function, shapes of its arguments) of a fine-tuning: of adapters, pooler and head where
    the model has adapters, else of everything. The batch has token types where the model has
    several, and two rows a pair where it reads them apart.
    """
    model = Model(config)
    key = jax.random.key(0)
    params = jax.eval_shape(model.init, key)
    trained, frozen = partition(params, is_adapter_or_head) if config.lora_rank else (params, {})
    state = jax.eval_shape(lambda p, k: initial_state(p, optimizer, k), trained, key)
    apart = config.pairs == "bi-encoder"
    shape = (rows, 2, config.sequence) if apart else (rows, config.sequence)
    typed = config.token_types > 1 and not apart
    target = jnp.float32 if config.regression else jnp.int32
    batch = Batch(
        jax.ShapeDtypeStruct(shape, jnp.int32),
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct((rows,), target),
        jax.ShapeDtypeStruct(shape, jnp.int32) if typed else None,
    )
    return update_function(make_task_loss(model), optimizer, options), (state, batch, frozen)


def export_step(
    step: Any, arguments: Any, platforms: Sequence[str] = PLATFORMS
) -> jax.export.Exported:
    """The step as a serialisable program for these platforms; they need not be present.

    The program takes and gives flat lists, since a serialised one knows no classes: the leaves of
    (state, batch[, frozen]) in the order of `jax.tree.leaves`, then those of (state, metrics), with
    the random key as its uint32 data. Raises ParameterError if it holds float64 numbers or calls to
    the host.
    """
    leaves, shape = jax.tree.flatten(_bare(arguments))

    def flat(*given: Any) -> list[Any]:
        state, *rest = jax.tree.unflatten(shape, given)
        after, metrics = step(state._replace(key=jax.random.wrap_key_data(state.key)), *rest)
        after = after._replace(key=jax.random.key_data(after.key))
        return jax.tree.leaves((after, metrics))

    program = jax.jit(flat)
    calls = host_calls(str(program.trace(*leaves).jaxpr))
    if calls:
        raise ParameterError(f"the step cannot be exported: it calls the host by {calls}")
    exported = jax.export.export(program, platforms=tuple(platforms))(*leaves)
    if has_float64(exported):
        raise ParameterError("the step cannot be exported: it computes with float64 numbers")
    return exported


def _bare(arguments: Any) -> tuple[Any, ...]:
    """The arguments with the shape of the key's data in place of the key."""
    state, *rest = arguments
    return (state._replace(key=jax.eval_shape(jax.random.key_data, state.key)), *rest)


def has_float64(exported: jax.export.Exported) -> bool:
    """Whether a program holds float64 numbers."""
    return re.search(r"\bf64\b|xf64>", exported.mlir_module()) is not None


def host_calls(jaxpr: str) -> str:
    """The primitives in a printed jaxpr that call the host, "" if there are none: `jax.export` has
    no clear word for them.
    """
    return ", ".join(sorted(set(_CALLBACK.findall(jaxpr))))
