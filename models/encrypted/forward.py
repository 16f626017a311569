"""The forward pass as it runs encrypted: simulated, or the Circuit that a server executes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import numpy as np

import hesim
from hesim.circuit.circuit import Circuit
from hesim.circuit.refresher import KEY_HOLDER, Refresher
from hesim.errors import ArgumentError
from hesim.params import CKKSParams
from hesim.program import Program
from models.nn.encoder import Model
from models.nn.lora import Params, combine, is_adapter_or_head, partition
from models.train.classifier import Forward

if TYPE_CHECKING:
    from models.encrypted.settings import EncryptionSettings

__all__ = [
    "encrypted_forward",
    "forward_circuit",
    "forward_program",
    "simulated_forward",
    "trained_flags",
]


def simulated_forward(
    model: Model,
    ckks: CKKSParams,
    profile: str = "seal",
    circuit: Circuit | None = None,
    answer: str = "logits",
) -> Forward:
    """The model's forward with the noise of an encrypted run under these parameters.

    circuit: as for `hesim.simulate`, that of `forward_circuit`: the noise is then that of the
    circuit's own levels, refreshes and rotations, for batches of any size. answer: as for
    `forward_program`.
    """
    known = {"logits": model.forward_with_values, "embeddings": model.embeddings_with_values}
    return hesim.simulate(known[answer], ckks, encrypted=(1,), profile=profile, circuit=circuit)


def forward_program(
    model: Model, sentences: int, answer: str = "logits", *, trained: bool = False
) -> Program:
    """The traced forward pass of a batch of this many rows, which are encrypted; weights and mask
    are public. Needs no weights, only their shapes.

    answer: "logits" (`Model.encrypted_forward`), or "embeddings" (`Model.encrypted_embeddings`).
    trained: adapters, pooler and head are encrypted, too, as a training under encryption leaves
    them. Raises ArgumentError for another answer, else as `hesim.trace` does.
    """
    known = {"logits": model.encrypted_forward, "embeddings": model.encrypted_embeddings}
    if answer not in known:
        raise ArgumentError(f"answer={answer!r} is one of {', '.join(known)}")
    config = model.config
    params = jax.eval_shape(model.init, jax.random.key(0))
    pair = (2,) if config.pairs == "bi-encoder" else ()
    mask = jax.ShapeDtypeStruct((sentences, *pair, config.sequence), np.float32)
    rows = jax.ShapeDtypeStruct((*mask.shape, config.hidden), np.float32)
    encrypted = (trained_flags(params), True, False) if trained else (1,)
    return hesim.trace(known[answer], params, rows, mask, encrypted=encrypted)


@functools.lru_cache(maxsize=2)
def forward_circuit(
    model: Model,
    ckks: CKKSParams,
    sentences: int,
    refresh_price: float | str | None = None,
    refresher: Refresher = KEY_HOLDER,
) -> Circuit:
    """The Circuit of `forward_program`, kept for the last two calls; seconds to compile of a small
    model. Raises as `hesim.compile` does.
    """
    program = forward_program(model, sentences)
    return hesim.compile(program, ckks, refresh_price=refresh_price, refresher=refresher)


def trained_flags(params: Params) -> Params:
    """True for adapters, pooler and head, which LoRA trains, False for all other parameters."""
    trained, frozen = partition(params, is_adapter_or_head)
    return combine(jax.tree.map(lambda _: True, trained), jax.tree.map(lambda _: False, frozen))


def encrypted_forward(
    model: Model, how: EncryptionSettings, circuit: Circuit | None = None
) -> Forward:
    """The forward pass under noise, with whatever LoRA trains encrypted beside the sentences.

    circuit: as for `hesim.simulate`, of `forward_program`, with `trained` where the model has
    adapters.
    """
    if not model.config.lora_rank:
        return simulated_forward(model, how.ckks, how.profile, circuit)

    def forward(key: jax.Array, params: Params, x: jax.Array, mask: jax.Array):
        noisy = hesim.simulate(
            model.forward_with_values,
            how.ckks,
            encrypted=(trained_flags(params), True, False),
            profile=how.profile,
            tier="train",
            circuit=circuit,
        )
        return noisy(key, params, x, mask)

    return forward
