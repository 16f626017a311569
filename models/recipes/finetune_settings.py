"""What a fine-tuning is: method, rates, adapters, penalty, and how it runs."""

from __future__ import annotations

import dataclasses
from typing import Literal

from hesim.errors import ArgumentError
from models.checks import check_numbers
from models.config import EncoderConfig, Pairs, Pooling, present
from models.data.buckets import check_buckets
from models.encrypted.settings import EncryptionSettings
from models.sites.sites import Range
from models.train.step import (
    StepOptions,
)

__all__ = ["FineTune"]

_MOST_EPOCHS = 100_000


@dataclasses.dataclass(frozen=True)
class FineTune:
    """One fine-tuning.

    method: "full" trains every parameter with AdamW; "lora" trains adapters of `rank` on the
    projections `adapted`, pooler and head with AdamW-HE, whose `epsilon` stands inside the root and
    whose `multiplier` brings (v + epsilon) into the polynomial root's domain [0.0005, 1] (None:
    0.0005 / epsilon, which admits the largest gradients). The learning rate rises over `warmup`, a
    share of all steps, and falls by half a cosine to 0. Sequences are cut to the `buckets`
    (tokens). pairs: how sentence pairs are read, as in the configuration; the data must be of the
    same form. pooling: "token" or "mean", as in the configuration, or "model", what the model to
    start from has. encrypted: None in the clear with the exact functions.

    penalty: weight of the range penalty on the canonical `ranges`, each of a site or, under the
    name of a function, of all its sites, from the share `inner` of a half-width on; in the clear
    alone, since under encryption nobody sees a value leave. It rises in a line over the first half
    of the last share `penalty_last` of all steps, before which there is none; 1: all along.

    accumulate, precision: as in `step.StepOptions`; remat: compute what a layer kept a second time
    instead (`step.rematerialised`); all three in the clear alone. save_seconds: time between
    checkpoints within an epoch.
    """

    method: Literal["full", "lora"] = "lora"
    epochs: int = 5
    batch: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.06
    weight_decay: float = 0.01
    epsilon: float = 6e-4
    multiplier: float | None = None
    dropout: float = 0.0
    rank: int = 2
    alpha: float = 1.0
    adapted: tuple[str, ...] = ("query", "key", "value")
    buckets: tuple[int, ...] = (32, 64, 128)
    pairs: Pairs = "cross-encoder"
    pooling: Pooling | Literal["model"] = "model"
    seed: int = 0
    penalty: float = 0.0
    penalty_last: float = 1.0
    ranges: tuple[tuple[str, Range], ...] = ()
    inner: float = 0.9
    accumulate: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    save_seconds: float = 180.0
    encrypted: EncryptionSettings | None = None

    def __post_init__(self) -> None:
        for name in ("adapted", "buckets"):  # lists too, but settings have a hash
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "pairs", present("pairs", self.pairs))
        if self.method not in ("full", "lora"):
            raise ArgumentError(f"method is 'full' or 'lora', not {self.method!r}")
        if self.encrypted is not None and self.method != "lora":
            raise ArgumentError(
                "under encryption only adapters and head are trained: use method='lora'"
            )
        if self.encrypted is not None and self.dropout:
            raise ArgumentError("there is no dropout in an encrypted step: set dropout to 0")
        if self.encrypted is not None and self.penalty:
            raise ArgumentError("there is no range penalty in an encrypted step: set penalty to 0")
        options = self.options  # knows what a step can do
        if self.encrypted is not None and (options != StepOptions(donate=True) or self.remat):
            raise ArgumentError(
                "an encrypted step is one whole of float32 numbers: accumulate=1, precision="
                "'float32', and no remat"
            )
        if self.batch % self.accumulate:
            raise ArgumentError(
                f"batch={self.batch} is no multiple of accumulate={self.accumulate}"
            )
        if self.penalty and not self.ranges:
            raise ArgumentError("the range penalty needs the ranges of sites")
        if self.method == "lora" and self.rank < 1:
            raise ArgumentError(f"LoRA's rank is at least 1, got {self.rank}")
        if self.method == "lora" and not self.adapted:
            raise ArgumentError("LoRA needs at least one projection in adapted")
        own = "token" if self.pooling == "model" else self.pooling
        EncoderConfig(lora_targets=self.adapted, pairs=self.pairs, pooling=own)  # knows the names
        if not 1 <= self.epochs <= _MOST_EPOCHS or self.batch < 1:
            raise ArgumentError(
                f"epochs={self.epochs} must be between 1 and {_MOST_EPOCHS:,}, batch={self.batch} "
                "at least 1"
            )
        if self.multiplier is not None:
            check_numbers(self, positive=("multiplier",))
        check_numbers(
            self,
            positive=("learning_rate", "epsilon", "alpha"),
            at_least_0=("weight_decay", "penalty", "save_seconds"),
            shares=("warmup", "penalty_last"),
            below_1=("dropout", "inner"),
            seeds=("seed",),
        )
        check_buckets(self.buckets)

    @property
    def options(self) -> StepOptions:
        """How a step computes; the state handed to it is overwritten."""
        return StepOptions(self.accumulate, self.precision, donate=True)

    def adapt(self, config: EncoderConfig) -> EncoderConfig:
        """The configuration that is trained, of a pre-trained one. ArgumentError where a setting
        does not fit it.
        """
        return config.replace(
            lora_rank=self.rank if self.method == "lora" else 0,
            lora_alpha=self.alpha,
            lora_targets=self.adapted,
            pairs=self.pairs,
            pooling=config.pooling if self.pooling == "model" else self.pooling,
        )
