"""Forward pass, gradient and optimizer of three ways to fine-tune, encrypted here one after the
other: `python -m benchmarks.paper training --hidden 64`.

Each way is three programs: the forward pass; forward pass and gradient in one, as the backward pass
reads what the forward pass computed; the optimizer, given gradients. All are run by one worker.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import he_backend
import hesim
from benchmarks.paper.cases import key_holder
from benchmarks.paper.memory import FamilyPeak
from benchmarks.training_step import Attention, Method, Part, training_step
from hesim.errors import EmptySlotsWarning
from hesim.params import CKKSParams
from models.config import EncoderConfig

__all__ = ["HOURS", "PUBLISHED", "TRAINED", "WAYS", "Measured", "measure", "ratios_of", "training"]

_SMALLEST = EncoderConfig(
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

TRAINED: Mapping[int, EncoderConfig] = {
    32: _SMALLEST,
    64: _SMALLEST.replace(hidden=64, ffn=128, sequence=64),
    128: _SMALLEST.replace(hidden=128, ffn=256, sequence=32),
}
"""Models that all three ways train here, by hidden size. (Full, softmax) needs most."""

WAYS: Mapping[str, tuple[Method, Attention]] = {
    "full, softmax": ("full", "softmax"),
    "LoRA, softmax": ("lora", "softmax"),
    "LoRA, Gaussian": ("lora", "gaussian"),
}

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


PUBLISHED: Mapping[str, Measured] = {
    "full, softmax": Measured(61.84, 170.72, 252.83),
    "LoRA, softmax": Measured(42.44, 66.66, 10.31),
    "LoRA, Gaussian": Measured(26.5, 50.72, 10.31),
}
"""Rho et al. 2025, Table 2: seconds of one sentence on one GPU."""

HOURS = {"full, softmax": 19.5, "LoRA, Gaussian": 4.8}
"""Table 3: of an epoch of RTE on eight GPUs, where the optimizer goes once for 16 sentences."""


def training(hidden: int = 32, log_n: int = 14, most: float = 2.5) -> None:
    """Print the seconds of each part, and ratios beside the paper's.

    hidden: of `TRAINED`. most: GB of a process that evaluates; a part that needs more, of 0 every
    one, is predicted alone, and counts so in the ratios.
    """
    config, ring = TRAINED[hidden], key_holder(log_n)
    print(
        f"{config.layers} x {config.hidden} x {config.heads}, {config.sequence} tokens, rank "
        f"{config.lora_rank}; {ring}"
    )
    found = {}
    for name, (method, attention) in WAYS.items():
        parts = [measure(config, ring, method, attention, part, most) for part in _PARTS]
        found[name] = Measured(*parts)
    print(f"  core-seconds of one sentence{'forward':>12}{'gradient':>10}{'optimizer':>11}")
    for name, own in found.items():
        print(f"  {name:28}{own.forward:12.1f}{own.gradient:10.1f}{own.optimizer:11.1f}")
    cheap = "LoRA, Gaussian"
    for dear in ("full, softmax", "LoRA, softmax"):
        print(f"  {dear} over {cheap}{'here':>12}{'the paper':>12}")
        for what, (ours, theirs) in ratios_of(found, dear, cheap).items():
            print(f"    {what:38}{ours:8.2f}{theirs:12.2f}")
    hours = HOURS["full, softmax"] / HOURS[cheap]
    print(f"  an epoch of RTE on eight GPUs (Table 3), full, softmax over {cheap}: {hours:.2f}")


def ratios_of(
    found: Mapping[str, Measured], dear: str, cheap: str
) -> dict[str, tuple[float, float]]:
    """Ratios of seconds of two ways, here and in the paper's Table 2. A step counts the optimizer's
    once a sentence, as that table does, and once a batch, as training does.
    """
    ours, theirs = (
        {
            "forward": rows[dear].forward / rows[cheap].forward,
            "forward and gradient": rows[dear].gradient / rows[cheap].gradient,
            "optimizer": rows[dear].optimizer / rows[cheap].optimizer,
            "a step, one sentence": rows[dear].step() / rows[cheap].step(),
            f"a step, {_BATCH} sentences": rows[dear].step(_BATCH) / rows[cheap].step(_BATCH),
        }
        for rows in (found, PUBLISHED)
    )
    return {what: (ratio, theirs[what]) for what, ratio in ours.items()}


def measure(
    config: EncoderConfig,
    ring: CKKSParams,
    method: Method,
    attention: Attention,
    part: Part,
    most: float,
) -> float:
    """Core-seconds of one part, printed with what is predicted; predicted ones if it needs more
    than `most` GB.
    """
    case = training_step(
        config, method, attention, part=part, stacked=_shares(config, method, ring)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptySlotsWarning)
        circuit = hesim.compile(case.program, ring)
    ledger = circuit.ledger
    told = (
        f"  {method}, {attention}, {part:9}: predicted {ledger.seconds:7.1f} s, "
        f"{ledger.peak_bytes / 1e9:.1f} GB, {ledger.rotations:,} rotations, {ledger.products:,} "
        f"products, {ledger.plain_products:,} by plaintexts, {ledger.refreshes:,} refreshed"
    )
    if ledger.peak_bytes > most * 1e9:
        print(f"{told}; not run", flush=True)
        return ledger.seconds
    with FamilyPeak() as memory:
        report = he_backend.run(case.program, *case.args, circuit=circuit, workers=1, clients=1)
    seconds = report.core_seconds
    assert seconds is not None
    peak = memory.peak / 1e9
    print(f"{told}; measured {seconds:.1f} core-seconds, {peak:.1f} GB in all", flush=True)
    return seconds


def _shares(config: EncoderConfig, method: Method, ring: CKKSParams) -> bool:
    """Whether two of the matrices that are trained fit into one ciphertext."""
    return method == "lora" or 2 * config.hidden**2 < ring.slots
