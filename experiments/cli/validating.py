"""The subcommand of `hesim` that runs a trained model on held-out rows, clear and encrypted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.cli.common import (
    BROKEN,
    BackendOption,
    ClusterOption,
    ConfigOption,
    DataDirOption,
    FreshOption,
    InsecureOption,
    KeyHolderOption,
    MemoryOption,
    ObjectiveOption,
    RefreshPriceOption,
    TemplateOption,
    price_of,
    resumable,
)
from experiments.console import make_console
from he_backend.machines.table import DEFAULT_MACHINE

__all__ = ["app"]

app = typer.Typer()


@app.command()
def validate(
    model: Annotated[
        str | None,
        typer.Argument(
            help="The folder of a model, of a fine-tuning or of a demo; a converted or distilled "
            "encoder of sentences."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "--task",
            help="reviews, or a task of GLUE, such as rte.",
            show_default="that of the model's training",
        ),
    ] = None,
    data_dir: DataDirOption = None,
    sentences: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Held-out sentences, or pairs, to encrypt; 0: all.",
            show_default="256, or all if fewer",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of them side by side.", show_default="as many as fill a ciphertext"
        ),
    ] = None,
    layout: Annotated[
        str, typer.Option(help="throughput: many at a time; latency: one at a time.")
    ] = "throughput",
    length: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens of a sentence.", show_default="as few as hold them, of 8, 16, ..."
        ),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option(
            help="logits, or cosine: similarities of sentences that are embedded one by one.",
            show_default="what the model was trained for",
        ),
    ] = None,
    config: ConfigOption = None,
    refresh_price: RefreshPriceOption = None,
    objective: ObjectiveOption = "seconds",
    memory: MemoryOption = None,
    compare: Annotated[
        str, typer.Option(help="Batches compared operation by operation: none, first, or all.")
    ] = "first",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the run is kept and resumed from.", show_default="runs/validate-..."
        ),
    ] = None,
    fresh: FreshOption = False,
    clear: Annotated[
        bool,
        typer.Option("--clear", help="In the clear only: scores, and whether the ranges hold."),
    ] = False,
    backend: BackendOption = DEFAULT_MACHINE,
    cluster: ClusterOption = None,
    insecure: InsecureOption = None,
    key_holder: KeyHolderOption = False,
    template: TemplateOption = False,
) -> None:
    """Run a trained model on held-out sentences: exact, polynomial, simulated, encrypted."""
    from typing import cast

    if template:
        from experiments.training.twin import encryption_template

        typer.echo(encryption_template(), nl=False)
        return
    if model is None:
        raise typer.BadParameter("name a model")

    from experiments.console import Display
    from experiments.validation.run import run_validation, validate_in_the_clear
    from experiments.validation.settings import Compared, Layout, Validation
    from experiments.validation.subject import Answer
    from experiments.validation.table import render

    if answer not in (None, "logits", "cosine"):
        raise typer.BadParameter(f"--answer {answer} is neither logits nor cosine")
    if clear and (out is not None or fresh):
        raise typer.BadParameter("--clear keeps nothing: leave out --out and --fresh")
    asked = Validation(
        model=model,
        data=data,
        data_dir=None if data_dir is None else str(data_dir),
        sentences=sentences,
        batch=batch,
        layout=cast(Layout, layout),
        length=length,
        answer=cast("Answer | None", answer),
        config=None if config is None else str(config),
        refresh_price=price_of(refresh_price),
        objective=objective,
        memory=None if memory is None else memory * 1e9,
        compare=cast(Compared, compare),
        backend=backend,
        insecure=insecure,
        key_holder=key_holder,
    )
    console = make_console()
    display = Display(console)
    if clear:
        if not validate_in_the_clear(asked, display):
            raise typer.Exit(BROKEN)
        return
    with resumable(out if out is not None else Path("runs")):
        results, folder = run_validation(asked, out, fresh=fresh, display=display, cluster=cluster)
    display.stage("Result")
    console.print(render(results, notes=console.width >= 100))
    display.say(f"\nreport: {folder.path / 'report.html'}")
    if results.broken:
        raise typer.Exit(BROKEN)
