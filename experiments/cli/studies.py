"""Subcommands of `hesim study`: experiments over many models that resume and end in a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from experiments.cli.common import (
    AccuracyOption,
    BackendOption,
    BootstrapsOption,
    ClusterOption,
    DataDirOption,
    LevelsBudgetOption,
    SecondsOption,
    TemplateOption,
    resumable,
)
from experiments.console import make_console
from he_backend.machines.table import DEFAULT_MACHINE

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, help="Studies over many models: resumable, with a table at the end."
)


@app.command()
def rank(
    out: Annotated[
        Path, typer.Option(help="Where the study is kept and resumed from.", file_okay=False)
    ] = Path("runs/ranking"),
) -> None:
    """Does the simulation rank variants of a model as encryption does? (About 40 minutes of one
    core; it may be stopped and goes on where it was.)"""
    from experiments.studies.ranking import STUDY, run_study
    from experiments.studies.ranking_report import plot, text, write_csv

    say = _teller(make_console(whole=True))
    with resumable(out):
        results = run_study(STUDY, out, say=say)
    write_csv(results, out / "ranking.csv")
    _keep(out / "ranking", text(results), plot(results), say)


@app.command(name="noisy-training")
def noisy_training(
    out: Annotated[
        Path, typer.Option(help="Where the study is kept and resumed from.", file_okay=False)
    ] = Path("runs/noisy-training"),
    seeds: Annotated[int, typer.Option(min=1, help="Models, each trained twice.")] = 3,
    sentences: Annotated[
        int, typer.Option(min=256, help="Held-out sentences to encrypt, a multiple of 256.")
    ] = 256,
    backend: BackendOption = DEFAULT_MACHINE,
) -> None:
    """Does training with simulated noise help the encrypted model? A paired study at a tiny
    scale. (About two minutes of one core; it may be stopped and goes on where it was.)"""
    from experiments.studies.noisy_training import NOISE_STUDY, run_noise_study, table

    study = dataclasses.replace(NOISE_STUDY, seeds=tuple(range(seeds)), sentences=sentences)
    say = _teller(make_console(whole=True))
    with resumable(out):
        arms = run_noise_study(study, out, backend=backend, say=say)
    say("\n" + table(arms, backend))
    say(f"\n{out / 'arms.csv'}, {out / 'arms.json'}")


@app.command()
def glue(
    start_gaussian: Annotated[
        str, typer.Option(help="A pre-trained model with Gaussian attention: its name or folder.")
    ] = "tiny-gaussian",
    start_softmax: Annotated[
        str, typer.Option(help="One with softmax attention.")
    ] = "tiny-softmax",
    data_dir: DataDirOption = None,
    tasks: Annotated[str, typer.Option(help="Comma-separated, or all.")] = "all",
    columns: Annotated[
        str,
        typer.Option(
            help="Comma-separated of full-softmax, full-gaussian, lora-softmax, lora-gaussian, "
            "lora-simulated, or all."
        ),
    ] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, paired.")] = 3,
    length: Annotated[int, typer.Option(min=5, help="Tokens of a row.")] = 128,
    settings: Annotated[
        Path | None,
        typer.Option(help="TOML table of rates, epochs, batch, pairs and buckets by task."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Where the study is kept and resumed from.", file_okay=False)
    ] = Path("runs/glue"),
) -> None:
    """GLUE five ways: full and LoRA, softmax and Gaussian, and LoRA as encryption does it."""
    from experiments.studies.glue import COLUMNS, TASKS, GlueStudy, run_glue, write_csv
    from experiments.studies.glue_report import plot, summary, table
    from experiments.studies.tasks import Stopped
    from experiments.training.finetune_settings import read_table
    from experiments.training.signals import until_signalled
    from models.data.datasets import task_spec

    say = _teller(make_console())
    rows, twin = read_table(settings)
    chosen = [name.strip() for name in tasks.split(",")]
    study = GlueStudy(
        starts={"gaussian": start_gaussian, "softmax": start_softmax},
        data_dir="" if data_dir is None else str(data_dir),
        tasks=TASKS
        if tasks == "all"
        else tuple(task_spec(name).removeprefix("glue/") for name in chosen),
        columns=tuple(COLUMNS) if columns == "all" else tuple(columns.replace(" ", "").split(",")),
        seeds=tuple(range(seeds)),
        length=length,
        table=rows,
        encrypted=twin,
    )
    with resumable(out, Stopped), until_signalled() as stop:
        runs = run_glue(study, out, say=say, stop=stop)
    write_csv(runs, out / "glue.csv")
    _keep(out / "glue", f"{table(runs)}\n\n{summary(runs)}\n", plot(runs), say)


@app.command()
def penalty(
    data_dir: Annotated[
        Path, typer.Option(help="Folder that holds GLUE's task folders.", file_okay=False)
    ],
    start: Annotated[
        str, typer.Option(help="A pre-trained model with Gaussian attention: its name or folder.")
    ] = "tiny-gaussian",
    tasks: Annotated[str, typer.Option(help="GLUE's names, comma-separated.")] = "SST-2,STS-B",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, paired.")] = 3,
    weight: Annotated[float, typer.Option(help="Of the penalty.")] = 1.0,
    margin: Annotated[
        float, typer.Option(help="By which domains exceed what the pre-trained model meets.")
    ] = 0.1,
    settings: Annotated[
        Path | None, typer.Option(help="TOML table of rates, epochs and rows by task.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Where the study is kept and resumed from.", file_okay=False)
    ] = Path("runs/penalty"),
) -> None:
    """Does the range penalty keep a fine-tuned model within its polynomials' domains?"""
    from experiments.studies.penalty import PenaltyStudy, run_penalty, write_csv
    from experiments.studies.penalty_report import plot, scores, sites
    from experiments.studies.tasks import Stopped
    from experiments.training.finetune_settings import read_table
    from experiments.training.signals import until_signalled

    how = PenaltyStudy.how
    study = PenaltyStudy(
        start=start,
        data_dir=str(data_dir),
        tasks=tuple(name.strip() for name in tasks.split(",")),
        seeds=tuple(range(seeds)),
        weight=weight,
        table=read_table(settings)[0],
        how=dataclasses.replace(how, fit=dataclasses.replace(how.fit, margin=margin)),
    )
    say = _teller(make_console())
    with resumable(out, Stopped), until_signalled() as stop:
        arms = run_penalty(study, out, say=say, stop=stop)
    write_csv(arms, out / "penalty.csv")
    _keep(out / "penalty", f"{scores(arms)}\n\n{sites(arms)}\n", plot(arms), say)


@app.command()
def attention(
    start_gaussian: Annotated[
        str, typer.Option(help="A pre-trained model with Gaussian attention: its name or folder.")
    ] = "tiny-gaussian",
    start_softmax: Annotated[
        str, typer.Option(help="One with softmax attention.")
    ] = "tiny-softmax",
    tasks: Annotated[
        str, typer.Option(help="Comma-separated: reviews, reviews-regression, or GLUE's names.")
    ] = "reviews",
    data_dir: DataDirOption = None,
    attentions: Annotated[
        str,
        typer.Option(
            help="Comma-separated of softmax, gaussian, gaussian_normalised, power_softmax, or all."
        ),
    ] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, paired.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Of each fine-tuning.")] = 3,
    squarings: Annotated[
        int, typer.Option(min=1, help="The k of exp(x) as (1 + x / 2^k)^(2^k).")
    ] = 8,
    out: Annotated[
        Path, typer.Option(help="Where the study is kept and resumed from.", file_okay=False)
    ] = Path("runs/attention"),
) -> None:
    """Softmax, the Gaussian kernel, that kernel normalised, power-softmax: what each learns, and
    what it costs under encryption. (About a quarter of an hour of one core; it may be stopped and
    goes on where it was.)"""
    from experiments.studies.attention import STARTS, AttentionStudy, run_attention, write_csv
    from experiments.studies.attention_report import plot, table
    from experiments.studies.tasks import Stopped
    from experiments.training.signals import until_signalled
    from models.data.datasets import task_spec

    study = AttentionStudy(
        starts={"gaussian": start_gaussian, "softmax": start_softmax},
        tasks=tuple(task_spec(name.strip()) for name in tasks.split(",")),
        data_dir="" if data_dir is None else str(data_dir),
        attentions=tuple(STARTS)
        if attentions == "all"
        else tuple(attentions.replace(" ", "").split(",")),
        seeds=tuple(range(seeds)),
        training=dataclasses.replace(AttentionStudy.training, epochs=epochs),
        squarings=squarings,
    )
    say = _teller(make_console())
    with resumable(out, Stopped), until_signalled() as stop:
        runs = run_attention(study, out, say=say, stop=stop)
    write_csv(runs, out / "attention.csv")
    _keep(out / "attention", f"{table(runs)}\n", plot(runs), say)


@app.command()
def tradeoff(
    knobs: Annotated[
        Path | None,
        typer.Option(help="TOML file of the values that are tried; --template prints one."),
    ] = None,
    template: TemplateOption = False,
    task: Annotated[
        str, typer.Option("--task", "--tasks", help="Comma-separated: reviews, or GLUE's names.")
    ] = "reviews",
    data_dir: DataDirOption = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="In place of the file's: fine-tunings of each.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes that fine-tune and score, each of up to 3 GB.")
    ] = 1,
    cluster: ClusterOption = None,
    spot_checks: Annotated[
        int, typer.Option(min=0, help="Configurations that are run encrypted, in all.")
    ] = 0,
    spot_sentences: Annotated[
        int, typer.Option(min=1, help="Sentences of each, one at a time.")
    ] = 8,
    memory: Annotated[
        float,
        typer.Option(min=0.0, help="GB of one process that evaluates a spot check, at most."),
    ] = 2.5,
    backend: BackendOption = DEFAULT_MACHINE,
    accuracy: AccuracyOption = None,
    seconds: SecondsOption = None,
    levels: LevelsBudgetOption = None,
    bootstraps: BootstrapsOption = None,
    out: Annotated[
        Path, typer.Option(help="Where the study is kept and resumed from.", file_okay=False)
    ] = Path("runs/tradeoff"),
) -> None:
    """What accuracy costs: adapters, kernel, polynomials, ring and refreshes, each configuration
    scored by simulation and planned, some run encrypted. (A minute or two of one core a
    configuration and task; it may be stopped and goes on where it was.)"""
    from experiments.console import Display
    from experiments.studies.tasks import Stopped
    from experiments.studies.tradeoff.mapping import in_processes, on_cluster
    from experiments.studies.tradeoff.report import Question, write_report
    from experiments.studies.tradeoff.run import run_tradeoff
    from experiments.studies.tradeoff.settings import knobs_template, read_study
    from experiments.studies.tradeoff.spots import SpotChecks
    from experiments.training.signals import until_signalled
    from he_backend.clusters.cluster import Cluster

    if template:
        typer.echo(knobs_template(), nl=False)
        return
    if cluster is not None and jobs > 1:
        raise typer.BadParameter("--jobs are of this host; a cluster's workers have their threads")
    question = Question(accuracy, seconds, levels, bootstraps)
    checks = SpotChecks(spot_checks, spot_sentences, backend, memory * 1e9)
    spread = Cluster.reached(cluster)
    study = read_study(knobs, task.split(","), data_dir)
    if seeds is not None:
        study = dataclasses.replace(study, seeds=seeds)
    if spread is None:
        mapped = in_processes(jobs, out / "compiled")
    else:
        read = (Path(name) for name in (study.data_dir, study.gaussian, study.softmax) if name)
        mapped = on_cluster(spread, [path for path in read if path.exists()])
    with resumable(out, Stopped), until_signalled() as stop:
        run_tradeoff(
            study,
            out,
            mapped=mapped,
            display=Display(),
            stop=stop,
            checks=checks,
        )
    said, paths = write_report(out, question)
    say = _teller(make_console(whole=True))
    say(f"\n{said}\n{', '.join(map(str, paths))}")


def _keep(name: Path, text: str, figure: Any, say: Callable[[str], None]) -> None:
    """A study's table and figure, beside its rows in NAME.csv; the table is told as well."""
    files = [name.with_suffix(end) for end in (".txt", ".csv", ".png")]
    figure.savefig(files[-1], dpi=150)
    files[0].write_text(text, encoding="utf-8")
    say(f"\n{text}\n{', '.join(map(str, files))}")


def _teller(console: Console) -> Callable[[str], None]:
    """Prints a line as it is, whatever it holds and however long it is."""

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    return say
