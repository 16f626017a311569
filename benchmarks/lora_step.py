"""A whole LoRA training step of a small model as one traced program."""

from __future__ import annotations

from typing import Any

from benchmarks.training_step import training_step
from hesim.program import Program
from models.config import EncoderConfig

__all__ = ["lora_step"]

SMALLEST = EncoderConfig(
    layers=1,
    hidden=8,
    heads=2,
    ffn=4,
    sequence=8,
    vocabulary=32,
    pooler=(8,),
    lora_rank=1,
    first_norm=True,
)
"""One layer of 8 features with adapters of rank 1, on sentences of 8 tokens."""


def lora_step(
    config: EncoderConfig = SMALLEST, sentences: int = 4
) -> tuple[Program, tuple[Any, ...]]:
    """`training_step` with adapters and a Gaussian kernel: its Program and arguments."""
    made = training_step(config, sentences=sentences)
    return made.program, made.args
