"""A model as a folder: configuration, weights, tokenizer and notes, complete or absent.

`config.json` is an `EncoderConfig`, `model.safetensors` the parameters by dotted name
(`blocks.0.attention.query.kernel`), `tokenizer.json` the vocabulary, `notes.json` whatever is said
about them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models.config import EncoderConfig
from models.data.tokenizer import Tokenizer
from models.errors import CheckpointError, DataError, TensorFileError
from models.nn.encoder import Model
from models.nn.lora import Params
from models.weights.safetensors import read_safetensors, write_safetensors

_CONFIG, _WEIGHTS, _TOKENS, _NOTES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "notes.json",
)


class Saved(NamedTuple):
    """What a model's folder holds.

    Attributes:
      config: the architecture.
      params: float32, nested dictionaries of arrays of any shape.
      tokenizer: of its tokens; None if the folder has none.
      notes: on its training.

    Examples:
      >>> from models import Saved, preset
      >>> saved = Saved(preset("demo"), {}, None, {"task": "reviews"})
      >>> saved.config.classes, saved.notes["task"]
      (2, 'reviews')
    """

    config: EncoderConfig
    params: Params
    tokenizer: Tokenizer | None
    notes: dict[str, Any]


def flatten(params: Params) -> dict[str, Any]:
    """Leaves by dotted name: list positions are numbers."""
    out: dict[str, Any] = {}
    for name, child in params.items():
        if isinstance(child, dict):
            out |= {f"{name}.{rest}": leaf for rest, leaf in flatten(child).items()}
        else:
            out[str(name)] = child
    return out


def unflatten(leaves: Mapping[str, Any]) -> Params:
    """The inverse of `flatten`."""
    out: Params = {}
    for name, leaf in leaves.items():
        tree = out
        *path, last = (int(part) if part.isdigit() else part for part in name.split("."))
        for part in path:
            tree = tree.setdefault(part, {})
        tree[last] = leaf
    return out


def shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of a model, by dotted name."""
    tree = jax.eval_shape(Model(config).init, jax.random.key(0))
    return {name: tuple(leaf.shape) for name, leaf in flatten(tree).items()}


def checked(
    config: EncoderConfig, leaves: Mapping[str, Any], source: str | os.PathLike[str]
) -> Params:
    """float32 parameters from arrays by dotted name.

    Raises CheckpointError naming parameters that are missing, unexpected, of another shape, or not
    finite.
    """
    wanted = shapes(config)
    wrong = [f"{name} is missing" for name in wanted if name not in leaves]
    wrong += [f"{name} is unexpected" for name in leaves if name not in wanted]
    for name, shape in wanted.items():
        if name in leaves and tuple(np.shape(leaves[name])) != shape:
            wrong.append(f"{name} is {tuple(np.shape(leaves[name]))}, wanted {shape}")
    raise_if(wrong, source)
    arrays = {name: np.asarray(leaves[name], np.float32) for name in wanted}
    raise_if([f"{n} is not finite" for n, a in arrays.items() if not np.isfinite(a).all()], source)
    return unflatten({name: jnp.asarray(array) for name, array in arrays.items()})


def raise_if(wrong: list[str], source: str | os.PathLike[str]) -> None:
    """CheckpointError with the first few of these complaints, if there are any."""
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(f"{source} does not fit: {'; '.join(wrong[:5])}{more}")


def save_model(
    folder: str | os.PathLike[str],
    config: EncoderConfig,
    params: Params,
    tokenizer: Tokenizer | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model's folder, which appears complete or not at all.

    Args:
      folder: to make; it must not exist, or be empty.
      config: the architecture.
      params: nested dictionaries of arrays, of the shapes that the configuration has.
      tokenizer: of its tokens, if any.
      notes: JSON data on its training.

    Returns:
      The folder.

    Raises:
      CheckpointError: there already is something, or it cannot be written.

    Examples:
      >>> import jax, tempfile
      >>> from models import Model, load_model, preset, save_model
      >>> config = preset(
      ...     "demo", layers=1, hidden=8, ffn=8, sequence=4, vocabulary=16, pooler=(8,)
      ... )
      >>> folder = save_model(
      ...     tempfile.mkdtemp() + "/mine", config, Model(config).init(jax.random.key(0)))
      >>> load_model(folder).config == config
      True
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} already exists: choose another folder or remove it")
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
        leaves = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
        write_safetensors(part / _WEIGHTS, leaves)
        (part / _CONFIG).write_text(config.to_json() + "\n")
        (part / _NOTES).write_text(json.dumps(dict(notes or {}), indent=1) + "\n")
        if tokenizer is not None:
            tokenizer.save(part / _TOKENS)
        if target.exists():
            target.rmdir()
        os.replace(part, target)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError):
            raise CheckpointError(
                f"{target} cannot be written: {error.strerror or error}"
            ) from error
        raise
    return target


def load_model(folder: str | os.PathLike[str]) -> Saved:
    """Read a model's folder whole, head and adapters included.

    Args:
      folder: of `save_model`, or of a finished `hesim finetune`.

    Returns:
      config, params (float32), tokenizer (or None) and notes.

    Raises:
      CheckpointError: it is incomplete, damaged, or does not fit its configuration.

    Examples:
      >>> import tempfile
      >>> from models import load_model
      >>> load_model(tempfile.mkdtemp())
      Traceback (most recent call last):
          ...
      models.errors.CheckpointError: ... is no saved model: ...
    """
    source = Path(folder)
    if _is_foreign(source):
        raise CheckpointError(
            f"{source} is somebody else's BERT, not a model of ours: run `hesim convert {source} "
            "--out DIR` first, and name DIR"
        )
    try:
        config = EncoderConfig.from_json((source / _CONFIG).read_text())
        notes = json.loads((source / _NOTES).read_text())
        leaves = read_safetensors(source / _WEIGHTS)
    except (OSError, ValueError, TypeError, TensorFileError) as error:
        raise CheckpointError(f"{source} is no saved model: {error}{_hint(source)}") from error
    if not isinstance(notes, dict):
        raise CheckpointError(f"{source} is no saved model: {_NOTES} holds no object")
    words = source / _TOKENS
    try:
        tokenizer = Tokenizer.load(words) if words.exists() else None
    except DataError as error:
        raise CheckpointError(f"{source} is no saved model: {error}") from error
    if tokenizer is not None and tokenizer.size > config.vocabulary:
        raise CheckpointError(
            f"{source} does not fit: the tokenizer has {tokenizer.size} tokens, the model "
            f"{config.vocabulary}"
        )
    return Saved(config, checked(config, leaves, source), tokenizer, notes)


def _is_foreign(source: Path) -> bool:
    """Whether a folder's configuration is that of another library."""
    try:
        found = json.loads((source / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and bool({"model_type", "architectures"} & found.keys())


def _hint(source: Path) -> str:
    """What else a folder without a model may be."""
    if (source / "model" / _CONFIG).exists():
        return f"; there is one in {source / 'model'}"
    if (source / "checkpoints").is_dir():
        return "; it holds a training that is not finished: the command that began it goes on"
    if (source / _CONFIG).exists() and not (source / _NOTES).exists():
        return "; of somebody else's BERT `hesim convert` makes one"
    return ""
