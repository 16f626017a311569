"""A training that runs encrypted from its first batch to its last: twin, step, batches, Circuit.

Forward pass, gradient and AdamW-HE are one traced function, compiled once: what a step returns is
what the next one takes, still encrypted. The same step runs in the clear, and in the clear under
the noise of that Circuit.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hesim
from hesim.circuit.circuit import Circuit
from hesim.errors import EmptySlotsWarning, ParameterError
from hesim.program import Program
from hesim.progress import Reporter
from models.config import EncoderConfig
from models.data.batches import Batch
from models.data.buckets import lengths_of, plan_epoch, trim
from models.encrypted.settings import EncryptionSettings
from models.encrypted.twin import encryptable, twin_of
from models.encrypted.update import (
    PolynomialSoftmax,
    encrypted_arguments,
    lora_gradient,
    lora_update,
    root_values,
    training_domains,
    training_sites,
)
from models.nn.encoder import Model
from models.nn.lora import Params, combine, is_adapter_or_head, partition
from models.nn.lora import Path as Place
from models.objectives.losses import cross_entropy, mean_squared_error, share_outside
from models.recipes.finetune import overlay
from models.recipes.finetune_settings import FineTune
from models.recipes.finetune_step import learning_rates, scaled_root
from models.sites.sites import TRAINING_SITES, Range, Sites, met_ranges
from models.train.optim import grown, on_stacks, scale_by_adam_he
from models.train.schedules import scale_by_progress

__all__ = ["CARRIED", "EncryptedTraining", "Inputs", "State", "Watched", "prepare_training"]

CARRIED = {0: 0, 1: 1}
"""Arguments of a step, trained numbers and optimizer, and the results that they are in the next."""

BatchOf = Callable[[int], tuple[Batch, np.float32]]
"""From a step's number, from 0, to its rows and their learning rate."""

_ROOT = "optimizer.inv_sqrt"

_WATCHED = 4
"""First steps that are gone through for `samples`, of which the first and the last are some."""


class State(NamedTuple):
    """What a step hands on: what is trained, and the optimizer's moments with its public count."""

    trained: Params
    optimizer: optax.OptState


class Inputs(NamedTuple):
    """The other arguments of a step, in its order: frozen parameters (public), embedded rows
    (batch, tokens, hidden) to encrypt, mask (batch, tokens), targets (batch, classes) to encrypt,
    learning rate ().
    """

    frozen: Params
    rows: np.ndarray
    mask: np.ndarray
    targets: np.ndarray
    rate: np.ndarray


class Watched(NamedTuple):
    """A step in the clear: the next state; logits (batch, classes); per site the canonical range
    met and the share of values outside of its polynomial's domain.
    """

    state: State
    logits: jax.Array
    ranges: dict[str, jax.Array]
    outside: dict[str, jax.Array]


def _encoder_too(path: Place) -> bool:
    """All but the tables of the embedding and of words: the client looks rows up in the clear, and
    only a gradient by every row of the table would tell them apart.
    """
    return path[0] not in ("embedding", "lm_head")


@dataclasses.dataclass(frozen=True)
class EncryptedTraining:
    """A training that can run encrypted.

    Attributes:
      model: the polynomial twin; of LoRA with its adapters as thin products.
      settings: method, rates, rows of a step, seed; `encrypted` is not looked at.
      how: ring, polynomials, factor of the loss.
      length: tokens of a row.
      steps: in all.

    Examples:
      >>> from models.recipes.encrypted_training import CARRIED
      >>> CARRIED
      {0: 0, 1: 1}
    """

    model: Model
    settings: FineTune
    how: EncryptionSettings
    length: int
    steps: int

    # What it is made of

    @functools.cached_property
    def training_sites(self) -> Sites:
        """The approximations of a step beside the model's own."""
        return training_sites(self.model.config.classes, self.how.fit)

    @functools.cached_property
    def domains(self) -> dict[str, Range]:
        """Where the approximation at each site holds, canonical."""
        return self.model.sites.ranges() | training_domains(self.training_sites)

    @functools.cached_property
    def _softmax(self) -> PolynomialSoftmax | None:
        return PolynomialSoftmax.of(self.training_sites)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        """AdamW-HE on stacks, with the polynomial root; `update` takes the rate as `progress`."""
        epsilon, multiplier = scaled_root(self.settings, self.how)
        root = self.training_sites.get(_ROOT)
        return optax.chain(
            on_stacks(scale_by_adam_he(eps=epsilon, inv_sqrt=root, prescale=multiplier)),
            optax.add_decayed_weights(self.settings.weight_decay),
            scale_by_progress(1.0, lambda rate: rate),
        )

    @functools.cached_property
    def _update(self) -> Callable[..., Any]:
        return lora_update(self.model, self.optimizer, self._softmax, self.how.loss_scale)

    def step(
        self,
        trained: Params,
        optimizer: optax.OptState,
        frozen: Params,
        rows: jax.Array,
        mask: jax.Array,
        targets: jax.Array,
        rate: jax.Array,
    ) -> tuple[Params, optax.OptState, jax.Array]:
        """One step: trained numbers, optimizer, and logits (batch, classes), which the client alone
        decrypts. This is what is traced.
        """
        trained, optimizer, (logits, _) = self._update(
            trained, optimizer, frozen, rows, mask, targets, rate
        )
        return trained, optimizer, logits

    def gradient(
        self,
        trained: Params,
        frozen: Params,
        rows: jax.Array,
        mask: jax.Array,
        targets: jax.Array,
    ) -> tuple[Params, jax.Array]:
        """The first part of a step: gradients of the loss, `how.loss_scale` times the mean over
        rows, by what is trained; and logits (batch, classes).
        """
        gradient = lora_gradient(self.model, self._softmax, self.how.loss_scale)
        grads, (logits, _) = gradient(trained, frozen, rows, mask, targets)
        return grads, logits

    # State and batches

    def begin(self, params: Params) -> tuple[State, Params]:
        """The state before the first step, and the frozen parameters."""
        lora = self.settings.method == "lora"
        trained, frozen = partition(params, is_adapter_or_head if lora else _encoder_too)
        return State(trained, self.optimizer.init(trained)), frozen

    def finished(self, state: State, frozen: Params) -> Params:
        """All parameters of the trained model."""
        return combine(state.trained, frozen)

    def per_epoch(self, rows: int) -> int:
        """Steps of one pass over so many rows."""
        return -(-rows // self.settings.batch)

    def batch_of(self, data: Batch) -> BatchOf:
        """The batch of each step.

        The order depends on the seed and the pass alone. The last batch of a pass is filled up with
        rows of others, which count again.
        """
        rates = learning_rates(self.settings, self.steps)
        lengths, per_epoch = lengths_of(data), self.per_epoch(len(data.tokens))
        settings, buckets = self.settings, (self.length,)

        @functools.lru_cache(maxsize=2)
        def plans(epoch: int) -> Any:
            return plan_epoch(lengths, settings.batch, buckets, settings.seed, epoch)

        def batch_of(number: int) -> tuple[Batch, np.float32]:
            epoch, place = divmod(number, per_epoch)
            return trim(data, plans(epoch)[place]), rates[number]

        return batch_of

    def inputs(self, frozen: Params, batch: Batch, rate: np.float32) -> Inputs:
        """The arguments of a step beside the state. The client looks the embedding up, in the
        clear; it is always frozen.
        """
        rows = np.asarray(self._embed(frozen, batch.tokens, batch.types))
        mask = np.asarray(batch.mask, np.float32)
        return Inputs(frozen, rows, mask, self.targets(batch), np.asarray(rate, np.float32))

    @functools.cached_property
    def _embed(self) -> Callable[..., jax.Array]:
        return jax.jit(self.model.embed)

    def targets(self, batch: Batch) -> np.ndarray:
        """Labels as a step takes them: (batch, classes) of 0 and 1; of ratings (batch, 1)."""
        labels = np.asarray(batch.targets)
        if self.model.config.regression:
            return labels[:, None].astype(np.float32)
        return np.eye(self.model.config.classes, dtype=np.float32)[labels]

    def loss(self, logits: np.ndarray | jax.Array, batch: Batch) -> float:
        """What the client makes of decrypted logits and its labels: mean cross-entropy, or squares
        of ratings.
        """
        own = mean_squared_error if self.model.config.regression else cross_entropy
        return float(own(jnp.asarray(logits, jnp.float32), jnp.asarray(batch.targets)))

    # Ways to run it

    def program(self, state: State, inputs: Inputs) -> Program:
        """The traced step; shapes alone matter. Raises as `hesim.trace` does."""
        return hesim.trace(
            self.step, *state, *inputs, encrypted=encrypted_arguments(state.optimizer)
        )

    def compile(
        self, program: Program, progress: Reporter | None = None, **options: Any
    ) -> Circuit:
        """The one Circuit of all steps. options: of `hesim.compile`, and raises as it does."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EmptySlotsWarning)
            return hesim.compile(
                program, self.how.ckks, carried=CARRIED, progress=progress, **options
            )

    def samples(self, state: State, frozen: Params, batches: BatchOf) -> list[tuple[State, Inputs]]:
        """Arguments of steps by which a plan for bootstraps brings values into range: of the first
        steps, gone through in the clear, and of the last one, as far as it can be told from these.

        Between them the moments grow most: they begin at 0 and come near the gradients, the second
        one a thousand times as large as a step makes it. A step that leaves a domain is the last of
        them: what follows it tells nothing.

        Args:
          state, frozen: of `begin`. batches: of `batch_of`.
        """
        found: list[tuple[State, Inputs]] = []
        count = min(self.steps, _WATCHED)
        for number in range(count):
            inputs = self.inputs(frozen, *batches(number))
            seen = self.watched(state, inputs)
            left = any(float(share) > 0 for share in seen.outside.values())
            if left or number in (0, count - 1):
                found.append((state, inputs))
            if left:
                return found
            state = seen.state
        late = State(state.trained, grown(state.optimizer, self.steps - 1))
        return [*found, (late, self.inputs(frozen, *batches(self.steps - 1)))]

    @functools.cached_property
    def watched(self) -> Callable[[State, Inputs], Watched]:
        """The step in the clear, through the same polynomials, compiled; and what its sites met."""

        @jax.jit
        def run(state: State, inputs: Inputs) -> Watched:
            trained, optimizer, (logits, values) = self._update(*state, *inputs)
            met = {**values, **self._met_in_training(logits, optimizer)}
            return self._watched(State(trained, optimizer), logits, met)

        return run

    def simulated(self, state: State, circuit: Circuit) -> Callable[..., Watched]:
        """(key, state, inputs, carried) -> the step under the noise of this Circuit, which has its
        Program; compiled at the first call. Ranges are of the sites of training alone.

        state: for its structure. carried, False by default: whether an earlier call returned the
        state given, so that it is not encrypted anew.
        """
        noisy = hesim.simulate(
            self.step,
            self.how.ckks,
            encrypted_arguments(state.optimizer),
            self.how.profile,
            tier="train",
            circuit=circuit,
        )

        @jax.jit
        def run(
            key: jax.Array, state: State, inputs: Inputs, carried: bool | jax.Array = False
        ) -> Watched:
            trained, optimizer, logits = noisy(key, *state, *inputs, carried=carried)
            met = self._met_in_training(logits, optimizer)
            return self._watched(State(trained, optimizer), logits, met)

        return run

    def _met_in_training(self, logits: jax.Array, optimizer: optax.OptState) -> dict[str, Any]:
        """What the sites of training met, from what a step returns."""
        epsilon, multiplier = scaled_root(self.settings, self.how)
        own = {} if self._softmax is None else self._softmax.values(logits)
        return own | {_ROOT: root_values(optimizer, epsilon, multiplier)}

    def _watched(self, state: State, logits: jax.Array, met: dict[str, Any]) -> Watched:
        unit = self.model.units() | dict.fromkeys(TRAINING_SITES, 1.0)
        return Watched(state, logits, met_ranges(met, unit), share_outside(met, unit, self.domains))


def prepare_training(
    config: EncoderConfig,
    start: Params,
    train: Batch,
    classes: int,
    settings: FineTune,
    how: EncryptionSettings,
    *,
    length: int,
    steps: int = 0,
    sites: Sites | None = None,
) -> tuple[EncryptedTraining, Params]:
    """The training of a pre-trained encoder, and the parameters that it starts from.

    Pooler, head and adapters are fresh, drawn from the seed, as of `finetune`; polynomials hold
    over the ranges that the model meets on training rows, widened by the margin, and softmax
    attention is that of squarings.

    Args:
      config, start: of the encoder. train: training rows. classes: 1 for ratings.
      settings: method, rates, adapters, batch, seed. how: ring and polynomials.
      length: tokens of a row. steps: 0 for `settings.epochs` passes.
      sites: the polynomials of an earlier call, which are not fitted again.

    Raises:
      ParameterError: a rank above the number of features; rows of another form than
        `settings.pairs`; polynomials that cannot be fitted. CheckpointError: a start of another
        shape.
    """
    if (np.ndim(train.tokens) == 3) != (settings.pairs == "bi-encoder"):
        raise ParameterError(
            f"the tokens of the training rows have the shape {np.shape(train.tokens)}, which pairs="
            f"{settings.pairs!r} does not read: prepare the task with the same pairs"
        )
    try:
        adapted = settings.adapt(config).replace(classes=classes)
    except ValueError as error:
        raise ParameterError(str(error)) from error
    exact = Model(adapted)
    params = overlay(exact.init(jax.random.key(settings.seed)), start)
    if sites is None:
        model = twin_of(exact, params, train, (length,), how)
    else:
        twin = encryptable(adapted, how.softmax_squarings)
        model = Model(twin, sites, low_rank=True)
    whole = steps or settings.epochs * -(-len(train.tokens) // settings.batch)
    return EncryptedTraining(model, settings, how, length, whole), params
