"""`hesim pretrain`: masked-language-model pre-training from a TOML file, with a log and a clean
stop.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from experiments.errors import ExperimentError
from experiments.live import Display
from experiments.training.devices import DEVICES, ONE_DEVICE, Devices, devices_of
from experiments.training.logbook import Logbook
from experiments.training.options import Option, options_of, read_options, template
from experiments.training.signals import until_signalled
from experiments.working import alone_in
from models.checkpoint import Checkpoints
from models.config import PRESETS, EncoderConfig, preset
from models.corpus import Corpus
from models.pretrain import Pretrained, Pretraining, Progress, pretrain
from models.schedules import Budget
from models.sites import function_of, site_names

__all__ = [
    "OPTIONS",
    "Job",
    "read_corpus",
    "read_job",
    "run_pretraining",
    "settings_template",
]

_DEFAULT = Pretraining()

_CONFIG = {
    "layers": "Blocks.",
    "hidden": "Features of a token.",
    "heads": "Attention heads.",
    "ffn": "Width of the feed-forward network's up-projection.",
    "attention": "Attention scores: gaussian or softmax, and what else the architecture offers.",
    "attention_mean": "Divide the Gaussian kernel's output by the public number of tokens, so that "
    "a sentence's length does not change the size of its states.",
    "activation": "glu_relu, glu_gelu, glu_bilinear, relu or gelu.",
    "positions": "sinusoidal, learned or none.",
    "pooler": "Widths of the first-token pooler, which pre-training leaves as it is.",
    "first_norm": "Whether the first block has a LayerNorm of its own.",
    "norm_epsilon": "What is added to a variance.",
    "initial_std": "Standard deviation of a new matrix.",
}
_GIVEN = ("sequence", "vocabulary", "classes", "padding_id", "lm_head", "pairs")  # by text, task


def _model_options() -> tuple[Option, ...]:
    """The preset, and each field of its configuration that a file may change."""
    tiny = preset("tiny", initial_std=0.02)
    fields = [field.name for field in dataclasses.fields(EncoderConfig)]
    free = [name for name in fields if name not in _GIVEN and not name.startswith("lora_")]
    return (
        Option("model", "preset", "tiny", f"Architecture to start from: {', '.join(PRESETS)}."),
        *(
            Option(
                "model",
                name,
                getattr(tiny, name),
                _CONFIG.get(name, "A field of EncoderConfig, which explains it."),
                optional=True,
            )
            for name in free
        ),
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
            "share": "Share of a row's tokens that are to be guessed.",
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
            "initial": "corpus: word vectors from co-occurrences, and heads of the first block "
            "that see the neighbours; random: neither.",
            "chunk": "Guessed words whose logits exist at a time; 0: all of a step.",
            "accumulate": "Parts of a step's rows, one after the other, to save memory.",
            "precision": "Of forward and backward pass: float32 or bfloat16; parameters and "
            "optimizer stay in float32.",
            "remat": "Compute scores and non-linearities a second time instead of keeping them; on "
            "a CPU this saves nothing.",
            "log_every": "Steps between two lines of the log.",
            "evaluate_every": "Steps between two evaluations on held-out text.",
            "held_out_rows": "Held-out rows that are evaluated, at most.",
            "save_seconds": "Seconds between two checkpoints.",
        },
    ),
)

_PENALTY = (
    *options_of(
        _DEFAULT,
        "penalty",
        {
            "penalty": "Weight of the range penalty; 0: none.",
            "penalty_last": "Last share of the budget in which it acts; its weight is reached "
            "half-way through.",
            "inner": "Share of a range's half-width at which the penalty begins.",
        },
    ),
    Option("penalty", "exp", (-8.0, 0.0), "Range of the Gaussian kernel's exponent."),
    Option("penalty", "inv_sqrt", (0.5, 8.0), "Range of the variances in LayerNorms."),
    Option("penalty", "relu", (-4.0, 4.0), "Range of ReLU's input."),
    Option("penalty", "gelu", (-4.0, 4.0), "Range of GELU's input, where the model has one."),
)

_CARD = (Option("card", "data", "", "What the text is and under which terms, for the model card."),)

OPTIONS = (*_model_options(), *_TEXT, *_TRAINING, *_PENALTY, *DEVICES, *_CARD)
"""Every option of the file, in the order of the template."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A pre-training as a file asks for it: size and split of the text, the settings, the devices,
    and what the model card says of the text.
    """

    length: int
    vocabulary: int
    held_out: float
    settings: Pretraining
    card: str = ""
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
        ranges = {name: penalty.pop(name) for name in ("exp", "inv_sqrt", "relu", "gelu")}
        settings = Pretraining(
            config=config,
            budget=budget,
            targets=_targets(config, ranges),
            **training,
            **penalty,
        )
    except (ValueError, TypeError) as error:
        raise ExperimentError(f"{path}: {error}") from error
    devices = devices_of(values)
    return Job(settings=settings, card=values["card"]["data"], devices=devices, **values["text"])


def _targets(config: EncoderConfig, ranges: dict[str, Any]) -> Any:
    present = {function_of(name) for name in site_names(config)}
    for name, bounds in ranges.items():
        if len(bounds) != 2 or not bounds[0] < bounds[1]:
            raise ValueError(f"the range of {name} is {list(bounds)}: a low and a high number")
    return tuple(sorted((n, (float(r[0]), float(r[1]))) for n, r in ranges.items() if n in present))


def _config(model: dict[str, Any], length: int) -> EncoderConfig:
    """The preset with the file's changes, with a language-model head and without adapters."""
    name = model.pop("preset")
    return preset(name, **{"sequence": length, "lm_head": "tied", "lora_rank": 0, **model})


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
    if start:
        display.say(f"going on from step {start:,}")
    display.stage("Pre-training")
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

        return pretrain(job.settings, corpus, out, report=report, stop=stop, mesh=mesh)
