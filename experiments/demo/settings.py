"""What a demo run does: data, model, training, ring, and how many sentences are encrypted.

Two runs with equal settings and equal code compute the same thing, so `Settings.digest` names the
run folder that an interrupted run is resumed from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from experiments.machines import Suited, based, suited
from experiments.validation.identity import code_digest
from he_backend.machines.table import DEFAULT_MACHINE
from hesim.errors import ArgumentError
from hesim.params import CKKSParams
from models.config import EncoderConfig, preset
from models.encrypted.settings import EncryptionSettings
from models.recipes.classify import Recipe
from models.sites.sites import FitSettings

__all__ = ["FAST", "Settings"]

DEMO_RING = CKKSParams(log_n=14, levels=3, scale_bits=40, first_bits=50, special_bits=60)


@dataclasses.dataclass(frozen=True)
class Settings:
    """One demo run.

    Attributes:
      data: "reviews", "reviews-regression" or "glue/<task>".
      data_dir: GLUE's folder.
      sentences: held-out sentences that are encrypted.
      batch: how many of them go side by side into one set of ciphertexts; more are run batch after
        batch.
      seed: of weights, batches and simulated noise.
      seeds: models trained, from `seed` upwards; the first one runs encrypted, the others are
        evaluated in the clear.
      config: the model; its vocabulary and classes are set from the data.
      recipe: the training; its seed is replaced.
      ckks: ring and primes.
      refresh_price: as for `hesim.compile`.
      backend: a machine of the table: "pyfhel", or "slots" (plain vectors, nothing encrypted).
      insecure: log2 of a ring degree: the chain in a small ring, which protects nothing.
      bootstrapped: sentences that are bootstrapped besides, where OpenFHE is there; 0: none.

    Examples:
      >>> from experiments import Settings
      >>> settings = Settings(sentences=64, backend="slots")
      >>> settings.ckks.log_n, settings.batch, settings.config.layers
      (14, 256, 2)
    """

    data: str = "reviews"
    data_dir: str | None = None
    sentences: int = 256
    batch: int = 256
    seed: int = 0
    seeds: int = 1
    config: EncoderConfig = preset("demo")
    recipe: Recipe = Recipe(evaluate_every=50, save_every=50)
    ckks: CKKSParams = DEMO_RING
    refresh_price: float | str | None = None
    backend: str = DEFAULT_MACHINE
    insecure: int | None = None
    bootstrapped: int = 4

    def __post_init__(self) -> None:
        for name in ("sentences", "batch", "seeds"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be at least 1, got {getattr(self, name)}")

    def recipe_of(self, seed: int) -> Recipe:
        """The training of one seed."""
        return dataclasses.replace(self.recipe, seed=seed)

    @property
    def suited(self) -> Suited:
        """Ring, noise and refreshes for the machine."""
        how = based(dataclasses.replace(EncryptionSettings(), ckks=self.ckks), self.backend)
        return suited(how, self.backend, insecure=self.insecure)

    def plain(self) -> dict[str, Any]:
        """All settings as JSON data."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Settings:
        """The settings that `plain` described."""
        fields = _tuples(plain)
        recipe = dict(fields["recipe"])
        recipe["fit"] = FitSettings(**recipe["fit"])
        parts = {
            "config": EncoderConfig(**fields["config"]),
            "recipe": Recipe(**recipe),
            "ckks": CKKSParams(**fields["ckks"]),
        }
        return cls(**{**fields, **parts})

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of the settings and of the code that they run."""
        text = json.dumps([self.plain(), code_digest()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def default_folder(self) -> Path:
        """`runs/demo-<digest>` under the current folder."""
        return Path("runs") / f"demo-{self.digest}"


FAST = Settings(
    sentences=64,
    batch=64,
    config=preset("demo", layers=1, hidden=32, ffn=64, sequence=16, pooler=(32,)),
    recipe=Recipe(steps=300, polynomial_steps=60, evaluate_every=30, save_every=30),
)
"""A smaller model on fewer sentences: shows the machinery in about a minute, not the accuracy."""


def _tuples(value: Any) -> Any:
    """JSON data with every list made a tuple again."""
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
