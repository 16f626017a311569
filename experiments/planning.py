"""`hesim plan`: what a run of a model would spend, without training, keys or encryption."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

import hesim
from experiments.demo.settings import DEMO_RING, Settings
from experiments.errors import ExperimentError
from experiments.training.evaluate import AFTER_TRAINING
from experiments.training.finetune import MODEL
from experiments.training.twin import default_ranges, read_encryption, ring_of
from experiments.validation.folder import RunFolder
from hesim.circuit.circuit import Circuit
from hesim.errors import EmptySlotsWarning
from hesim.params import CKKSParams
from hesim.program import Program
from hesim.progress import Reporter
from models.config import PRESETS, EncoderConfig
from models.encrypted.settings import EncryptionSettings
from models.nn.encoder import Model
from models.sites.sites import FitSettings, Sites, fit_ranges, function_of, site_names
from models.train.checkpoint import sites_from_json
from models.weights.folder import load_model

__all__ = ["Planned", "plan_model"]


@dataclasses.dataclass(frozen=True)
class Planned:
    """A plan: the program and its Circuit, and which model with which polynomials they are of."""

    program: Program
    circuit: Circuit
    model: Model
    polynomials: str


def plan_model(
    name: str,
    batch: int | None = None,
    *,
    length: int | None = None,
    ring: dict[str, Any] | None = None,
    config: str | Path | None = None,
    progress: Reporter | None = None,
    **options: Any,
) -> Planned:
    """The forward pass of a model, traced and compiled.

    Levels and counts do not depend on values, so neither weights nor data are needed: polynomials
    that the model does not bring along are fitted over usual ranges, with the degrees that
    evaluation takes.

    Args:
      name: a preset, or the folder of a model that `hesim finetune` or `convert` wrote, or of a
        demo.
      batch: sentences side by side in the slots; the demo's 256 by default.
      length: tokens of a sentence; by default as many as the model was trained on.
      ring: fields of `CKKSParams` that differ from those of the model, or of the demo.
      config: TOML file with the sections `encrypted` and `twin`, for ring and polynomials.
      options: of `hesim.compile`.

    Raises:
      ExperimentError: no such model, or one that encryption cannot run. Else as `hesim.compile`.
    """
    found = _found(name, config)
    settings, sites = found.model.config, found.model.sites
    if settings.attention == "softmax":
        raise ExperimentError(
            f"{name} has softmax attention, whose maximum no polynomial gives: fine-tune or "
            "convert it with --attention gaussian"
        )
    params = dataclasses.replace(found.ring, **(ring or {}))
    settings = settings.replace(lora_rank=0)  # adapters are added to their matrices beforehand
    if length is not None:
        settings = settings.replace(sequence=length)
    model = Model(settings, sites)
    members = Settings().batch if batch is None else batch
    shape = (members, *((2,) if settings.pairs == "bi-encoder" else ()), settings.sequence)
    weights = jax.eval_shape(model.init, jax.random.key(0))
    rows = jax.ShapeDtypeStruct((*shape, settings.hidden), np.float32)
    mask = jax.ShapeDtypeStruct(shape, np.float32)
    program = hesim.trace(model.encrypted_forward, weights, rows, mask, encrypted=(1,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptySlotsWarning)  # the printed Circuit says it, too
        circuit = hesim.compile(program, params, progress=progress, **options)
    return Planned(program, circuit, model, found.polynomials)


@dataclasses.dataclass(frozen=True)
class _Found:
    model: Model
    ring: CKKSParams
    polynomials: str


def _found(name: str, config: str | Path | None) -> _Found:
    path = Path(name)
    if name in PRESETS and not path.is_dir():
        demo = Settings()
        how = dataclasses.replace(EncryptionSettings(), ckks=DEMO_RING)
        if name == "demo":
            how = dataclasses.replace(how, fit=demo.recipe.fit)
        how = read_encryption(config, how)
        return _fitted(PRESETS[name], how)
    if not path.is_dir():
        raise ExperimentError(
            f"there is no model {name!r}: give a preset ({', '.join(sorted(PRESETS))}), or the "
            "folder of a model, of a run of hesim finetune or of a demo"
        )
    if (path / "settings.json").is_file():
        run = Settings.from_plain(RunFolder.find(path).settings)
        how = dataclasses.replace(EncryptionSettings(), ckks=run.ckks, fit=run.recipe.fit)
        return _fitted(run.config, read_encryption(config, how))
    saved = load_model(path / MODEL if (path / MODEL).is_dir() else path)
    ring = saved.notes.get("encrypted")
    usual = dataclasses.replace(AFTER_TRAINING, ckks=DEMO_RING)
    how = read_encryption(config, ring_of(ring, usual) if ring else usual)
    settings = saved.config
    if "length" in saved.notes:
        settings = settings.replace(sequence=saved.notes["length"])
    if saved.notes.get("sites"):
        sites = sites_from_json(saved.notes["sites"])
        return _Found(Model(settings, sites), how.ckks, "those that it was trained with")
    return _fitted(settings, how)


def _fitted(config: EncoderConfig, how: EncryptionSettings) -> _Found:
    if config.attention == "softmax":
        return _Found(Model(config), how.ckks, "")
    model = Model(config, _usual_sites(config, how.fit))
    return _Found(model, how.ckks, "fitted over usual ranges")


def _usual_sites(config: EncoderConfig, fit: FitSettings) -> Sites:
    """Polynomials of these degrees: over the ranges of training in the clear, else over others that
    are met.
    """
    usual = default_ranges() | dict(Settings().recipe.targets)
    return fit_ranges(config, {name: usual[function_of(name)] for name in site_names(config)}, fit)
