"""Which model a name means, with its ring and its polynomials: what `plan` and `validate` start
from.

A name is a preset, a shipped model, the folder of a saved model, or the run folder of a fine-tuning
or of a demo.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from experiments.demo.settings import DEMO_RING, Settings
from experiments.errors import ExperimentError
from experiments.machines import based
from experiments.training.evaluate import AFTER_TRAINING
from experiments.training.finetune import MODEL
from experiments.training.twin import default_ranges, read_encryption, ring_of
from experiments.validation.folder import RunFolder
from he_backend.machines.table import DEFAULT_MACHINE
from models.config import PRESETS, EncoderConfig
from models.encrypted.settings import EncryptionSettings
from models.encrypted.twin import encryptable
from models.nn.encoder import Model
from models.sites.sites import FitSettings, Sites, fit_ranges, function_of, site_names
from models.train.checkpoint import sites_from_json
from models.weights.folder import Saved, load_model
from models.weights.shipped import SHIPPED, shipped_names

__all__ = ["Answer", "Subject", "find_subject", "of_sentences", "usual_sites"]

Answer = Literal["logits", "cosine"]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model as it was found.

    Attributes:
      name: by which it was asked for.
      config: its own, adapters included; rows as long as it was trained on.
      how: ring, and what to fit where it brings no polynomials along.
      own: the polynomials that it was trained with, if any.
      saved: its weights and notes; None of a preset and of a demo.
      folder: where it was found; None of a preset.
      demo: the settings of a demo's run folder.
    """

    name: str
    config: EncoderConfig
    how: EncryptionSettings
    own: Sites | None = None
    saved: Saved | None = None
    folder: Path | None = None
    demo: Settings | None = None

    @property
    def notes(self) -> Mapping[str, Any]:
        """On its training."""
        return {} if self.saved is None else self.saved.notes

    @property
    def answer(self) -> Answer:
        """What it is good for: the logits of a head that was trained, or, of a converted encoder of
        sentences, the cosine similarity of embeddings.
        """
        fresh = self.notes.get("fresh") or ()
        untrained = "task" not in self.notes and any(name.startswith("head.") for name in fresh)
        return "cosine" if untrained else "logits"

    @property
    def polynomials(self) -> str:
        """Where those of a plan come from."""
        if self.own is not None:
            return "those that it was trained with"
        return "fitted over usual ranges"

    def planned(self, length: int | None = None) -> Model:
        """The twin for a plan, adapters added to their matrices, for rows of `length` tokens, by
        default its own, softmax by squarings; polynomials that it does not bring along hold on
        usual ranges.
        """
        config = encryptable(self.config.replace(lora_rank=0), self.how.softmax_squarings)
        if length is not None:
            config = config.replace(sequence=length)
        sites = self.own if self.own is not None else usual_sites(config, self.how.fit)
        return Model(config, sites)


def find_subject(
    name: str, config: str | Path | None = None, backend: str = DEFAULT_MACHINE
) -> Subject:
    """The model of that name, with a ring for a machine: its own, if that is one.

    config: TOML file with the sections `encrypted` and `twin`. backend: the machine.

    Raises ExperimentError for no such model, CheckpointError for a damaged one.
    """
    path = SHIPPED / name if name in shipped_names() else Path(name)
    if name in PRESETS and not path.is_dir():
        demo = Settings()
        how = dataclasses.replace(EncryptionSettings(), ckks=DEMO_RING)
        if name == "demo":
            how = dataclasses.replace(how, fit=demo.recipe.fit)
        return Subject(name, PRESETS[name], read_encryption(config, based(how, backend)))
    if not path.is_dir():
        raise ExperimentError(
            f"there is no model {name!r}: give a preset ({', '.join(sorted(PRESETS))}), a shipped "
            f"model ({', '.join(shipped_names())}), or the folder of a model, of a run of hesim "
            "finetune or of a demo"
        )
    if (path / "settings.json").is_file():
        return _of_demo(name, path, config, backend)
    saved = load_model(path / MODEL if (path / MODEL).is_dir() else path)
    ring = saved.notes.get("encrypted")
    usual = dataclasses.replace(AFTER_TRAINING, ckks=DEMO_RING)
    how = read_encryption(config, based(ring_of(ring, usual) if ring else usual, backend))
    shape = saved.config
    if "length" in saved.notes:
        shape = shape.replace(sequence=saved.notes["length"])
    own = sites_from_json(saved.notes["sites"]) if saved.notes.get("sites") else None
    return Subject(name, shape, how, own, saved, path)


def _of_demo(name: str, path: Path, config: str | Path | None, backend: str) -> Subject:
    found = RunFolder.find(path).settings
    if "recipe" not in found:
        raise ExperimentError(
            f"{path} is the folder of a validation, not of a model: name the model that it is of"
        )
    run = Settings.from_plain(found)
    how = dataclasses.replace(EncryptionSettings(), ckks=run.ckks, fit=run.recipe.fit)
    how = read_encryption(config, based(how, backend))
    return Subject(name, run.config, how, folder=path, demo=run)


def of_sentences(config: EncoderConfig) -> EncoderConfig:
    """The shape that reads each sentence by itself and embeds it as the mean of its tokens."""
    return config.replace(pairs="cross-encoder", pooling="mean")


def usual_sites(config: EncoderConfig, fit: FitSettings) -> Sites:
    """Polynomials of these degrees: over the ranges of training in the clear, else over others that
    are met.
    """
    usual = default_ranges() | dict(Settings().recipe.targets)
    return fit_ranges(config, {name: usual[function_of(name)] for name in site_names(config)}, fit)
