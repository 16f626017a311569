"""models: HE-friendly transformers in Flax NNX, their polynomial twins, and their training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesim.lazy import attach

if TYPE_CHECKING:
    from models.bert import Bert, load_bert
    from models.checkpoint import Checkpoints
    from models.config import PRESETS, EncoderConfig, preset
    from models.corpus import Corpus
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
    from models.mlm import Masking
    from models.optim import adamw_he, scale_by_adam_he
    from models.pretrain import Pretraining
    from models.ranges import check_ranges
    from models.recipe import Recipe, Trained, train_classifier
    from models.schedules import Budget
    from models.shipped import load_pretrained, shipped_names
    from models.sites import EXACT, FitSettings, Sites, fit_ranges, site_names
    from models.step import StepOptions, make_update
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
        shuffled,
    )

_HOMES = {
    "Batch": "models.train",
    "Bert": "models.bert",
    "Budget": "models.schedules",
    "Checkpoints": "models.checkpoint",
    "Corpus": "models.corpus",
    "Dataset": "models.data",
    "EXACT": "models.sites",
    "Encoder": "models.encoder",
    "EncoderConfig": "models.config",
    "FitSettings": "models.sites",
    "Masking": "models.mlm",
    "Model": "models.encoder",
    "PRESETS": "models.config",
    "Pretraining": "models.pretrain",
    "Recipe": "models.recipe",
    "Sites": "models.sites",
    "StepOptions": "models.step",
    "Tokenizer": "models.tokens",
    "TrainState": "models.step",
    "Trained": "models.recipe",
    "adamw_he": "models.optim",
    "check_ranges": "models.ranges",
    "collect_ranges": "models.train",
    "combine": "models.lora",
    "cross_entropy": "models.losses",
    "cross_entropy_polynomial": "models.losses",
    "fit_ranges": "models.sites",
    "fit_sites": "models.train",
    "initial_state": "models.step",
    "load": "models.data",
    "load_bert": "models.bert",
    "load_pretrained": "models.shipped",
    "make_evaluate": "models.train",
    "make_step": "models.train",
    "make_update": "models.step",
    "mean_squared_error": "models.losses",
    "merge": "models.lora",
    "partition": "models.lora",
    "preset": "models.config",
    "range_penalty": "models.losses",
    "run_steps": "models.train",
    "scale_by_adam_he": "models.optim",
    "shipped_names": "models.shipped",
    "shuffled": "models.train",
    "site_names": "models.sites",
    "squared_error": "models.losses",
    "train_classifier": "models.recipe",
}

__all__ = [
    "EXACT",
    "PRESETS",
    "Batch",
    "Bert",
    "Budget",
    "Checkpoints",
    "Corpus",
    "Dataset",
    "Encoder",
    "EncoderConfig",
    "FitSettings",
    "Masking",
    "Model",
    "Pretraining",
    "Recipe",
    "Sites",
    "StepOptions",
    "Tokenizer",
    "TrainState",
    "Trained",
    "adamw_he",
    "check_ranges",
    "collect_ranges",
    "combine",
    "cross_entropy",
    "cross_entropy_polynomial",
    "fit_ranges",
    "fit_sites",
    "initial_state",
    "load",
    "load_bert",
    "load_pretrained",
    "make_evaluate",
    "make_step",
    "make_update",
    "mean_squared_error",
    "merge",
    "partition",
    "preset",
    "range_penalty",
    "run_steps",
    "scale_by_adam_he",
    "shipped_names",
    "shuffled",
    "site_names",
    "squared_error",
    "train_classifier",
]

__getattr__, __dir__ = attach(__name__, _HOMES)
