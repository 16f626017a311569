"""The shape of a transformer: widths, attention, activation, positions, norms, heads, adapters, and
the presets.

An `EncoderConfig` is plain hashable data, so it may be a static argument of `jax.jit` and is saved
beside a checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

from hesim.errors import ArgumentError
from models.checks import check_numbers

Attention = Literal[
    "gaussian", "softmax", "gaussian_normalised", "power_softmax", "squared_softmax"
]
Activation = Literal[
    "glu_relu",
    "glu_gelu",
    "glu_gelu_tanh",
    "glu_silu",
    "glu_bilinear",
    "relu",
    "gelu",
    "gelu_tanh",
    "silu",
]
Positions = Literal["sinusoidal", "learned", "none"]
NormOrder = Literal["pre", "post"]
WordHeads = Literal["none", "tied", "own"]
Pooling = Literal["token", "mean"]
Pairs = Literal["cross-encoder", "bi-encoder"]

FORMER: Mapping[str, Mapping[str, str]] = {
    "pairs": {"joint": "cross-encoder", "apart": "bi-encoder"},
}
"""By setting, what its values were called in files of earlier versions; they are still read."""

_PROJECTIONS = ("query", "key", "value", "output")
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "attention": get_args(Attention),
    "activation": get_args(Activation),
    "positions": get_args(Positions),
    "norm_order": get_args(NormOrder),
    "lm_head": get_args(WordHeads),
    "pooling": get_args(Pooling),
    "pairs": get_args(Pairs),
}


def present(setting: str, value: Any) -> Any:
    """A value of a setting by the name that it has now."""
    return FORMER[setting].get(value, value)


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Architecture of a transformer of self-attention blocks with a pooler and a linear head.

    Plain hashable data, so it may be a static argument of `jax.jit`.

    Attributes:
      layers: blocks.
      hidden: features of a token.
      heads: of attention; they divide `hidden`.
      ffn: features of the up-projection, which gated activations split into two halves.
      sequence: tokens of a row, at most.
      vocabulary: tokens that there are.
      classes: logits, 1 for regression.
      attention: "gaussian" or "softmax"; for comparison "gaussian_normalised", the Gaussian kernel
        with rows divided by their sum, and "power_softmax", scores to the even power
        `attention_power` divided by their sum. "squared_softmax" is softmax as encryption can run
        it, without a maximum: the same numbers from the same parameters by `softmax_squarings`
        squarings.
      activation: of the feed-forward network: relu, gelu, gelu_tanh or silu, gated with `glu_`
        before it, or glu_bilinear.
      positions: "sinusoidal", "learned" or "none".
      pooler: features of its layers.
      first_norm: False leaves out the very first LayerNorm of a pre-LN model, which the normalised
        embedding makes redundant: the embedding then carries no affine part of its own.
      attention_mean: divide the Gaussian kernel's output by the public number of visible tokens.
      norm_epsilon: added to variances.
      lora_rank: of adapters; 0: none.
      lora_alpha: adapters are scaled by lora_alpha / lora_rank.
      lora_targets: projections with adapters: query, key, value, output.
      initial_std: of fresh matrices; None: by their width.
      padding_id: of padding.
      lm_head: of words from each token's state: "none", "tied" to the embedding's matrix, or
        "own".
      norm_order: "pre" normalises what a sub-layer reads, and once after the last block; "post"
        normalises the sum after each sub-layer, as BERT does.
      biases: of all linear layers.
      token_types: rows of the token-type table; 0: none.
      causal: a token attends to itself and those before it only (a decoder), and the token that is
        pooled is the last real one.
      attention_power: of power-softmax, even.
      softmax_squarings: k of squared_softmax: the softmax of scores over 2^k, which are small, is
        squared and normalised k times.
      pooling: what the pooler reads: one "token", the first, which spares the last layer all
        others' queries and feed-forward network, or the "mean" of all real ones.
      pairs: how two sentences are read: by a "cross-encoder", as one row, or by a "bi-encoder",
        each by itself, whose pooled states u and v the pooler gets as u v and (u - v)^2 (Reimers &
        Gurevych 2019, with squares in place of absolute values). Tokens of such a model are
        (batch, 2, tokens). Files say "joint" and "apart" too, as earlier versions did.

    Raises:
      ArgumentError: a number or a name that no model can have.

    Examples:
      >>> from models import EncoderConfig
      >>> EncoderConfig(hidden=96, heads=3).replace(classes=3).classes
      3
      >>> EncoderConfig(hidden=64, heads=3)
      Traceback (most recent call last):
          ...
      hesim.errors.ArgumentError: hidden=64 is not a multiple of heads=3
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
    norm_order: NormOrder = "pre"
    biases: bool = False
    token_types: int = 0
    causal: bool = False
    attention_power: int = 4
    softmax_squarings: int = 3
    pooling: Pooling = "token"
    pairs: Pairs = "cross-encoder"

    def __post_init__(self) -> None:
        for name in ("pooler", "lora_targets"):  # lists too, but a configuration has a hash
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "pairs", present("pairs", self.pairs))
        for field in dataclasses.fields(self):
            if field.type == "int" and not hasattr(getattr(self, field.name), "__index__"):
                raise ArgumentError(
                    f"{field.name} is a whole number, got {getattr(self, field.name)!r}"
                )
        for name in ("layers", "hidden", "heads", "ffn", "sequence", "vocabulary", "classes"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ArgumentError(
                    f"unknown {name} {getattr(self, name)!r}: it is one of {', '.join(known)}"
                )
        if self.hidden % self.heads:
            raise ArgumentError(f"hidden={self.hidden} is not a multiple of heads={self.heads}")
        if self.gated and self.ffn % 2:
            raise ArgumentError(
                f"activation {self.activation!r} splits ffn={self.ffn} in two halves: make it even"
            )
        if self.attention_power < 2 or self.attention_power % 2:
            raise ArgumentError(
                f"attention_power={self.attention_power} must be even and positive: an odd power "
                "would weigh tokens negatively"
            )
        if not 0 <= self.softmax_squarings <= 8:
            raise ArgumentError(f"softmax_squarings={self.softmax_squarings} is from 0 to 8")
        std = () if self.initial_std is None else ("initial_std",)
        check_numbers(self, positive=("norm_epsilon",), at_least_0=("lora_alpha", *std))
        if self.lora_rank < 0 or self.token_types < 0:
            raise ArgumentError("lora_rank and token_types are at least 0")
        if self.lora_rank > self.hidden:
            raise ArgumentError(
                f"lora_rank={self.lora_rank} is more than hidden={self.hidden}, the rank of the "
                "matrices themselves: take a smaller one"
            )
        if not self.pooler or min(self.pooler) < 1:
            raise ArgumentError("the pooler needs at least one width, each at least 1")
        unknown = set(self.lora_targets) - set(_PROJECTIONS)
        if unknown:
            raise ArgumentError(
                f"no such projection for LoRA: {sorted(unknown)}; there are "
                f"{', '.join(_PROJECTIONS)}"
            )

    @property
    def head_dim(self) -> int:
        """Features of one attention head."""
        return self.hidden // self.heads

    @property
    def gated(self) -> bool:
        """Whether the feed-forward network multiplies one half by the activated other half."""
        return self.activation.startswith("glu_")

    @property
    def function(self) -> str:
        """The activation's function without its gate: relu, gelu, ... or bilinear (none)."""
        return self.activation.removeprefix("glu_")

    @property
    def post_norm(self) -> bool:
        return self.norm_order == "post"

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
        """The configuration that `to_json` wrote; ArgumentError names fields it does not know."""
        fields: dict[str, Any] = json.loads(text)
        if not isinstance(fields, dict):
            raise ArgumentError("a configuration is a JSON object")
        unknown = sorted(fields.keys() - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ArgumentError(f"no such fields in a configuration: {', '.join(unknown)}")
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
    "bert": EncoderConfig(
        layers=12,
        hidden=768,
        heads=12,
        ffn=3072,
        sequence=512,
        vocabulary=30522,
        attention="softmax",
        activation="gelu",
        positions="learned",
        pooler=(768,),
        attention_mean=False,
        norm_epsilon=1e-12,
        initial_std=0.02,
        norm_order="post",
        biases=True,
        token_types=2,
    ),
}
"""Configurations by name: "demo", "tiny", "paper" (two layers of the published model) and "bert".

Examples:
  >>> from models import PRESETS
  >>> {name: config.hidden for name, config in PRESETS.items()}
  {'demo': 64, 'tiny': 128, 'paper': 768, 'bert': 768}
"""


def preset(name: str, **changes: Any) -> EncoderConfig:
    """The named preset with some fields changed.

    Args:
      name: "demo", "tiny", "paper" or "bert".
      changes: fields of `EncoderConfig`.

    Raises:
      ArgumentError: an unknown name, the message lists the presets; or a field that no model can
        have.

    Examples:
      >>> from models import preset
      >>> preset("tiny", classes=3).hidden
      128
      >>> preset("huge")
      Traceback (most recent call last):
          ...
      hesim.errors.ArgumentError: ...
    """
    if name not in PRESETS:
        raise ArgumentError(f"no preset {name!r}; there are {', '.join(sorted(PRESETS))}")
    return PRESETS[name].replace(**changes)
