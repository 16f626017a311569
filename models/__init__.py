"""models: HE-friendly transformers in Flax NNX, their polynomial twins, and their training."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.checkpoint import Checkpoints
    from models.config import PRESETS, EncoderConfig, preset
    from models.data import Dataset, load
    from models.encoder import Encoder, Model
    from models.lora import combine, merge, partition
    from models.losses import (
        cross_entropy,
        cross_entropy_polynomial,
        mean_squared_error,
        range_penalty,
        squared_error,
    )
    from models.optim import adamw_he, scale_by_adam_he
    from models.recipe import Recipe, Trained, train_classifier
    from models.sites import EXACT, FitSettings, Sites, fit_ranges, site_names
    from models.tokens import Tokenizer
    from models.train import (
        Batch,
        TrainState,
        collect_ranges,
        fit_sites,
        initial_state,
        make_evaluate,
        make_step,
        run_steps,
    )

_HOME = {
    "Batch": "train",
    "Checkpoints": "checkpoint",
    "Dataset": "data",
    "EXACT": "sites",
    "Encoder": "encoder",
    "EncoderConfig": "config",
    "FitSettings": "sites",
    "Model": "encoder",
    "PRESETS": "config",
    "Recipe": "recipe",
    "Sites": "sites",
    "Tokenizer": "tokens",
    "TrainState": "train",
    "Trained": "recipe",
    "adamw_he": "optim",
    "collect_ranges": "train",
    "combine": "lora",
    "cross_entropy": "losses",
    "cross_entropy_polynomial": "losses",
    "fit_ranges": "sites",
    "fit_sites": "train",
    "initial_state": "train",
    "load": "data",
    "make_evaluate": "train",
    "make_step": "train",
    "mean_squared_error": "losses",
    "merge": "lora",
    "partition": "lora",
    "preset": "config",
    "range_penalty": "losses",
    "run_steps": "train",
    "scale_by_adam_he": "optim",
    "site_names": "sites",
    "squared_error": "losses",
    "train_classifier": "recipe",
}

__all__ = [
    "EXACT",
    "PRESETS",
    "Batch",
    "Checkpoints",
    "Dataset",
    "Encoder",
    "EncoderConfig",
    "FitSettings",
    "Model",
    "Recipe",
    "Sites",
    "Tokenizer",
    "TrainState",
    "Trained",
    "adamw_he",
    "collect_ranges",
    "combine",
    "cross_entropy",
    "cross_entropy_polynomial",
    "fit_ranges",
    "fit_sites",
    "initial_state",
    "load",
    "make_evaluate",
    "make_step",
    "mean_squared_error",
    "merge",
    "partition",
    "preset",
    "range_penalty",
    "run_steps",
    "scale_by_adam_he",
    "site_names",
    "squared_error",
    "train_classifier",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"models.{_HOME[name]}"), name)
    raise AttributeError(f"module 'models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
