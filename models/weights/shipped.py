"""Pre-trained encoders that come with the package, or any saved model, as a start for a task.

    model, params, tokenizer, notes = load_pretrained("tiny-gaussian", classes=3)

What belongs to a task (pooler, head, adapters) starts fresh; everything else is the stored encoder,
to whose matrices the adapters that it was stored with are added.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.data.tokenizer import Tokenizer
from models.nn.encoder import Model
from models.nn.lora import Params, is_adapter_or_head, merge
from models.train.checkpoint import CheckpointError
from models.weights.folder import checked, flatten, load_model

__all__ = ["SHIPPED", "PretrainedModel", "load_pretrained", "rounded", "shipped_names"]

SHIPPED = Path(__file__).parent.parent / "pretrained"
"""The folder of models that come with the package."""


class PretrainedModel(NamedTuple):
    """A model with float32 parameters, its tokenizer, and the notes on its training."""

    model: Model
    params: Params
    tokenizer: Tokenizer
    notes: dict[str, Any]


def shipped_names() -> tuple[str, ...]:
    """Names of the models that come with the package."""
    return tuple(sorted(path.parent.name for path in SHIPPED.glob("*/config.json")))


def rounded(params: Params, dtype: Any = jnp.bfloat16) -> Params:
    """Matrices in `dtype`, half the size; vectors and scalars as they are."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, params)


def load_pretrained(
    name: str | Path, *, key: jax.Array | None = None, **changes: Any
) -> PretrainedModel:
    """The model of that name (`shipped_names`), or of a folder of `save_model`; needs no network.

    key: of the parameters that start fresh, `jax.random.key(0)` by default. changes: fields of the
    configuration that a task sets, such as classes, sequence, pooler, lora_rank;
    `lm_head="none"` leaves the language-model head out.

    Raises:
      CheckpointError: no such name or folder, a damaged file, no tokenizer, or changes that ask for
        parameters of other shapes than the stored ones.
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
    fresh = flatten(model.init(jax.random.key(0) if key is None else key))
    stored = flatten(merge(saved.params, saved.config.lora_scale))
    kept = {name: leaf for name, leaf in stored.items() if not _of_a_task(name)}
    if config.lm_head == "none":
        kept = {name: leaf for name, leaf in kept.items() if not name.startswith("lm_head.")}
    task = {name: leaf for name, leaf in fresh.items() if _of_a_task(name)}
    return PretrainedModel(
        model, checked(config, task | kept, folder), saved.tokenizer, saved.notes
    )


def _of_a_task(name: str) -> bool:
    return is_adapter_or_head(tuple(name.split(".")))
