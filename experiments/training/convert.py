"""`hesim convert`: somebody's BERT folder becomes one of ours, and what changed is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from models.start.convert import Converted, convert

__all__ = ["convert_and_show"]


def convert_and_show(folder: Path, out: Path, options: dict[str, Any], console: Console) -> None:
    """Convert with the options of `models.start.convert.convert` that are not None; describe it.

    Raises:
      CheckpointError: as `convert`.
    """
    given = {name: value for name, value in options.items() if value is not None}
    console.print(describe(convert(folder, out=out, **given)), markup=False, emoji=False)


def describe(done: Converted) -> str:
    """A few lines: the shape, the swaps, what is fresh and what was left out."""
    config = done.config
    lines = [
        f"{config.layers} layers, hidden {config.hidden}, {config.heads} heads, "
        f"{config.sequence} positions, {config.vocabulary:,} words"
    ]
    lines += [f"{name:<15} {old} -> {new}" for name, (old, new) in done.swapped.items()]
    for label, names in (("starts fresh", done.fresh), ("left out", done.dropped)):
        if names:
            shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if names[6:] else "")
            lines.append(f"{label:<15} {shown}")
    if done.tokenizer is None:
        lines.append(
            "no vocabulary   the folder has neither vocab.txt nor tokenizer.json; put one there, "
            "from where the model was published, and convert again to train on texts"
        )
    if "attention" in done.swapped or "activation" in done.swapped:
        lines.append("its function has changed: distil or fine-tune it before use")
    if config.pooling == "mean":
        lines.append('to fine-tune a sentence encoder on pairs, set pairs = "bi-encoder"')
    lines.append(f"written to      {done.folder}")
    return "\n".join(lines)
