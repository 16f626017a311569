"""Subcommands of `hesim` that make models: pre-train, publish, convert, fine-tune, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.cli.common import (
    INTERRUPTED,
    DataDirOption,
    SettingsOption,
    StartOption,
    TaskOption,
    TemplateOption,
    resumable,
)
from experiments.console import make_console

__all__ = ["app"]

app = typer.Typer()


@app.command()
def pretrain(
    config: SettingsOption = None,
    text: Annotated[
        Path | None,
        typer.Option("--text", "--data", help="Folder of .txt or .tokens files.", file_okay=False),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Where checkpoints and log are kept and resumed from.")
    ] = Path("runs/pretrain"),
    template: TemplateOption = False,
) -> None:
    """Pre-train on plain text: an encoder by hidden words, a decoder by the next one."""
    from experiments.console import Display
    from experiments.training.pretrain import read_job, run_pretraining, settings_template
    from models.train.compiling import Abandoned

    if template:
        typer.echo(settings_template(), nl=False)
        return
    if text is None:
        raise typer.BadParameter("name the folder of texts with --text")
    display = Display()
    with resumable(out, Abandoned):
        result = run_pretraining(read_job(config), text, out, display)
    if not result.finished:
        display.say(f"stopped at step {result.step:,}; the same command goes on from {out}")
        raise typer.Exit(INTERRUPTED)
    display.say(f"{result.step:,} steps in {result.seconds:,.0f} s; checkpoints and log in {out}")


@app.command()
def convert(
    folder: Annotated[
        Path,
        typer.Argument(help="config.json, model.safetensors or one .onnx, and vocab.txt."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    attention: Annotated[
        str,
        typer.Option(
            help="gaussian, gaussian_normalised, power_softmax, squared_softmax or softmax."
        ),
    ] = "gaussian",
    activation: Annotated[
        str | None,
        typer.Option(help="relu, gelu, gelu_tanh or silu.", show_default="its own"),
    ] = None,
    pooler: Annotated[
        list[int] | None, typer.Option(help="A width of a new pooler; repeat for several.")
    ] = None,
    pooling: Annotated[
        str, typer.Option(help="What the pooler reads: token (the first), or mean (of all).")
    ] = "token",
    lora_rank: Annotated[int, typer.Option(min=0, help="Of fresh adapters.")] = 0,
    classes: Annotated[int | None, typer.Option(min=1, help="Logits of the head.")] = None,
    length: Annotated[int | None, typer.Option(min=1, help="Positions to keep.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="First layers to keep.")] = None,
    seed: Annotated[int, typer.Option(help="Of what starts fresh.")] = 0,
) -> None:
    """Load somebody's BERT and swap its attention and activation for others."""
    from experiments.training.convert import convert_and_show

    options = {
        "attention": attention,
        "activation": activation,
        "pooler": tuple(pooler) if pooler else None,
        "pooling": pooling,
        "lora_rank": lora_rank,
        "classes": classes,
        "length": length,
        "layers": layers,
        "seed": seed,
    }
    convert_and_show(folder, out, options, make_console(whole=True))


@app.command()
def distil(
    teacher: Annotated[
        Path | None, typer.Argument(help="Folder of a model or of somebody's BERT.")
    ] = None,
    student: Annotated[
        Path | None, typer.Argument(help="Folder of a model, as `hesim convert` writes it.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="A data set whose texts are learned on, such as rte; repeatable."),
    ] = None,
    data_dir: DataDirOption = None,
    text: Annotated[
        Path | None, typer.Option(help="Folder of .txt or .tokens files.", file_okay=False)
    ] = None,
    config: SettingsOption = None,
    out: Annotated[
        Path, typer.Option(help="Where checkpoints, log and model go; resumed from.")
    ] = Path("runs/distil"),
    template: TemplateOption = False,
) -> None:
    """Let a student learn what its teacher computes: hidden states, attention, logits."""
    from experiments.console import Display
    from experiments.training.distil import distil_template, read_distilling, run_distilling
    from models.train.compiling import Abandoned

    if template:
        typer.echo(distil_template(), nl=False)
        return
    if teacher is None or student is None:
        raise typer.BadParameter("name the folders of teacher and student")
    display = Display()
    with resumable(out, Abandoned):
        done = run_distilling(
            read_distilling(config),
            teacher,
            student,
            out,
            display,
            data=data or (),
            data_dir=None if data_dir is None else str(data_dir),
            text=text,
        )
    if not done.finished:
        display.say(f"stopped at step {done.step:,}; the same command goes on from {out}")
        raise typer.Exit(INTERRUPTED)
    display.say(f"{done.step:,} steps in {done.seconds:,.0f} s; the student is in {out / 'model'}")


@app.command()
def publish(
    run: Annotated[Path, typer.Argument(help="Folder of a finished pre-training.")],
    to: Annotated[Path, typer.Option(help="Model folder to write; it must not exist.")],
    text: Annotated[
        Path, typer.Option("--text", "--data", help="Folder of its texts.", file_okay=False)
    ],
    config: Annotated[Path | None, typer.Option(help="TOML file of its settings.")] = None,
) -> None:
    """Write a pre-trained encoder as a model folder with a model card."""
    from experiments.console import Display
    from experiments.training.pretrain import read_job
    from experiments.training.publish import publish as write

    display = Display()
    facts = write(read_job(config), text, run, to, display)
    display.say(
        f"{to}: {facts['held_out_loss']:.3f} nats a held-out word after {facts['steps']:,} steps"
    )


@app.command()
def finetune(
    task: TaskOption = None,
    method: Annotated[str | None, typer.Option(help="lora or full.")] = None,
    attention: Annotated[str | None, typer.Option(help="gaussian or softmax.")] = None,
    start: StartOption = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Train as encryption does, with simulated noise.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and noise.")] = None,
    data_dir: DataDirOption = None,
    config: SettingsOption = None,
    table: Annotated[
        Path | None,
        typer.Option(help="TOML table of settings by task, as `hesim study glue` takes it."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where checkpoints, log and model go.", show_default="runs/TASK-METHOD-..."
        ),
    ] = None,
    template: TemplateOption = False,
) -> None:
    """Fine-tune a pre-trained encoder on a task, in full or by LoRA. (Options win over the
    file.)"""
    from experiments.console import Display
    from experiments.training.finetune import run_finetuning
    from experiments.training.finetune_settings import job_template, read_job

    if template:
        typer.echo(job_template(), nl=False)
        return
    given = {
        "task.task": task,
        "training.method": method,
        "start.attention": attention,
        "start.start": start,
        "encrypted.simulate": simulate or None,
        "training.seed": seed,
    }
    job = read_job(config, given, table)
    how = "-simulated" if job.settings.encrypted else ""
    name = f"{job.task.rsplit('/', 1)[-1]}-{job.settings.method}-{job.attention}{how}"
    folder = out or Path("runs") / f"{name}-{job.settings.seed}"
    display = Display()
    where = None if data_dir is None else str(data_dir)
    with resumable(folder):
        done = run_finetuning(job, folder, display, where)
    if not done.finished:
        display.say(f"stopped; the same command goes on from {folder}")
        raise typer.Exit(INTERRUPTED)
    display.say(
        f"{done.trainable:,} numbers trained; model, checkpoints and log in {folder}; its held-out "
        f"scores: hesim evaluate {folder}"
    )


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="Of a finished `hesim finetune`.")],
    data_dir: DataDirOption = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with the sections encrypted (the ring; what it leaves out is as in "
            "training) and twin (polynomials, of a model that was not trained with its own) of "
            "`hesim finetune --template`."
        ),
    ] = None,
) -> None:
    """Held-out scores of a fine-tuned model: exact, polynomial, simulated; sites out of range."""
    from experiments.training.evaluate import evaluate_folder, render

    console = make_console()
    found = evaluate_folder(
        folder, data_dir=None if data_dir is None else str(data_dir), how=config
    )
    console.print(render(found))
    for line in found.warnings or ["every value lay in its polynomial's range"]:
        console.print(line)
