"""models: HE-friendly transformers in Flax NNX, their polynomial twins, and their training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesim.lazy import attach

if TYPE_CHECKING:
    from models.config import PRESETS, EncoderConfig, preset
    from models.data.batches import Batch, shuffled
    from models.data.corpus import Corpus
    from models.data.datasets import Dataset, load
    from models.data.tokenizer import Tokenizer
    from models.errors import FreshParametersWarning
    from models.nn.encoder import Encoder, Model
    from models.nn.lora import combine, merge, partition
    from models.objectives.losses import (
        cross_entropy,
        cross_entropy_polynomial,
        mean_squared_error,
        range_penalty,
        squared_error,
    )
    from models.objectives.mlm import Masking
    from models.recipes.classify import Recipe, Trained, train_classifier
    from models.recipes.pretrain import Pretraining
    from models.sites.sites import EXACT, FitSettings, Sites, fit_ranges, site_names
    from models.train.checkpoint import Checkpoints
    from models.train.classifier import make_step
    from models.train.evaluate import collect_ranges, fit_sites, make_evaluate
    from models.train.loop import run_steps
    from models.train.optim import adamw_he, on_stacks, scale_by_adam_he
    from models.train.ranges import check_ranges
    from models.train.schedules import Budget
    from models.train.step import StepOptions, TrainState, initial_state, make_update
    from models.weights.bert import Bert, load_bert
    from models.weights.folder import Saved, load_model, save_model
    from models.weights.shipped import load_pretrained, shipped_names

_HOMES = {
    "Batch": "models.data.batches",
    "Bert": "models.weights.bert",
    "Budget": "models.train.schedules",
    "Checkpoints": "models.train.checkpoint",
    "Corpus": "models.data.corpus",
    "Dataset": "models.data.datasets",
    "EXACT": "models.sites.sites",
    "Encoder": "models.nn.encoder",
    "EncoderConfig": "models.config",
    "FitSettings": "models.sites.sites",
    "FreshParametersWarning": "models.errors",
    "Masking": "models.objectives.mlm",
    "Model": "models.nn.encoder",
    "PRESETS": "models.config",
    "Pretraining": "models.recipes.pretrain",
    "Recipe": "models.recipes.classify",
    "Saved": "models.weights.folder",
    "Sites": "models.sites.sites",
    "StepOptions": "models.train.step",
    "Tokenizer": "models.data.tokenizer",
    "TrainState": "models.train.step",
    "Trained": "models.recipes.classify",
    "adamw_he": "models.train.optim",
    "check_ranges": "models.train.ranges",
    "collect_ranges": "models.train.evaluate",
    "combine": "models.nn.lora",
    "cross_entropy": "models.objectives.losses",
    "cross_entropy_polynomial": "models.objectives.losses",
    "fit_ranges": "models.sites.sites",
    "fit_sites": "models.train.evaluate",
    "initial_state": "models.train.step",
    "load": "models.data.datasets",
    "load_bert": "models.weights.bert",
    "load_model": "models.weights.folder",
    "load_pretrained": "models.weights.shipped",
    "make_evaluate": "models.train.evaluate",
    "make_step": "models.train.classifier",
    "make_update": "models.train.step",
    "mean_squared_error": "models.objectives.losses",
    "merge": "models.nn.lora",
    "on_stacks": "models.train.optim",
    "partition": "models.nn.lora",
    "preset": "models.config",
    "range_penalty": "models.objectives.losses",
    "run_steps": "models.train.loop",
    "save_model": "models.weights.folder",
    "scale_by_adam_he": "models.train.optim",
    "shipped_names": "models.weights.shipped",
    "shuffled": "models.data.batches",
    "site_names": "models.sites.sites",
    "squared_error": "models.objectives.losses",
    "train_classifier": "models.recipes.classify",
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
    "FreshParametersWarning",
    "Masking",
    "Model",
    "Pretraining",
    "Recipe",
    "Saved",
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
    "load_model",
    "load_pretrained",
    "make_evaluate",
    "make_step",
    "make_update",
    "mean_squared_error",
    "merge",
    "on_stacks",
    "partition",
    "preset",
    "range_penalty",
    "run_steps",
    "save_model",
    "scale_by_adam_he",
    "shipped_names",
    "shuffled",
    "site_names",
    "squared_error",
    "train_classifier",
]

__getattr__, __dir__ = attach(__name__, _HOMES)
