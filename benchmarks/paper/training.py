"""Forward pass, step and optimizer of three ways to fine-tune, encrypted here one after the other.

Each way is three programs: the forward pass; forward pass and gradient in one, as the backward pass
reads what the forward pass computed; the optimizer, given gradients. All are run by one worker.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import he_backend
import hesim
from benchmarks.paper.cases import key_holder
from benchmarks.training_step import Attention, Method, Part, training_step
from hesim.errors import EmptySlotsWarning
from hesim.params import CKKSParams
from models.config import EncoderConfig

__all__ = ["TRAINED", "Measured", "measure", "ratios_of", "training"]

TRAINED = EncoderConfig(
    layers=1,
    hidden=32,
    heads=2,
    ffn=64,
    sequence=16,
    vocabulary=64,
    pooler=(32,),
    lora_rank=2,
    first_norm=True,
)
"""A model that all three ways train in minutes."""

_WAYS: tuple[tuple[str, Method, Attention], ...] = (
    ("full, softmax", "full", "softmax"),
    ("LoRA, softmax", "lora", "softmax"),
    ("LoRA, Gaussian", "lora", "gaussian"),
)

_PARTS: tuple[Part, ...] = ("forward", "gradient", "optimizer")

_BATCH = 16
"""Sentences that share an optimizer's step in the paper."""


@dataclass(frozen=True)
class Measured:
    """Seconds of the parts of one way, for one sentence; `gradient` holds the forward pass."""

    forward: float
    gradient: float
    optimizer: float

    def step(self, sentences: int = 1) -> float:
        """Seconds a sentence where so many share a step of the optimizer."""
        return self.gradient + self.optimizer / sentences


def training(config: EncoderConfig = TRAINED, log_n: int = 14, measured: bool = True) -> None:
    """Print the seconds of each part, and ratios beside the paper's.

    measured: False to print what is predicted, without encryption.
    """
    ring = key_holder(log_n)
    print(
        f"{config.layers} x {config.hidden} x {config.heads}, {config.sequence} tokens, rank "
        f"{config.lora_rank}; {ring}; {'measured' if measured else 'predicted'}"
    )
    found = {}
    for name, method, attention in _WAYS:
        parts = [measure(config, ring, method, attention, part, measured) for part in _PARTS]
        found[name] = Measured(*parts)
    for name, theirs in ratios_of(found["full, softmax"], found["LoRA, Gaussian"]).items():
        print(f"  {name:36}{theirs[0]:8.2f}, the paper {theirs[1]:.2f}")


def ratios_of(dear: Measured, cheap: Measured) -> dict[str, tuple[float, float]]:
    """Ratios of seconds of two ways, and the paper's of full with softmax over LoRA with the
    Gaussian kernel (Table 2).
    """
    full, lora = Measured(61.84, 170.72, 252.83), Measured(26.5, 50.72, 10.31)
    shared = f"a step, {_BATCH} sentences"
    return {
        "forward": (dear.forward / cheap.forward, full.forward / lora.forward),
        "forward and gradient": (dear.gradient / cheap.gradient, full.gradient / lora.gradient),
        "optimizer": (dear.optimizer / cheap.optimizer, full.optimizer / lora.optimizer),
        "a step, one sentence": (dear.step() / cheap.step(), full.step() / lora.step()),
        shared: (dear.step(_BATCH) / cheap.step(_BATCH), full.step(_BATCH) / lora.step(_BATCH)),
    }


def measure(
    config: EncoderConfig,
    ring: CKKSParams,
    method: Method,
    attention: Attention,
    part: Part,
    encrypted: bool = True,
) -> float:
    """Core-seconds of one part, printed with what is predicted; predicted ones if not encrypted."""
    case = training_step(config, method, attention, 1, part=part)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptySlotsWarning)
        circuit = hesim.compile(case.program, ring)
    ledger = circuit.ledger
    told = (
        f"  {method}, {attention}, {part:9}: predicted {ledger.seconds:7.1f} s, "
        f"{ledger.rotations:,} rotations, {ledger.products:,} products, {ledger.plain_products:,} "
        f"by plaintexts, {ledger.refreshes:,} refreshed"
    )
    if not encrypted:
        print(told, flush=True)
        return ledger.seconds
    report = he_backend.run(case.program, *case.args, circuit=circuit, workers=1, clients=1)
    assert report.core_seconds is not None
    print(f"{told}; measured {report.core_seconds:.1f} core-seconds", flush=True)
    return report.core_seconds
