"""Knobs of one configuration: adapters, kernel, polynomials, penalty, ring, and who refreshes.

A value is a number or a short text, so that a file lists the values of a knob in one line:

    kernel      "squarings-14" (1 + x / 2^14)^(2^14); "minimax-15" one polynomial; "softmax-3"
                softmax by three squarings; "exact" the exponential itself, for reference
    activation  "31" one polynomial of degree 31; "15,15,27" x times a composition, ReLU alone
    inv_sqrt    "31" one polynomial; "127+3" three Newton steps from one of degree 127
    ring        "16/12/42": N = 2^16, 12 levels, a scale of 42 bits
    refresh     "key holder", "bootstrap" (10 s a ciphertext), or the seconds of another bootstrap
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from experiments.errors import ExperimentError
from hesim.params import CKKSParams
from models.config import EncoderConfig
from models.encrypted.settings import EncryptionSettings
from models.sites.sites import FitSettings, Range, function_of, site_names

__all__ = ["KNOBS", "PROJECTIONS", "Knobs", "Ranges"]

Ranges = tuple[tuple[str, Range], ...]
"""By function the canonical range on which its polynomials hold."""

PROJECTIONS: Mapping[str, str] = {"q": "query", "k": "key", "v": "value", "o": "output"}
"""Letters of `Knobs.sites`."""

_SPECIAL_BITS = 60
_MOST_PRIME_BITS = 60
_HEADROOM_BITS = 10
"""Of the first prime beyond the scale's: ten below the special prime make rotations quieter."""

_MOST_SQUARINGS = 30
_MOST_NEWTON = 30
_MOST_DEGREE = 511
"""That `approx` fits."""
_FORMS: Mapping[str, str] = {
    "sites": r"q?k?v?o?",
    "kernel": r"exact|(?:squarings|minimax|softmax)-\d+",
    "activation": r"\d+(?:,\d+)*",
    "inv_sqrt": r"\d+(?:\+\d+)?",
    "ring": r"\d+/\d+/\d+",
    "refresh": r"key holder|bootstrap|\d+(?:\.\d+)?",
}
_EXAMPLES: Mapping[str, str] = {
    "sites": "letters of q, k, v, o in this order, such as qkv",
    "kernel": "squarings-14, minimax-15, softmax-3 or exact",
    "activation": "a degree, such as 31, or those of a composition, such as 15,15,27",
    "inv_sqrt": "a degree, such as 31, or one and Newton steps, such as 127+3",
    "ring": "LOG_N/LEVELS/SCALE_BITS, such as 16/12/42",
    "refresh": "'key holder', 'bootstrap', or seconds",
}


@dataclasses.dataclass(frozen=True)
class Knobs:
    """One configuration. The defaults are the published model's own point (Rho et al. 2025): LoRA
    of rank 2 on queries, keys and values, 14 squarings, ReLU by degrees 15, 15 and 27, 1/sqrt by
    degree 127 and three Newton steps, tanh by degree 63, N = 2^16, bootstraps.

    rank: of the adapters; their scale alpha / rank is the study's. sites: the projections that have
    some. tanh: degree of the pooler's. penalty: weight of the range penalty in training. The others
    as above. Raises ExperimentError for values that no configuration has; whether a ring is secure,
    or polynomials exist, shows when it is built.
    """

    rank: int = 2
    sites: str = "qkv"
    kernel: str = "squarings-14"
    activation: str = "15,15,27"
    inv_sqrt: str = "127+3"
    tanh: int = 63
    penalty: float = 0.0
    ring: str = "16/12/42"
    refresh: str = "bootstrap"

    def __post_init__(self) -> None:
        for name, form in _FORMS.items():
            value = getattr(self, name)
            if not value or not re.fullmatch(form, value):
                raise ExperimentError(f"{name} is {value!r}, but {_EXAMPLES[name]}")
        if self.rank < 1 or self.tanh < 1 or not 0 <= self.penalty < math.inf:
            raise ExperimentError(
                f"rank={self.rank} and tanh={self.tanh} are at least 1, penalty={self.penalty} is "
                "at least 0 and finite"
            )
        if self.kernel.startswith("squarings") and not 1 <= self.steps <= _MOST_SQUARINGS:
            raise ExperimentError(f"{self.kernel}: from 1 to {_MOST_SQUARINGS} squarings")
        seed, _, newton = self.inv_sqrt.partition("+")
        degrees = [*map(int, self.activation.split(",")), int(seed), self.tanh]
        if max(degrees) > _MOST_DEGREE or int(newton or 0) > _MOST_NEWTON:
            raise ExperimentError(
                f"activation={self.activation!r}, inv_sqrt={self.inv_sqrt!r}, tanh={self.tanh}: "
                f"degrees are {_MOST_DEGREE} at most, Newton steps {_MOST_NEWTON}"
            )

    @property
    def kind(self) -> str:
        """Of the kernel: "exact", "squarings", "minimax" or "softmax"."""
        return self.kernel.partition("-")[0]

    @property
    def steps(self) -> int:
        """Its squarings or its degree; 0 for the exact kernel."""
        return int(self.kernel.partition("-")[2] or 0)

    @property
    def attention(self) -> Literal["gaussian", "softmax"]:
        """Of the model in the clear."""
        return "softmax" if self.kind == "softmax" else "gaussian"

    @property
    def adapted(self) -> tuple[str, ...]:
        """Names of the projections with adapters."""
        return tuple(PROJECTIONS[letter] for letter in self.sites)

    @property
    def price(self) -> float | str | None:
        """Of a refresh, as `hesim.compile` takes it."""
        if self.refresh == "key holder":
            return None
        return self.refresh if self.refresh == "bootstrap" else float(self.refresh)

    @property
    def interactive(self) -> bool:
        """Whether the key holder refreshes."""
        return self.refresh == "key holder"

    def ckks(self) -> CKKSParams:
        """The ring. ParameterError or SecurityError where there is none such, or none secure."""
        log_n, levels, scale = map(int, self.ring.split("/"))
        first = min(_MOST_PRIME_BITS, scale + _HEADROOM_BITS)
        return CKKSParams(log_n, levels, scale, first, _SPECIAL_BITS)

    def fit(self, ranges: Ranges, margin: float = 0.0) -> FitSettings:
        """The polynomials. margin: beyond the ranges met at sites whose functions `ranges` has not,
        which are softmax's.
        """
        known = dict(ranges)
        degrees: dict[str, int] = {"tanh": self.tanh, "softmax_exp": 15, "softmax_inv": 63}
        composites: dict[str, tuple[tuple[str, Any], ...]] = {}
        if self.kind == "minimax":
            degrees["exp"] = self.steps
        elif self.kind == "squarings":
            composites["exp"] = (("squarings", self.steps), ("degree", 1))
            known["exp"] = (-(2.0 ** (self.steps + 1)), 0.0)  # where |1 + x / 2^k| is at most 1
        for name in ("relu", "gelu", "gelu_tanh", "silu"):
            degrees[name] = int(self.activation.split(",")[-1])
        if "," in self.activation:
            each = tuple(map(int, self.activation.split(",")))
            composites["relu"] = (("degrees", each),)
        seed, _, newton = self.inv_sqrt.partition("+")
        degrees["inv_sqrt"] = int(seed)
        if newton:
            composites["inv_sqrt"] = (("degree", int(seed)), ("steps", int(newton)))
        return FitSettings(
            degrees=tuple(sorted(degrees.items())),
            composites=tuple(sorted(composites.items())),
            ranges=tuple(sorted(known.items())),
            margin=margin,
        )

    def encryption(self, ranges: Ranges, profile: str) -> EncryptionSettings:
        """Ring and polynomials as the evaluators take them."""
        how = EncryptionSettings(ckks=self.ckks(), profile=profile, fit=self.fit(ranges))
        if self.kind == "softmax":
            how = dataclasses.replace(how, softmax_squarings=self.steps)
        return how

    def approximated(self, config: EncoderConfig) -> tuple[str, ...]:
        """The sites with a polynomial; of the exact kernel all but that. ExperimentError where the
        model's activation is none that the knobs can compose.
        """
        if "," in self.activation and config.function not in ("relu", "bilinear"):
            raise ExperimentError(
                f"activation {self.activation!r} composes ReLU, and this model has "
                f"{config.function}: give one degree"
            )
        names = site_names(config)
        return tuple(n for n in names if self.kind != "exact" or function_of(n) != "exp")

    def digest(self) -> str:
        """Eight hexadecimal digits that name the configuration in a folder."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def label(self, reference: Knobs) -> str:
        """What sets it apart: its knobs that are not the reference's."""
        own = [name for name in KNOBS if getattr(self, name) != getattr(reference, name)]
        return ", ".join(_said(name, getattr(self, name)) for name in own) or "reference"


KNOBS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(Knobs))


def _said(name: str, value: Any) -> str:
    if name in ("kernel", "ring"):
        return str(value)
    if name == "refresh":
        return f"{value} s" if value[0].isdigit() else value
    return f"{name} {value}" if isinstance(value, str) else f"{name} {value:g}"
