"""`hesim encrypted-finetune`: options of an encrypted training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from experiments.cli.common import (
    INTERRUPTED,
    BackendOption,
    ClusterOption,
    DataDirOption,
    FreshOption,
    InsecureOption,
    KeyHolderOption,
    MemoryOption,
    SettingsOption,
    StartOption,
    TaskOption,
    TemplateOption,
    resumable,
)
from he_backend.machines.table import DEFAULT_MACHINE

__all__ = ["app"]

app = typer.Typer()


@app.command("encrypted-finetune")
def encrypted_finetune(
    task: TaskOption = None,
    method: Annotated[
        str | None, typer.Option(help="lora, or full: every weight but the embedding.")
    ] = None,
    attention: Annotated[
        str | None, typer.Option(help="gaussian, or softmax, by squarings and polynomials.")
    ] = None,
    start: StartOption = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps in all.", show_default="one epoch")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Rows of a step.")] = None,
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of a row.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Of the adapters of LoRA.")] = None,
    rehearse: Annotated[
        bool,
        typer.Option(
            "--rehearse",
            help="Nothing is encrypted: the same steps simulated and exact, and what to expect.",
        ),
    ] = False,
    from_step: Annotated[
        int,
        typer.Option(
            min=0,
            help="Begin encrypted with the state that the rehearsal had after so many steps.",
        ),
    ] = 0,
    check: Annotated[
        str,
        typer.Option(
            help="Steps evaluated on plain vectors beforehand: every, first, or none, which also "
            "leaves out the exact step beside each encrypted one."
        ),
    ] = "first",
    workers: Annotated[int, typer.Option(min=1, help="Processes that evaluate.")] = 2,
    memory: MemoryOption = None,
    seed: Annotated[int | None, typer.Option(help="Of fresh weights, order and noise.")] = None,
    data_dir: DataDirOption = None,
    config: SettingsOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where Circuit, states, figures and model are kept and resumed from.",
            show_default="runs/TASK-METHOD-...-encrypted-SEED",
        ),
    ] = None,
    fresh: FreshOption = False,
    backend: BackendOption = DEFAULT_MACHINE,
    cluster: ClusterOption = None,
    insecure: InsecureOption = None,
    key_holder: KeyHolderOption = False,
    template: TemplateOption = False,
) -> None:
    """Fine-tune on encrypted sentences and labels, or rehearse it. (Options win over the file.)"""
    from experiments.encrypted_training.settings import for_machine, job_template, read_job

    if template:
        typer.echo(job_template(), nl=False)
        return
    from experiments.console import Display
    from experiments.encrypted_training.run import run_encrypted_training
    from experiments.encrypted_training.running import Check, Running
    from he_backend.clusters.cluster import Cluster

    given = {
        "task.task": task,
        "task.length": length,
        "training.method": method,
        "training.steps": steps,
        "training.batch": batch,
        "training.rank": rank,
        "training.seed": seed,
        "start.attention": attention,
        "start.start": start,
    }
    job = read_job(config, given)
    job = for_machine(job, backend, insecure=insecure, key_holder=key_holder)
    folder = out or Path("runs") / job.folder
    spread = Cluster.reached(cluster)
    how = Running(backend, workers, cast(Check, check), from_step, job.save_every, spread)
    display = Display()
    with resumable(folder):
        done, _ = run_encrypted_training(
            job,
            folder,
            None if rehearse else how,
            data_dir=None if data_dir is None else str(data_dir),
            memory=None if memory is None else memory * 1e9,
            fresh=fresh,
            display=display,
        )
    if not done:
        display.say(f"stopped; the same command goes on from {folder}")
        raise typer.Exit(INTERRUPTED)
    if not rehearse:
        display.say(f"held-out scores: hesim evaluate {folder}; encrypted: hesim validate {folder}")
