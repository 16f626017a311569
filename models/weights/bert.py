"""BERT checkpoints of others: a Hugging Face-style folder as configuration, parameters, tokenizer.

The folder holds `config.json`, the weights in `model.safetensors` (or its shards, or one `*.onnx`),
and `tokenizer.json` or `vocab.txt`. Every tensor's name and shape is checked; nothing is executed
or unpickled. What a bare encoder lacks, the pooler or the classifier's head, starts from random
numbers and is named.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from models.config import EncoderConfig
from models.data.tokenizer import Tokenizer
from models.errors import CheckpointError, DataError, TensorFileError
from models.nn.encoder import Model
from models.nn.lora import Params
from models.weights.folder import checked, flatten, raise_if, shapes
from models.weights.onnx import read_onnx
from models.weights.safetensors import read_folder
from models.weights.tokenizer_files import read_tokenizer_folder

ACTIVATIONS: Mapping[str, str] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""Names in `config.json` of the activations that there are here."""

_EMBEDDING = {
    "embedding.word": "embeddings.word_embeddings.weight",
    "embedding.position": "embeddings.position_embeddings.weight",
    "embedding.token_type": "embeddings.token_type_embeddings.weight",
    "embedding.norm.scale": "embeddings.LayerNorm.weight",
    "embedding.norm.bias": "embeddings.LayerNorm.bias",
}
_LINEARS = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense",
}
_NORMS = {"attention_norm": "attention.output.LayerNorm", "ffn_norm": "output.LayerNorm"}
_OPTIONAL = {"pooler.0": "pooler.dense", "head": "classifier"}
_PLACE = re.compile(r"(?:^|\.)((?:embeddings|encoder\.layer|pooler|classifier|cls)\..*)$")
_NUMBERS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "vocab_size",
    "type_vocab_size",
)
_UNUSED = re.compile(r"^(cls\.|embeddings\.position_ids$)")


class Bert(NamedTuple):
    """A loaded checkpoint.

    Attributes:
      config, params: an exact BERT with float32 parameters.
      tokenizer: None where the folder has no vocabulary.
      fresh: dotted names of parameters that the checkpoint lacks, from random numbers.
      unused: tensors of the checkpoint that this model has no use for (pre-training heads).

    Examples:
      >>> from models import Bert, Model, preset
      >>> found = Bert(preset("bert"), {}, None, fresh=("pooler.0.kernel",), unused=())
      >>> Model(found.config).config.attention, found.fresh
      ('softmax', ('pooler.0.kernel',))
    """

    config: EncoderConfig
    params: Params
    tokenizer: Tokenizer | None
    fresh: tuple[str, ...]
    unused: tuple[str, ...]


def load_bert(
    folder: str | os.PathLike[str],
    *,
    classes: int | None = None,
    length: int | None = None,
    seed: int = 0,
) -> Bert:
    """Read a folder.

    Args:
      folder: with `config.json`, `model.safetensors` (or `model.safetensors.index.json` and its
        shards, or one variant of these, or one `*.onnx`), `tokenizer.json` or `vocab.txt`.
      classes: logits of the head (default: the checkpoint's classifier, 2 without one).
      length: keep only so many learned positions (default: all).
      seed: of what the checkpoint lacks.

    Raises:
      CheckpointError: a file is missing or broken, the architecture or an activation is unknown, or
        tensors are missing, unexpected, of another shape or not finite; it names them.

    Examples:
      >>> import tempfile
      >>> from models import load_bert
      >>> load_bert(tempfile.mkdtemp())
      Traceback (most recent call last):
          ...
      models.errors.CheckpointError: ...
    """
    source = Path(folder)
    raw = _read_json(source / "config.json")
    tensors = read_tensors(source)
    config = config_of(raw, source / "config.json")
    head = tensors.get("classifier.weight")
    own = head.shape[0] if head is not None and head.ndim == 2 else 2
    config = config.replace(classes=classes if classes is not None else own)
    if classes is not None and classes != own:
        tensors = {n: t for n, t in tensors.items() if not n.startswith("classifier.")}
    leaves, unused = _named(config, tensors, source)
    if length is not None:
        known = len(leaves["embedding.position"]) if "embedding.position" in leaves else 0
        if not 1 <= length <= known:
            raise CheckpointError(f"{source} has {known} learned positions: no length of {length}")
        leaves["embedding.position"] = leaves["embedding.position"][:length]
        config = config.replace(sequence=length)
    fresh = tuple(n for n in shapes(config) if n not in leaves and n.startswith(tuple(_OPTIONAL)))
    start = flatten(Model(config).init(jax.random.key(seed)))
    params = checked(config, leaves | {name: start[name] for name in fresh}, source)
    tokenizer = read_tokenizer(source)
    if tokenizer is not None and tokenizer.size > config.vocabulary:
        raise CheckpointError(
            f"{source}: the tokenizer has {tokenizer.size} tokens, the model {config.vocabulary}"
        )
    return Bert(config, params, tokenizer, fresh, unused)


def config_of(
    raw: Mapping[str, Any], source: str | os.PathLike[str] = "config.json"
) -> EncoderConfig:
    """The `EncoderConfig` that the content of a `config.json` describes; CheckpointError names what
    it has that there is not here.
    """
    kind = raw.get("model_type", "bert")
    if kind != "bert":
        raise CheckpointError(f"{source} is a {kind!r} model: only 'bert' can be loaded")
    activation = str(raw.get("hidden_act", "gelu"))
    if activation not in ACTIVATIONS:
        raise CheckpointError(
            f"{source}: unknown activation {activation!r}; known are {', '.join(ACTIVATIONS)}"
        )
    positions = raw.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise CheckpointError(f"{source}: positions {positions!r} are not supported, only absolute")
    if raw.get("add_cross_attention"):
        raise CheckpointError(f"{source}: cross-attention is not supported")
    try:
        hidden = int(raw["hidden_size"])
        return EncoderConfig(
            layers=int(raw["num_hidden_layers"]),
            hidden=hidden,
            heads=int(raw["num_attention_heads"]),
            ffn=int(raw["intermediate_size"]),
            sequence=int(raw["max_position_embeddings"]),
            vocabulary=int(raw["vocab_size"]),
            attention="softmax",
            activation=ACTIVATIONS[activation],  # pyright: ignore[reportArgumentType]
            positions="learned",
            pooler=(hidden,),
            attention_mean=False,
            norm_epsilon=float(raw.get("layer_norm_eps", 1e-12)),
            initial_std=float(raw.get("initializer_range", 0.02)),
            padding_id=int(raw.get("pad_token_id") or 0),
            norm_order="post",
            biases=True,
            token_types=int(raw.get("type_vocab_size", 2)),
            causal=bool(raw.get("is_decoder", False)),
        )
    except KeyError as error:
        raise CheckpointError(f"{source} says nothing of {error}") from error
    except (TypeError, ValueError, OverflowError) as error:
        wrong = ", ".join(
            f"{name} is {raw[name]!r}, no whole number"
            for name in _NUMBERS
            if name in raw and not isinstance(raw[name], int)
        )
        raise CheckpointError(f"{source}: {wrong or error}") from error


def read_tensors(folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """A folder's tensors under BERT's own names, without what a wrapper puts before them;
    CheckpointError if there is no file of weights, or two tensors get one name.
    """
    source = Path(folder)
    exports = sorted(source.glob("*.onnx"))
    try:
        stored = read_folder(source)
        if stored is None and len(exports) == 1:
            stored = read_onnx(exports[0])
    except TensorFileError as error:
        raise CheckpointError(str(error)) from error
    if stored is None:
        raise CheckpointError(
            f"{source} holds neither model.safetensors, nor model.safetensors.index.json with its "
            "files, nor one .onnx file; convert other formats (pytorch_model.bin) with the library "
            "that wrote them"
        )
    out: dict[str, np.ndarray] = {}
    for name, tensor in stored.items():
        place = _PLACE.search(name)
        short = place.group(1) if place else name
        short = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", short)
        short = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", short)
        if short in out:
            raise CheckpointError(f"{source} holds {short} twice")
        out[short] = tensor
    return out


def _named(
    config: EncoderConfig, tensors: Mapping[str, np.ndarray], source: Path
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Arrays by our dotted names, matrices transposed, and the names of tensors without a use."""
    table = {ours: (theirs, False) for ours, theirs in _EMBEDDING.items()}
    linears = {
        f"blocks.{i}.{ours}": f"encoder.layer.{i}.{theirs}"
        for i in range(config.layers)
        for ours, theirs in _LINEARS.items()
    }
    for ours, theirs in (linears | _OPTIONAL).items():
        table[f"{ours}.kernel"] = (f"{theirs}.weight", True)
        table[f"{ours}.bias"] = (f"{theirs}.bias", False)
    for i in range(config.layers):
        for ours, theirs in _NORMS.items():
            for part, name in (("scale", "weight"), ("bias", "bias")):
                table[f"blocks.{i}.{ours}.{part}"] = (f"encoder.layer.{i}.{theirs}.{name}", False)
    if not config.token_types:
        del table["embedding.token_type"]
    used = {theirs for theirs, _ in table.values()}
    unused = tuple(sorted(n for n in tensors if n not in used and _UNUSED.match(n)))
    wrong = [f"{n} is missing" for n in used - tensors.keys() if not _optional(n)]
    wrong += [f"{n} is unexpected" for n in tensors if n not in used and n not in unused]
    leaves: dict[str, np.ndarray] = {}
    expected = shapes(config)
    for ours, (theirs, transposed) in table.items():
        if theirs not in tensors:
            continue
        shape = expected[ours][::-1] if transposed else expected[ours]
        if tensors[theirs].shape != shape:
            wrong.append(f"{theirs} is {tensors[theirs].shape}, wanted {shape}")
        leaves[ours] = tensors[theirs].T if transposed else tensors[theirs]
    raise_if(sorted(wrong), source)
    return leaves, unused


def _optional(name: str) -> bool:
    return name.startswith(tuple(_OPTIONAL.values()))


def read_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer | None:
    """The folder's WordPiece tokenizer, from `tokenizer.json` or else `vocab.txt`; None if it has
    neither. CheckpointError for one of another kind, such as one that keeps upper case.
    """
    try:
        return read_tokenizer_folder(Path(folder))
    except DataError as error:
        raise CheckpointError(str(error)) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} has no {path.name}: take it, and tokenizer.json or vocab.txt, from "
            "where the model was published. A package of weights alone, as of an ONNX export, has "
            "none; the page of the model that was exported has them"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no object")
    return found
