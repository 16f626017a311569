"""What a trade-off study is, and the TOML file that says it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.errors import ExperimentError
from experiments.studies.tradeoff.designs import Space
from experiments.studies.tradeoff.knobs import KNOBS, Knobs, Ranges
from experiments.training.finetune_settings import TaskSettings, read_table
from experiments.training.options import Option, options_of, read_options, template
from experiments.training.twin import default_ranges
from hesim.errors import ParameterError
from hesim.noise.profiles import profile as known_profile
from models.checks import check_range
from models.data.datasets import task_spec
from models.recipes.finetune_settings import FineTune

__all__ = ["REVIEWS", "TradeoffStudy", "knobs_template", "read_study"]

REVIEWS = TaskSettings(epochs=3, lora_rate=1e-3, pooling="mean")
"""How the movie reviews are fine-tuned on, which are no task of GLUE's table."""

_MOST_SEEDS = 1000

_FUNCTIONS = ("exp", "inv_sqrt", "relu", "gelu", "gelu_tanh", "silu", "tanh")


def _ranges() -> Ranges:
    """Wide enough for the shipped models, trained with LoRA; of other functions unused."""
    found = default_ranges() | {"tanh": (-14.0, 14.0)}
    return tuple((name, found[name]) for name in _FUNCTIONS)


@dataclasses.dataclass(frozen=True)
class TradeoffStudy:
    """What is studied.

    tasks: names as `load` takes them, "glue/RTE" or "reviews". seeds: fine-tunings of each, paired.
    gaussian, softmax: pre-trained models, by name or folder. length: tokens of a row. many:
    sentences of the second layout, side by side in the slots. train_rows: to fine-tune on, at most,
    0 for all; held_out: to score on, likewise. epochs, rate: of the fine-tuning; 0: as GLUE's table
    has them. scale: alpha / rank of the adapters. inner: share of a half-width from which a range
    penalty acts. ranges: by function, on which all polynomials hold, whatever is met: so they are
    the same for all seeds and tasks, as those of a server that has seen no data. margin: how far
    beyond what the pre-trained model meets on training rows softmax's own hold, whose sums depend
    on lengths. profile: whose noise is simulated, of `hesim.noise.profiles`. table: a row of
    settings a task, `REVIEWS` for those without. Raises ExperimentError for what is no study.
    """

    space: Space = Space()
    tasks: tuple[str, ...] = ("reviews",)
    seeds: int = 3
    data_dir: str = ""
    gaussian: str = "tiny-gaussian"
    softmax: str = "tiny-softmax"
    length: int = 64
    many: int = 64
    train_rows: int = 4000
    held_out: int = 0
    epochs: int = 0
    rate: float = 0.0
    scale: float = 8.0
    inner: float = 0.9
    margin: float = 0.5
    profile: str = "seal"
    ranges: Ranges = dataclasses.field(default_factory=_ranges)
    table: tuple[tuple[str, TaskSettings], ...] = ()

    def __post_init__(self) -> None:
        if not self.tasks or self.seeds < 1 or self.many < 1 or self.length < 5:
            raise ExperimentError(
                f"tasks={list(self.tasks)} names one at least; seeds={self.seeds} and "
                f"many={self.many} are at least 1, length={self.length} at least 5"
            )
        if self.seeds > _MOST_SEEDS:
            raise ExperimentError(f"seeds={self.seeds} are {_MOST_SEEDS:,} at most")
        if min(self.train_rows, self.held_out, self.epochs) < 0 or not 0 <= self.rate < math.inf:
            raise ExperimentError(
                f"train_rows={self.train_rows}, held_out={self.held_out}, epochs={self.epochs} and "
                f"rate={self.rate} are at least 0, and finite"
            )
        if not 0 < self.scale < math.inf or not 0 <= self.inner < 1 or not 0 <= self.margin < 1e3:
            raise ExperimentError(
                f"scale={self.scale} is positive and finite, inner={self.inner} from 0 to below 1, "
                f"margin={self.margin} from 0 to below 1000"
            )
        for name, bounds in self.ranges:
            try:
                check_range(name, bounds)
            except ValueError as error:
                raise ExperimentError(f"ranges: {error}") from error
        try:
            known_profile(self.profile)
        except ParameterError as error:
            raise ExperimentError(f"profile: {error}") from error

    def row(self, task: str) -> TaskSettings:
        """Rates and shape of a task."""
        return dict(self.table).get(task, REVIEWS)

    def start(self, knobs: Knobs) -> str:
        """The pre-trained model that a configuration starts from."""
        return self.softmax if knobs.attention == "softmax" else self.gaussian

    def fine_tune(self, task: str, knobs: Knobs, seed: int) -> FineTune:
        """The fine-tuning of a configuration, in the clear with the exact functions. Those that
        share their adapters, penalty and attention share it.
        """
        changes: dict[str, Any] = {
            "rank": knobs.rank,
            "alpha": self.scale * knobs.rank,
            "adapted": knobs.adapted,
            "buckets": (self.length,),
            "seed": seed,
            "penalty": knobs.penalty,
            "ranges": self.ranges if knobs.penalty else (),
            "inner": self.inner,
        }
        if self.epochs:
            changes["epochs"] = self.epochs
        if self.rate:
            changes["learning_rate"] = self.rate
        return self.row(task).fine_tune("lora", **changes)

    def lasting(self) -> TradeoffStudy:
        """Without what may change from one call to the next in one folder: where the data are, how
        many seeds and which tasks and configurations are asked for.
        """
        return dataclasses.replace(self, space=Space(), tasks=("any",), seeds=1, data_dir="")


_VALUES: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "rank": ((2, 8), "Rank of the LoRA adapters."),
    "sites": (("qkv",), "Projections with adapters: letters of q, k, v and o."),
    "kernel": (
        ("squarings-14", "squarings-8", "minimax-15", "softmax-3"),
        "Attention: squarings-K for exp as (1 + x / 2^K)^(2^K), minimax-D for one polynomial, "
        "softmax-K for softmax by K squarings, exact for exp itself, scored without noise.",
    ),
    "activation": (
        ("15,15,27", "15"),
        "The feed-forward network's function: a degree, or of ReLU those of a composition.",
    ),
    "inv_sqrt": (
        ("127+3", "15"),
        "LayerNorm's 1/sqrt: a degree, or DEGREE+STEPS for Newton steps from it.",
    ),
    "tanh": ((63,), "Degree of the pooler's tanh."),
    "penalty": ((0.0,), "Weight of the range penalty in fine-tuning."),
    "ring": (
        ("14/4/40", "16/12/42"),
        "LOG_N/LEVELS/SCALE_BITS: ring, levels of a fresh ciphertext, bits of the scale.",
    ),
    "refresh": (
        ("key holder", "bootstrap"),
        "Who refreshes: the key holder, a bootstrap of 10 s, or one of so many seconds.",
    ),
}

_STUDY: Mapping[str, str] = {
    "seeds": "Fine-tunings of each configuration, paired.",
    "gaussian": "The pre-trained model with the Gaussian kernel, by name or folder.",
    "softmax": "The one with softmax.",
    "length": "Tokens of a row.",
    "many": "Sentences side by side in the slots, for the second cost.",
    "train_rows": "Rows to fine-tune on, at most; 0: all.",
    "held_out": "Held-out rows to score on, at most; 0: all.",
    "epochs": "Passes over the rows; 0: as GLUE's table has them.",
    "rate": "Highest learning rate; 0: as GLUE's table has it.",
    "scale": "alpha / rank of the adapters.",
    "inner": "Share of a domain's half-width from which the range penalty acts.",
    "margin": "How far beyond what the pre-trained model meets the polynomials of softmax hold.",
    "profile": "Whose noise is simulated: a profile of hesim.noise.profiles.",
}

_SPACE: Mapping[str, str] = {
    "paired": 'Knobs whose values go together by their place, such as ["ring", "refresh"].',
    "design": "factorial: every combination; random: some; halving: successive halving of these.",
    "keep": "Of successive halving: 1 in so many goes on to the next rung.",
    "rungs": "Its rounds, each with keep times the rows of the one before; all seeds in the last.",
    "seed": "Of what is drawn.",
}

_TITLE = (
    "A trade-off study: hesim study tradeoff --knobs FILE --task ... The values of [knobs] are "
    "combined; a knob that is left out stays as in [reference], a configuration that is always "
    "among those tried, by default the published model's own. The values of [singly] are tried one "
    "at a time, with all else as in the reference."
)


def _options() -> tuple[Option, ...]:
    study, reference = TradeoffStudy(), Knobs()
    example = dict(study.ranges)
    return (
        *options_of(study, "study", _STUDY),
        Option(
            "study",
            "configurations",
            study.space.count,
            "How many are drawn, of random and halving.",
        ),
        *options_of(study.space, "study", _SPACE),
        *(
            Option("knobs", name, values, doc, optional=True)
            for name, (values, doc) in _VALUES.items()
        ),
        *(
            Option("singly", name, values, f"Of {name}, one at a time.", optional=True)
            for name, (values, _) in _VALUES.items()
        ),
        *(
            Option("reference", name, getattr(reference, name), f"The reference's {name}.")
            for name in KNOBS
        ),
        *(
            Option("ranges", name, example[name], f"Where the polynomials for {name} hold.")
            for name in example
        ),
    )


def knobs_template() -> str:
    """A file with every option at its default, each explained."""
    return template(_options(), _TITLE)


def read_study(
    path: str | Path | None, tasks: Sequence[str], data_dir: str | Path | None
) -> TradeoffStudy:
    """The study of a knobs file, without one of the reference alone, on these tasks: GLUE's names,
    or "reviews". ExperimentError names what is wrong.
    """
    values = read_options(path, _options())
    said = values["study"]
    own = {name: said[name] for name in _STUDY}
    rules = {name: said[name] for name in _SPACE}
    specs = tuple(dict.fromkeys(task_spec(task.strip()) for task in tasks))
    table, _ = read_table()
    try:
        space = Space(
            reference=Knobs(**values["reference"]),
            knobs=_given(values["knobs"]),
            singly=_given(values["singly"]),
            count=said["configurations"],
            **rules,
        )
        return TradeoffStudy(
            space=space,
            tasks=specs,
            data_dir="" if data_dir is None else str(data_dir),
            ranges=tuple((name, tuple(each)) for name, each in values["ranges"].items()),
            table=tuple((f"glue/{name}", row) for name, row in table.items()),
            **own,
        )
    except ExperimentError as error:
        raise ExperimentError(f"{path or 'the knobs'}: {error}") from error


def _given(values: Mapping[str, Sequence[Any]]) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    return tuple((name, tuple(each)) for name, each in values.items())
