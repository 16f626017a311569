"""The step factory: from any loss and optimizer to a jitted pure step, with gradient accumulation,
bfloat16 arithmetic on float32 parameters, and donated buffers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from hesim.errors import ArgumentError
from models.nn.lora import Params
from models.train.gated_halves import stored

__all__ = [
    "PLAIN_STEP",
    "Loss",
    "SpreadState",
    "Step",
    "StepOptions",
    "TrainState",
    "closed",
    "initial_state",
    "make_update",
    "rematerialised",
    "update_function",
]


class TrainState(NamedTuple):
    """Everything that a step changes.

    Attributes:
      step: int32 of shape (), steps taken.
      params: what is trained, nested dictionaries of arrays of any shape.
      optimizer: state of the optimizer.
      key: the run's random key, never advanced (the step is folded in).

    Examples:
      >>> import jax, optax
      >>> from models import initial_state
      >>> state = initial_state({"w": jax.numpy.ones(3)}, optax.sgd(0.1), jax.random.key(0))
      >>> int(state.step), state.params["w"].shape
      (0, (3,))
    """

    step: jax.Array
    params: Params
    optimizer: optax.OptState
    key: jax.Array


class SpreadState(NamedTuple):
    """A `TrainState` on a mesh (`sharding.place_state`), which a step takes and gives in its place.

    laid: what is trained, as it lies there (`layout.with_halves`), like the optimizer's moments.
    """

    step: jax.Array
    laid: Params
    optimizer: optax.OptState
    key: jax.Array

    @property
    def params(self) -> Params:
        """What is trained, as it is stored. Across several hosts all must ask for it, since each
        gets the whole of it, as NumPy arrays; a copy is made, so not for use within a step.
        """
        return stored(self.laid)


Step = Callable[..., tuple[TrainState, dict[str, jax.Array]]]
"""A pure training step: (state, batch[, frozen parameters]) -> (state, metrics), of a `SpreadState`
in place of the `TrainState` where it lies on a mesh."""

Loss = Callable[[Params, Params, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""(trained, frozen parameters, batch, key) -> (what is minimised, metrics {"loss": ..., ...})."""


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How a step computes what its loss and optimizer say.

    Attributes:
      accumulate: parts of a batch, one after the other, whose gradients are averaged; it divides
        the rows.
      precision: "float32" or "bfloat16", of the loss and its gradient; the parameters and the
        optimizer stay in float32.
      donate: the state handed in is overwritten, which saves its memory; nobody may use it again.

    Raises:
      ArgumentError: accumulate below 1, or another precision.

    Examples:
      >>> from models import StepOptions
      >>> StepOptions(accumulate=4).precision
      'float32'
    """

    accumulate: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    donate: bool = False

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ArgumentError(f"accumulate must be at least 1, got {self.accumulate}")
        if self.precision not in ("float32", "bfloat16"):
            raise ArgumentError(f"precision is 'float32' or 'bfloat16', not {self.precision!r}")


PLAIN_STEP = StepOptions()


def initial_state(
    params: Params, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    """State before the first step.

    Args:
      params: what the optimizer changes, nested dictionaries of arrays of any shape.
      optimizer: an optax transformation.
      key: of the run, a `jax.random.key` of shape ().

    Returns:
      Step 0 of a `TrainState`.

    Raises:
      TypeError: parameters that are no arrays, from the optimizer.

    Examples:
      >>> import jax, optax
      >>> from models import initial_state
      >>> int(initial_state({"w": jax.numpy.ones(3)}, optax.sgd(0.1), jax.random.key(0)).step)
      0
    """
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key)


def rematerialised(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a gradient that keeps only products with weights and computes everything
    else (scores, non-linearities, normalisations) a second time: less memory for more work.

    The compiler for CPUs merges the second computation with the first again, so nothing is saved
    there (`python -m benchmarks training` shows both).
    """
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(function, policy=policy)  # pyright: ignore[reportPrivateImportUsage]


def make_update(
    loss: Loss, optimizer: optax.GradientTransformation, options: StepOptions = PLAIN_STEP
) -> Step:
    """The jitted pure step of any loss and optimizer.

    The loss gets the run's key with the step number folded in. Where the batch has a field
    `progress`, the optimizer's schedules get it.

    Args:
      loss: (trained, frozen parameters, batch, key) -> (what is minimised, metrics).
      optimizer: an optax transformation.
      options: accumulation, precision, donated buffers.

    Returns:
      (state, batch[, frozen parameters]) -> (state, metrics), `gradient_norm` among them.

    Raises:
      ArgumentError: from the step: rows that `accumulate` does not divide.

    Examples:
      >>> import jax, optax
      >>> from models import initial_state, make_update
      >>> def loss(trained, frozen, batch, key):
      ...     value = ((trained["w"] - batch) ** 2).sum()
      ...     return value, {"loss": value}
      >>> step = make_update(loss, optax.sgd(0.5))
      >>> state = initial_state({"w": jax.numpy.zeros(2)}, optax.sgd(0.5), jax.random.key(0))
      >>> state, metrics = step(state, jax.numpy.ones(2))
      >>> state.params["w"].tolist(), float(metrics["loss"])
      ([1.0, 1.0], 2.0)
    """
    donated = (0,) if options.donate else ()
    return jax.jit(update_function(loss, optimizer, options), donate_argnums=donated)


def update_function(
    loss: Loss, optimizer: optax.GradientTransformation, options: StepOptions = PLAIN_STEP
) -> Step:
    """The pure step (state, batch[, frozen]) -> (state, metrics): the loss's own metrics and
    `gradient_norm`.

    The loss gets the run's key with the step number folded in. Where the batch has a field
    `progress`, the optimizer's schedules get it (`schedules.scale_by_progress`).
    """
    transform = optax.with_extra_args_support(optimizer)
    chosen = loss if options.precision == "float32" else _in_bfloat16(loss)
    gradient = jax.grad(chosen, has_aux=True)

    def step(
        state: Any, batch: Any, frozen: Params | None = None
    ) -> tuple[Any, dict[str, jax.Array]]:
        before = state.laid if isinstance(state, SpreadState) else state.params
        key = jax.random.fold_in(state.key, state.step)
        extra = {"progress": batch.progress} if hasattr(batch, "progress") else {}
        if options.accumulate == 1:
            grads, metrics = gradient(before, frozen or {}, batch, key)
        else:
            grads, metrics = _accumulated(
                gradient, options.accumulate, before, frozen or {}, batch, key
            )
        updates, opt = transform.update(grads, state.optimizer, before, **extra)
        params = cast(Params, optax.apply_updates(before, updates))
        metrics["gradient_norm"] = optax.tree.norm(grads)
        return type(state)(state.step + 1, params, opt, state.key), metrics

    return step


def _in_bfloat16(loss: Loss) -> Loss:
    """The loss of parameters rounded to bfloat16; its gradient arrives in their own type."""

    def lower(tree: Params) -> Params:
        return jax.tree.map(
            lambda a: a.astype(jnp.bfloat16) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree
        )

    return lambda trained, frozen, batch, key: loss(lower(trained), lower(frozen), batch, key)


def _accumulated(
    gradient: Callable[..., Any],
    parts: int,
    params: Params,
    frozen: Params,
    batch: Any,
    key: jax.Array,
) -> tuple[Params, dict[str, jax.Array]]:
    """Means over the parts of a batch, row i of which goes to part i mod parts: rows that lie on
    different devices stay there.
    """

    def split(leaf: Any) -> Any:
        rows = jnp.asarray(leaf)
        if len(rows) % parts:
            raise ArgumentError(f"{len(rows)} rows cannot be accumulated in {parts} equal parts")
        return jnp.moveaxis(rows.reshape(len(rows) // parts, parts, *rows.shape[1:]), 1, 0)

    leaves, shape = jax.tree.flatten(batch)
    per_row = [jnp.ndim(leaf) > 0 for leaf in leaves]
    stacked = [split(leaf) for leaf, yes in zip(leaves, per_row, strict=True) if yes]

    def one(total: Any, part: Any) -> Any:
        number, rows = part
        left = iter(rows)
        micro = [next(left) if yes else leaf for leaf, yes in zip(leaves, per_row, strict=True)]
        found = gradient(params, frozen, shape.unflatten(micro), jax.random.fold_in(key, number))
        return jax.tree.map(lambda a, b: a + b / parts, total, found), None

    first = iter(stacked)
    example = [next(first)[0] if yes else leaf for leaf, yes in zip(leaves, per_row, strict=True)]
    like = jax.eval_shape(gradient, params, frozen, shape.unflatten(example), key)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    total, _ = jax.lax.scan(one, zeros, (jnp.arange(parts), stacked))
    return total


def closed(step: Step, frozen: Params) -> Step:
    """The step of (state, batch) that always uses, and never trains, the parameters `frozen`."""
    return lambda state, batch: step(state, batch, frozen)
