"""What a validation does: which model on which rows, under which ring, and how many at a time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal, get_args

from experiments.validation.identity import code_digest
from experiments.validation.subject import Answer
from he_backend.machines.table import DEFAULT_MACHINE
from hesim.circuit.refresher import Refresher
from hesim.errors import ArgumentError
from models.encrypted.settings import EncryptionSettings

__all__ = ["Compared", "Layout", "Resolved", "Validation", "digest_of_folder"]

Layout = Literal["throughput", "latency"]
"""As many rows side by side as fill the slots of a ciphertext with their tokens, or one at a time
(of cosine similarities, one pair)."""

Compared = Literal["none", "first", "all"]
"""Batches that are compared operation by operation."""


@dataclasses.dataclass(frozen=True)
class Validation:
    """One validation.

    Attributes:
      model: as `find_subject` takes it.
      data: a data set; None: that of the model's training.
      data_dir: GLUE's folder; None: where the training read it.
      sentences: held-out rows that are encrypted (of cosine similarities sentences, two a pair); 0:
        all; None: 256, or all if there are fewer.
      batch: rows side by side; None: what the layout says.
      layout: many rows at a time ("throughput"), or one ("latency").
      length: tokens of a row; None: as few as hold the chosen rows, at most those of the training.
      answer: "logits", or "cosine" of embedded pairs; None: what the model is good for.
      config: TOML file with the sections `encrypted` and `twin`.
      refresh_price, objective, memory: as for `hesim.compile`, seconds and bytes.
      compare: which batches are compared operation by operation, "none", "first" or "all": a
        comparison takes as long as an evaluation, or longer. The answers are compared of all.
      backend: a machine of the table.
      insecure: log2 of a ring degree: the chain of the machine in a small ring, which protects
        nothing.
      key_holder: whether the key holder refreshes though the machine could bootstrap.

    Examples:
      >>> from experiments import Validation
      >>> Validation("runs/rte-lora-gaussian-0", sentences=64).command
      'hesim validate rte-lora-gaussian-0 --sentences 64'
    """

    model: str
    data: str | None = None
    data_dir: str | None = None
    sentences: int | None = None
    batch: int | None = None
    layout: Layout = "throughput"
    length: int | None = None
    answer: Answer | None = None
    config: str | None = None
    refresh_price: float | str | None = None
    objective: str = "seconds"
    memory: float | None = None
    compare: Compared = "first"
    backend: str = DEFAULT_MACHINE
    insecure: int | None = None
    key_holder: bool = False

    def __post_init__(self) -> None:
        if self.sentences is not None and self.sentences < 0:
            raise ArgumentError(f"sentences must be at least 0, got {self.sentences}")
        for name in ("batch", "length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(f"{name} must be at least 1, got {value}")
        if self.layout not in get_args(Layout):
            raise ArgumentError(f"layout={self.layout!r} is one of {', '.join(get_args(Layout))}")
        if self.compare not in get_args(Compared):
            raise ArgumentError(
                f"compare={self.compare!r} is one of {', '.join(get_args(Compared))}"
            )

    def rows_at_a_time(self, tokens: int, slots: int, least: int) -> int:
        """Rows of a batch, at most. tokens: of a row; least: rows that belong together."""
        if self.batch is not None:
            return -(-self.batch // least) * least
        return least if self.layout == "latency" else max(1, slots // (tokens * least)) * least

    @property
    def command(self) -> str:
        """The command that does this, without places of this machine."""
        parts = ["hesim validate", Path(self.model).name]
        for option, value in (
            ("data", self.data),
            ("sentences", self.sentences),
            ("batch", self.batch),
            ("layout", None if self.layout == "throughput" else self.layout),
            ("length", self.length),
            ("answer", self.answer),
            ("config", None if self.config is None else Path(self.config).name),
            ("refresh-price", self.refresh_price),
            ("objective", None if self.objective == "seconds" else self.objective),
            ("compare", None if self.compare == "first" else self.compare),
            ("backend", None if self.backend == DEFAULT_MACHINE else self.backend),
            ("insecure", self.insecure),
        ):
            if value is not None:
                parts.append(f"--{option} {value}")
        return " ".join([*parts, *["--key-holder"] * self.key_holder])

    def default_folder(self, digest: str) -> Path:
        """`runs/validate-<model>-<digest>` under the current folder."""
        text = json.dumps([dataclasses.asdict(self), digest, code_digest()], sort_keys=True)
        short = hashlib.sha256(text.encode()).hexdigest()[:12]
        return Path("runs") / f"validate-{Path(self.model).name}-{short}"


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A validation with everything decided that it left open: what its run folder belongs to.

    how: ring and polynomials. refresher: who refreshes. rows: that are encrypted. length: tokens.
    digest: of the model's files.
    """

    validation: Validation
    data: str
    how: EncryptionSettings
    refresher: Refresher
    answer: Answer
    rows: int
    batch: int
    length: int
    digest: str
    config: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """All of it as JSON data."""
        asked = dataclasses.asdict(self.validation)
        for name in ("model", "data_dir", "config"):
            asked.pop(name)  # places, whose contents are below
        found = {
            "kind": "validation",
            "name": Path(self.validation.model).name,
            "command": self.validation.command,
            "asked": asked,
            "data": self.data,
            "how": dataclasses.asdict(self.how),
            "refresher": _as_json(self.refresher),
            "answer": self.answer,
            "sentences": self.rows,
            "batch": self.batch,
            "length": self.length,
            "digest": self.digest,
            "config": self.config,
            "backend": self.validation.backend,
        }
        return json.loads(json.dumps(found))


def _as_json(refresher: Refresher) -> dict[str, Any]:
    """Its fields, those left out that have no finite number."""
    fields = dataclasses.asdict(refresher)
    return {name: value for name, value in fields.items() if value != math.inf}


def digest_of_folder(path: Path | None) -> str:
    """SHA-256 over names and contents of a model's files, in hexadecimal; "" for None."""
    if path is None:
        return ""
    total = hashlib.sha256()
    for file in sorted(path.glob("*")):
        if file.is_file():
            total.update(file.name.encode() + b"\0")
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()
