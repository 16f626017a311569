"""The shape of an encoder: widths, attention, activation, positions, adapters, and the presets.

An `EncoderConfig` is plain hashable data, so it may be a static argument of `jax.jit` and is saved
beside a checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

Attention = Literal["gaussian", "softmax"]
Activation = Literal["glu_relu", "glu_gelu", "glu_bilinear", "relu", "gelu"]
Positions = Literal["sinusoidal", "learned", "none"]
WordHeads = Literal["none", "tied", "own"]


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Architecture of a pre-LN encoder with a first-token pooler and a linear head.

    hidden, ffn and pooler are feature counts; `ffn` is the width of the up-projection, which the
    gated activations split into two halves. `classes` is the number of logits, 1 for regression.
    `first_norm=False` leaves out the very first LayerNorm, which the normalised embedding makes
    redundant: the embedding then carries no affine part of its own. LoRA adapters of rank
    `lora_rank` (0: none) sit on the projections in `lora_targets` and are scaled by `lora_alpha /
    lora_rank`. `attention_mean` divides the attention output by the public number of real tokens.
    `lm_head` adds a head that predicts words from each token's state: with the word embedding's
    matrix ("tied") or one of its own.
    """

    layers: int = 2
    hidden: int = 64
    heads: int = 2
    ffn: int = 128
    sequence: int = 32
    vocabulary: int = 8192
    classes: int = 2
    attention: Attention = "gaussian"
    activation: Activation = "glu_relu"
    positions: Positions = "sinusoidal"
    pooler: tuple[int, ...] = (64,)
    first_norm: bool = False
    attention_mean: bool = True
    norm_epsilon: float = 1e-5
    lora_rank: int = 0
    lora_alpha: float = 1.0
    lora_targets: tuple[str, ...] = ("query", "key", "value")
    initial_std: float | None = None
    padding_id: int = 0
    lm_head: WordHeads = "none"

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "ffn", "sequence", "vocabulary", "classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden % self.heads:
            raise ValueError(f"hidden={self.hidden} is not a multiple of heads={self.heads}")
        if self.gated and self.ffn % 2:
            raise ValueError(
                f"activation {self.activation!r} splits ffn={self.ffn} in two halves: make it even"
            )
        if self.attention not in ("gaussian", "softmax"):
            raise ValueError(f"attention is 'gaussian' or 'softmax', not {self.attention!r}")
        if self.activation not in ("glu_relu", "glu_gelu", "glu_bilinear", "relu", "gelu"):
            raise ValueError(f"unknown activation {self.activation!r}")
        if self.positions not in ("sinusoidal", "learned", "none"):
            raise ValueError(
                f"positions is 'sinusoidal', 'learned' or 'none', not {self.positions!r}"
            )
        if self.lm_head not in ("none", "tied", "own"):
            raise ValueError(f"lm_head is 'none', 'tied' or 'own', not {self.lm_head!r}")
        if not self.pooler:
            raise ValueError("the pooler needs at least one width")
        unknown = set(self.lora_targets) - {"query", "key", "value", "output"}
        if unknown:
            raise ValueError(f"no such projection for LoRA: {sorted(unknown)}")

    @property
    def head_dim(self) -> int:
        """Features of one attention head."""
        return self.hidden // self.heads

    @property
    def gated(self) -> bool:
        """Whether the feed-forward network multiplies one half by the activated other half."""
        return self.activation.startswith("glu_")

    @property
    def lora_scale(self) -> float:
        """alpha / rank, the factor of the low-rank update (0 without adapters)."""
        return self.lora_alpha / self.lora_rank if self.lora_rank else 0.0

    @property
    def regression(self) -> bool:
        return self.classes == 1

    def replace(self, **changes: Any) -> EncoderConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> EncoderConfig:
        fields: dict[str, Any] = json.loads(text)
        for name in ("pooler", "lora_targets"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


PRESETS: Mapping[str, EncoderConfig] = {
    "demo": EncoderConfig(),
    "tiny": EncoderConfig(
        hidden=128,
        heads=2,
        ffn=512,
        sequence=64,
        pooler=(32, 128),
        first_norm=True,
        attention_mean=False,
    ),
    "paper": EncoderConfig(
        hidden=768,
        heads=12,
        ffn=3072,
        sequence=128,
        vocabulary=32768,
        pooler=(32, 1024),
        first_norm=True,
        attention_mean=False,
        lora_rank=2,
        lora_alpha=1.0,
        initial_std=0.02,
    ),
}


def preset(name: str, **changes: Any) -> EncoderConfig:
    """The named preset (`demo`, `tiny`, `paper`) with some fields changed; ValueError names the
    presets.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(sorted(PRESETS))}")
    return PRESETS[name].replace(**changes)
