"""Pre-trained encoders that come with the package, or any saved model, as a start for a task.

    model, params, tokenizer, notes = load_pretrained("tiny-gaussian", classes=3)

An encoder that was trained on text alone gets a fresh pooler, head and adapters. A model that was
fine-tuned keeps its own, unless the changes ask for another task: then what its adapters learned is
added to its matrices, and what starts fresh is said by a warning. `load_model` reads a folder as it
is.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.config import EncoderConfig
from models.data.tokenizer import Tokenizer
from models.errors import CheckpointError, FreshParametersWarning
from models.nn.encoder import Model
from models.nn.lora import Params, is_adapter, is_adapter_or_head, merge
from models.weights.folder import Saved, checked, flatten, load_model

__all__ = ["SHIPPED", "PretrainedModel", "load_pretrained", "rounded", "shipped_names"]

_TASK = ("classes", "pooler")  # fields whose change asks for another pooler and head
_ADAPTERS = ("lora_rank", "lora_alpha", "lora_targets")
SHIPPED = Path(__file__).parent.parent / "pretrained"
"""The folder of models that come with the package."""


class PretrainedModel(NamedTuple):
    """A model with float32 parameters, its tokenizer, and the notes on its training.

    notes: of the folder; `started_fresh` lists the parameters that are random numbers, by
    dotted name.
    """

    model: Model
    params: Params
    tokenizer: Tokenizer
    notes: dict[str, Any]


def shipped_names() -> tuple[str, ...]:
    """Names of the models that come with the package, for `load_pretrained`.

    Raises nothing of its own.

    Examples:
      >>> from models import shipped_names
      >>> shipped_names()
      ('tiny-gaussian', 'tiny-softmax')
    """
    return tuple(sorted(path.parent.name for path in SHIPPED.glob("*/config.json")))


def rounded(params: Params, dtype: Any = jnp.bfloat16) -> Params:
    """Matrices in `dtype`, half the size; vectors and scalars as they are."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, params)


def load_pretrained(
    name: str | Path,
    *,
    key: jax.Array | None = None,
    fresh: bool | None = None,
    **changes: Any,
) -> PretrainedModel:
    """The model of that name (`shipped_names`), or of a folder of `save_model`; needs no network.

    Args:
      name: of a model that comes with the package, or a folder.
      key: of the parameters that start fresh, `jax.random.key(0)` by default.
      fresh: whether pooler, head and adapters start from random numbers. By default those that
        were trained are kept, unless `classes` or `pooler` change; adapters are kept unless their
        rank, scale or places change.
      changes: fields of the configuration that a task sets, such as classes, sequence, pooler,
        lora_rank; `lm_head="none"` leaves the language-model head out.

    Raises:
      CheckpointError: no such name or folder, a damaged file, no tokenizer, or changes that ask for
        parameters of other shapes than the stored ones.

    Warns:
      FreshParametersWarning: a trained pooler or head is replaced by random numbers, without
        `fresh=True`.

    Examples:
      >>> from models import load_pretrained
      >>> load_pretrained("tiny-gauss")
      Traceback (most recent call last):
          ...
      models.errors.CheckpointError: there is no pre-trained model 'tiny-gauss' ...
    """
    folder = SHIPPED / name if str(name) in shipped_names() else Path(name)
    if not str(name) or not folder.is_dir():
        shipped_list = ", ".join(shipped_names()) or "none comes with this version"
        raise CheckpointError(
            f"there is no pre-trained model {str(name)!r} ({shipped_list}): name one of these, or "
            "the folder of a saved model"
        )
    saved = load_model(folder)
    if saved.tokenizer is None:
        raise CheckpointError(f"{folder} has no tokenizer: its token numbers mean nothing")
    try:
        config = saved.config.replace(**changes)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} cannot be changed like that: {error}") from error
    model = Model(config)
    random = flatten(model.init(jax.random.key(0) if key is None else key))
    kept, replaced = _kept(saved, config, fresh)
    if config.lm_head == "none":
        kept = {name: leaf for name, leaf in kept.items() if not name.startswith("lm_head.")}
    if replaced and fresh is None:
        said = _said(folder, saved.config, config, replaced)
        warnings.warn(said, FreshParametersWarning, stacklevel=2)
    task = {name: leaf for name, leaf in random.items() if _of_a_task(name)}
    notes = saved.notes | {"started_fresh": sorted(task.keys() - kept.keys())}
    return PretrainedModel(model, checked(config, task | kept, folder), saved.tokenizer, notes)


def _kept(
    saved: Saved, config: EncoderConfig, fresh: bool | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The stored parameters that stay, and the names of trained ones that do not."""
    old = saved.config
    adapters_stay = not fresh and all(getattr(old, f) == getattr(config, f) for f in _ADAPTERS)
    task_stays = not fresh and all(getattr(old, f) == getattr(config, f) for f in _TASK)
    keep_adapters = adapters_stay and task_stays
    stored = flatten(saved.params if keep_adapters else merge(saved.params, old.lora_scale))
    if not keep_adapters:
        stored = {n: leaf for n, leaf in stored.items() if not is_adapter(tuple(n.split(".")))}
    untrained = _untrained(saved.notes, stored)
    parts = {name for name in stored if name.startswith(("pooler.", "head."))}
    lost = untrained if task_stays else parts
    kept = {name: leaf for name, leaf in stored.items() if name not in lost}
    return kept, tuple(sorted(lost - untrained))


def _untrained(notes: Mapping[str, Any], stored: Mapping[str, Any]) -> set[str]:
    """Parameters of pooler and head that no training has touched, by what a folder's notes say."""
    if "corpus_digest" in notes and "task" not in notes:  # trained on text alone
        return {name for name in stored if name.startswith(("pooler.", "head."))}
    found = notes.get("fresh") if "task" not in notes else ()
    return set(found) & set(stored) if isinstance(found, list) else set()


def _said(folder: Path, old: EncoderConfig, new: EncoderConfig, replaced: Sequence[str]) -> str:
    changed = [f for f in _TASK if getattr(old, f) != getattr(new, f)]
    why = " and ".join(f"{f} {getattr(old, f)} -> {getattr(new, f)}" for f in changed)
    parts = " and ".join(sorted({name.partition(".")[0] for name in replaced}))
    return (
        f"{folder}: {parts} start from random numbers ({why}), though they were trained; leave "
        "these as they are to keep them, or pass fresh=True for another task"
    )


def _of_a_task(name: str) -> bool:
    return is_adapter_or_head(tuple(name.split(".")))
