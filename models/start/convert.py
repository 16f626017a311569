"""From somebody's BERT to a model that encryption can run: attention, activation and pooler
swapped, adapters added.

The weights stay: query, key and value projections serve a Gaussian kernel as they served softmax.
The function does not stay, so a swapped model must be distilled or fine-tuned before it is worth
something; what was swapped is noted beside the weights.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax

from models.config import Activation, Attention, EncoderConfig, Pooling
from models.data.tokenizer import Tokenizer
from models.errors import CheckpointError
from models.nn.encoder import Model
from models.nn.lora import Params
from models.weights.bert import load_bert
from models.weights.folder import flatten, save_model, unflatten


class Converted(NamedTuple):
    """A converted model, and what was done to it.

    Attributes:
      fresh: dotted names of parameters that start from random numbers (adapters, head, a new
        pooler).
      dropped: those of the checkpoint that the new model does not have.
      swapped: per field of the configuration its old and new value.
      folder: where it was written, None if nowhere.
    """

    config: EncoderConfig
    params: Params
    tokenizer: Tokenizer | None
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]
    swapped: dict[str, tuple[Any, Any]]
    folder: Path | None


def convert(
    folder: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    attention: str = "gaussian",
    activation: str | None = None,
    attention_mean: bool = True,
    pooler: tuple[int, ...] | None = None,
    pooling: str = "token",
    lora_rank: int = 0,
    classes: int | None = None,
    length: int | None = None,
    layers: int | None = None,
    seed: int = 0,
) -> Converted:
    """Load a BERT folder (`models.weights.bert.load_bert`) and swap what no encryption does well.

    Args:
      folder: the checkpoint. out: where to write the result, by `models.weights.folder.save_model`.
      attention: "gaussian", "gaussian_normalised", "power_softmax" or "softmax".
      activation: "relu", "gelu", "gelu_tanh" or "silu" (default: the checkpoint's); gated ones have
        other matrices and cannot be swapped in.
      attention_mean: divide the Gaussian kernel's output by the public number of tokens, which
        keeps its size near softmax's; it leaks no more than the mask does.
      pooler: widths of a new pooler, (32, 1024) in the paper (default: the checkpoint's own).
      pooling: "token", or "mean" of all tokens: for a checkpoint that was trained to embed
        sentences by their mean, whose first token says little.
      lora_rank: rank of fresh adapters on query, key and value.
      classes, length: as for `load_bert`. layers: keep only the first so many.
      seed: of what is fresh.

    Raises:
      CheckpointError: the checkpoint does not fit, a swap is impossible, or `out` exists.
    """
    for name, value, known in (
        ("attention", attention, get_args(Attention)),
        ("activation", activation or "gelu", get_args(Activation)),
        ("pooling", pooling, get_args(Pooling)),
    ):
        if value not in known:
            raise CheckpointError(f"unknown {name} {value!r}: it is one of {', '.join(known)}")
    if activation is not None and activation.startswith("glu_"):
        raise CheckpointError(
            f"{activation!r} is gated: its up-projection has another shape than BERT's; "
            "choose relu, gelu, gelu_tanh or silu"
        )
    if not 0 <= seed < 2**63:
        raise CheckpointError(f"seed={seed} must be at least 0 and below 2^63")
    if out is not None and Path(out).exists():
        raise CheckpointError(f"{out} already exists: choose another folder or remove it")
    bert = load_bert(folder, classes=classes, length=length, seed=seed)
    if layers is not None and not 1 <= layers <= bert.config.layers:
        raise CheckpointError(f"{folder} has {bert.config.layers} layers: cannot keep {layers}")
    changes = {
        "attention": attention,
        "activation": activation or bert.config.activation,
        "attention_mean": attention_mean and attention == "gaussian",
        "pooler": pooler or bert.config.pooler,
        "pooling": pooling,
        "lora_rank": lora_rank,
        "layers": layers or bert.config.layers,
    }
    try:
        config = bert.config.replace(**changes)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    swapped = {
        name: (getattr(bert.config, name), value)
        for name, value in changes.items()
        if getattr(bert.config, name) != value
    }
    old = flatten(bert.params)
    start = flatten(Model(config).init(jax.random.key(seed)))
    kept = {n for n, leaf in start.items() if n in old and old[n].shape == leaf.shape}
    if "pooler" in swapped:
        kept = {n for n in kept if not n.startswith(("pooler.", "head."))}
    params = unflatten({name: old[name] if name in kept else start[name] for name in start})
    fresh = tuple(name for name in start if name not in kept or name in bert.fresh)
    dropped = tuple(name for name in old if name not in kept)
    written = None
    if out is not None:
        notes = {
            "source": Path(folder).name,
            "swapped": {name: list(pair) for name, pair in swapped.items()},
            "fresh": list(fresh),
            "dropped": list(dropped),
            "unused": list(bert.unused),
        }
        written = save_model(out, config, params, bert.tokenizer, notes)
    return Converted(config, params, bert.tokenizer, fresh, dropped, swapped, written)
