"""`hesim pretrain`: pre-training from a TOML file, of an encoder by hidden words or of a decoder by
the next one, with a log and a clean stop.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from experiments.console import Display
from experiments.errors import ExperimentError
from experiments.lock import alone_in
from experiments.training.devices import DEVICES, ONE_DEVICE, Devices, devices_of
from experiments.training.logbook import Logbook
from experiments.training.options import Option, options_of, read_options, template
from experiments.training.signals import until_signalled
from models.checks import check_range
from models.config import PRESETS, EncoderConfig, preset
from models.data.corpus import Corpus
from models.recipes.pretrain import Pretrained, Pretraining, pretrain
from models.sites.sites import function_of, site_names
from models.start.corpus import obstacle
from models.train.checkpoint import Checkpoints
from models.train.loop import Progress
from models.train.schedules import Budget

__all__ = [
    "OPTIONS",
    "Job",
    "objective",
    "read_corpus",
    "read_job",
    "run_pretraining",
    "settings_template",
]

_DEFAULT = Pretraining()


def _choices(settings: type, name: str) -> str:
    """The values that a field of a `Literal` type, or of one or None, may have, listed."""
    kind = get_type_hints(settings)[name]
    parts = (kind,) if get_origin(kind) is Literal else get_args(kind)
    return ", ".join(choice for part in parts for choice in get_args(part))


_CONFIG = {
    "layers": "Blocks, one after the other.",
    "hidden": "Features of a token.",
    "heads": "Attention heads, which share the features; their number divides `hidden`.",
    "ffn": "Width of the feed-forward network's up-projection; a gated activation splits it in two "
    "halves.",
    "attention": f"Attention scores: {_choices(EncoderConfig, 'attention')}. Encryption can "
    "evaluate all but softmax; the Gaussian kernel needs no division.",
    "activation": "Of the feed-forward network: "
    f"{_choices(EncoderConfig, 'activation')}. Those that begin with glu_ multiply one half of the "
    "up-projection by the function of the other half; bilinear is no function at all.",
    "positions": f"How a token's place is told: {_choices(EncoderConfig, 'positions')}.",
    "pooler": "Widths of the layers between the pooled token and the head, which pre-training "
    "leaves as they are.",
    "first_norm": "Whether the first block of a pre-LN model has a LayerNorm of its own.",
    "attention_mean": "Divide the Gaussian kernel's output by the public number of tokens, so that "
    "a sentence's length does not change the size of its states.",
    "norm_epsilon": "What LayerNorms add to a variance.",
    "initial_std": "Standard deviation of a new matrix; without it, that of a matrix with so many "
    "inputs (0.02 in the presets paper and bert).",
    "norm_order": f"Where LayerNorms are: {_choices(EncoderConfig, 'norm_order')}. pre normalises "
    "what a sub-layer reads, and once after the last block; post the sum behind each sub-layer, as "
    "BERT does.",
    "biases": "Whether linear layers add a bias, as BERT's do.",
    "token_types": "Rows of the token-type table, by which a task tells two sentences of a row "
    "apart, 0: none. Plain text is all of type 0.",
    "causal": "A decoder: a token sees itself and those before it only, and pre-training is "
    "next-word prediction, every token guessing the one that follows it. false: an encoder, which "
    "sees the whole row and guesses hidden words (masked language modelling).",
    "attention_power": "Even power of the scores where attention is power_softmax.",
    "softmax_squarings": "How often the softmax of small scores is squared and normalised where "
    "attention is squared_softmax.",
    "pooling": "What the pooler reads once the model has a task: "
    f"{_choices(EncoderConfig, 'pooling')}. token is the first one, of a decoder the last one, and "
    "mean that of all; pre-training reads every token.",
}
"""The fields that a file may change; the others are given by the text or belong to a task."""


def _model_options() -> tuple[Option, ...]:
    """The preset, and each field of its configuration that a file may change."""
    fields = options_of(preset("tiny", initial_std=0.02), "model", _CONFIG)
    return (
        Option("model", "preset", "tiny", f"Architecture to start from: {', '.join(PRESETS)}."),
        *(dataclasses.replace(option, optional=True) for option in fields),
    )


_TEXT = (
    Option("text", "length", 128, "Tokens of a packed row, [CLS] included."),
    Option("text", "vocabulary", 8192, "Tokens of the vocabulary that is learned on the text."),
    Option("text", "held_out", 0.01, "Share of the text's sections that is never trained on."),
)

_TRAINING = (
    Option("training", "steps", _DEFAULT.budget.steps, "Steps of the optimizer."),
    Option(
        "training",
        "seconds",
        _DEFAULT.budget.seconds,
        "End after so many seconds of running if that is earlier than `steps`; the schedule then "
        "follows the clock, and a resumed run does not repeat its bits. 0: no such limit.",
    ),
    *options_of(
        _DEFAULT,
        "training",
        {
            "share": "Share of a row's tokens that are hidden and to be guessed. Of a causal model "
            "nothing is hidden: it guesses every next token, whatever stands here.",
            "batch": "Rows of a step.",
            "rate": "Highest learning rate.",
            "rise": "Share of the budget at which the learning rate is highest.",
            "start": "Learning rate at the first step, as a share of the highest.",
            "floor": "Learning rate at the last step, as a share of the highest.",
            "weight_decay": "Decoupled weight decay of matrices.",
            "clip": "Largest norm of a gradient; longer ones are scaled down to it.",
            "b1": "AdamW: decay of the mean of gradients.",
            "b2": "AdamW: decay of the mean of their squares.",
            "eps": "AdamW: what is added to the root.",
            "dropout": "Share of embedding features set to zero.",
            "seed": "Of weights, order of rows, and hidden words.",
            "chunk": "Guessed words whose logits exist at a time; 0: all of a step.",
            "accumulate": "Parts of a step's rows, one after the other, to save memory.",
            "precision": f"Of forward and backward pass: {_choices(Pretraining, 'precision')}. "
            "Parameters and optimizer stay in float32.",
            "remat": "Compute scores and non-linearities a second time instead of keeping them; on "
            "a CPU this saves nothing.",
            "log_every": "Steps between two lines of the log.",
            "evaluate_every": "Steps between two evaluations on held-out text.",
            "held_out_rows": "Held-out rows that are evaluated, at most.",
            "save_seconds": "Seconds between two checkpoints.",
        },
    ),
    Option(
        "training",
        "initial",
        "corpus",
        f"What the training starts from: {_choices(Pretraining, 'initial')}. corpus: word vectors "
        "from co-occurrences, and heads of the first block that see the neighbours, for which "
        "positions must be sinusoidal; random: neither. Without it corpus where the model can, "
        "else random.",
        optional=True,
    ),
)

_RANGES = {
    "exp": ((-8.0, 0.0), "the Gaussian kernel's exponent"),
    "inv": ((0.05, 2.0), "the mean of a row of scores, by which normalised kernels divide"),
    "inv_sqrt": ((0.5, 8.0), "a LayerNorm's variance"),
    "relu": ((-4.0, 4.0), "ReLU's input"),
    "gelu": ((-4.0, 4.0), "GELU's input"),
    "gelu_tanh": ((-4.0, 4.0), "the input of GELU by tanh"),
    "silu": ((-4.0, 4.0), "SiLU's input"),
    "softmax_exp": ((-3.0, 3.0), "scores of softmax by squarings, over 2^softmax_squarings"),
    "softmax_inv": ((0.02, 16.0), "the sums that softmax by squarings divides by"),
}
"""From function to its range, by default, and what it is of."""

_PENALTY = (
    *options_of(
        _DEFAULT,
        "penalty",
        {
            "penalty": "Weight of the range penalty; 0: none.",
            "penalty_last": "Last share of the budget in which the penalty acts: k / n for the "
            "last k of n steps. Its weight rises from 0 and is reached half-way through.",
            "inner": "Share of a range's half-width at which the penalty begins.",
        },
    ),
    *(
        Option("penalty", name, bounds, f"Range of {what}, where the model has it.")
        for name, (bounds, what) in _RANGES.items()
    ),
)

_CARD = (
    Option("card", "data", "", "What the text is and under which terms, for the model card."),
    Option(
        "card",
        "licence",
        "Apache-2.0",
        "Licence of the weights, for the model card, as far as the text's terms leave it to you.",
    ),
)

OPTIONS = (*_model_options(), *_TEXT, *_TRAINING, *_PENALTY, *DEVICES, *_CARD)
"""Every option of the file, in the order of the template."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A pre-training as a file asks for it: size and split of the text, the settings, the devices,
    and what the model card says of the text (card) and of the weights' licence.
    """

    length: int
    vocabulary: int
    held_out: float
    settings: Pretraining
    card: str = ""
    licence: str = "Apache-2.0"
    devices: Devices = ONE_DEVICE


def settings_template() -> str:
    """A TOML file with every option at its default, explained."""
    return template(OPTIONS, "Settings of `hesim pretrain`. Every option may be left out.")


def read_job(path: str | Path | None) -> Job:
    """The job that a file describes (defaults for None); ExperimentError names what is wrong."""
    values = read_options(path, OPTIONS)
    try:
        config = _config(values["model"], int(values["text"]["length"]))
        training = dict(values["training"])
        budget = Budget(training.pop("steps"), training.pop("seconds"))
        penalty = dict(values["penalty"])
        ranges = {name: penalty.pop(name) for name in _RANGES}
        settings = Pretraining(
            config=config,
            budget=budget,
            targets=_targets(config, ranges),
            **training,
            **penalty,
        )
    except (ValueError, TypeError) as error:
        raise ExperimentError(f"{path}: {error}") from error
    card = values["card"]
    return Job(
        settings=settings,
        card=card["data"],
        licence=card["licence"],
        devices=devices_of(values),
        **values["text"],
    )


def _targets(config: EncoderConfig, ranges: dict[str, Any]) -> Any:
    present = {function_of(name) for name in site_names(config)}
    for name, bounds in ranges.items():
        check_range(name, bounds)
    return tuple(sorted((n, (float(r[0]), float(r[1]))) for n, r in ranges.items() if n in present))


def _config(model: dict[str, Any], length: int) -> EncoderConfig:
    """The preset with the file's changes, with a language-model head and without adapters."""
    name = model.pop("preset")
    return preset(name, **{"sequence": length, "lm_head": "tied", "lora_rank": 0, **model})


def objective(settings: Pretraining) -> str:
    """What the model learns to guess, in a few words."""
    if settings.config.causal:
        return "next-word prediction: every token guesses the one that follows it"
    return f"masked language modelling: {100 * settings.share:.0f} % of the tokens guessed"


def read_corpus(job: Job, data: Path, out: Path, display: Display) -> Corpus:
    """The text of a job, encoded once and kept in `out`."""
    return Corpus.read(
        data,
        length=job.length,
        vocabulary=job.vocabulary,
        held_out=job.held_out,
        cache=out,
        report=display.say,
    )


def run_pretraining(job: Job, data: Path, out: Path, display: Display) -> Pretrained:
    """Read the text, train with a bar, write the log; goes on from what `out` holds.

    Raises DataError for text that cannot be read, CheckpointError where `out` holds another run,
    ExperimentError where another process works in it, ParameterError where there are fewer devices
    than the job wants, or they do not divide its batch or model.
    """
    with alone_in(out):
        return _train(job, data, out, display)


def _train(job: Job, data: Path, out: Path, display: Display) -> Pretrained:
    mesh = job.devices.mesh()
    display.stage("Text")
    corpus = read_corpus(job, data, out, display)
    display.say(
        f"{len(corpus.files)} files, {corpus.train.rows:,} rows of {job.length} tokens to train "
        f"on, {corpus.held_out.rows:,} held out, {corpus.tokenizer.size:,} words"
    )
    with Checkpoints(out / "checkpoints") as store:
        start = store.latest or 0
    reason = obstacle(job.settings.config, corpus.tokenizer.size)
    if start:
        display.say(f"going on from step {start:,}")
    elif reason and job.settings.initial is None:
        display.say(f"random parameters to start from, none from the text's statistics: {reason}")
    display.stage("Pre-training")
    display.say(f"by {objective(job.settings)}")
    with (
        until_signalled() as stop,
        Logbook(out, start) as log,
        display.bar(job.settings.config.attention, 1.0) as update,
    ):

        def report(progress: Progress) -> None:
            figures = {"share": progress.share, "seconds": progress.seconds, **progress.figures}
            log.write(progress.step, figures)
            shown = f"step {progress.step:,}, loss {progress.figures['loss']:.3f}"
            if "held_out_loss" in progress.figures:
                shown += f", held out {progress.figures['held_out_loss']:.3f}"
            speed = progress.figures["tokens_per_second"]
            update(progress.share, f"{shown}, {speed:,.0f} tokens/s", None)

        return pretrain(
            job.settings,
            corpus,
            out,
            report=report,
            waiting=lambda note: update(0.0, note, None),
            stop=stop,
            mesh=mesh,
        )
