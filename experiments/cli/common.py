"""What several subcommands of `hesim` share: exit codes and options."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from experiments.console import make_console
from he_backend.errors import BackendError
from he_backend.machines import table

__all__ = [
    "BROKEN",
    "INTERRUPTED",
    "REFUSED",
    "AccuracyOption",
    "BackendOption",
    "ClusterOption",
    "BootstrapsOption",
    "ConfigOption",
    "DataDirOption",
    "DataOption",
    "FreshOption",
    "InsecureOption",
    "KeyHolderOption",
    "LevelsBudgetOption",
    "MemoryOption",
    "ObjectiveOption",
    "RefreshPriceOption",
    "SecondsOption",
    "SettingsOption",
    "StartOption",
    "TaskOption",
    "TemplateOption",
    "price_of",
    "resumable",
]

BROKEN, REFUSED, INTERRUPTED = 1, 2, 130
"""Exit codes: a guarantee was not kept; a named error; Ctrl-C."""


@contextlib.contextmanager
def resumable(folder: Path, *stopped: type[Exception]) -> Iterator[None]:
    """Of a job that keeps what it finished in `folder`: Ctrl-C, or one of `stopped`, ends it with
    how to go on.
    """
    try:
        yield
    except (KeyboardInterrupt, *stopped):
        said = f"\nstopped; the same command goes on from {folder}"
        make_console(error=True, whole=True).print(said)
        raise typer.Exit(INTERRUPTED) from None


def price_of(text: str | None) -> float | str | None:
    """A refresh's price as `hesim.compile` takes it. Raises BadParameter for any other text."""
    if text is None or text == "bootstrap":
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise typer.BadParameter(f"{text!r} is neither 'bootstrap' nor seconds, at least 0")
    return value


def _machine(name: str) -> str:
    """The name of a machine of the table. Raises BadParameter for any other."""
    try:
        table.find(name)
    except BackendError as error:
        raise typer.BadParameter(str(error)) from error
    return name


_OPEN = " and ".join(name for name, row in table.MACHINES.items() if not row.encrypts)

BackendOption = Annotated[
    str,
    typer.Option(
        metavar="|".join(table.MACHINES),
        callback=_machine,
        help=f"Where it runs, encrypted but on {_OPEN}, for debugging.",
    ),
]
InsecureOption = Annotated[
    int | None,
    typer.Option(
        min=4,
        max=17,
        metavar="LOG_N",
        help="The same chain in a ring of this size, which protects nothing: to try it.",
    ),
]
KeyHolderOption = Annotated[
    bool,
    typer.Option("--key-holder", help="The key holder refreshes, though the machine bootstraps."),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Scheduler of a Dask cluster whose workers evaluate, such as tcp://10.0.0.1:8786.",
        show_default="processes of this host",
    ),
]
DataOption = Annotated[
    str,
    typer.Option(
        help="reviews, reviews-regression, or a task of GLUE, such as rte, with --data-dir."
    ),
]
DataDirOption = Annotated[
    Path | None, typer.Option(help="Folder that holds GLUE's task folders.", file_okay=False)
]

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        help="TOML file with the sections encrypted, twin and bootstrap; --template prints one.",
        dir_okay=False,
    ),
]

SettingsOption = Annotated[
    Path | None, typer.Option(help="TOML file of settings; --template prints one.")
]

TemplateOption = Annotated[
    bool, typer.Option("--template", help="Print a settings file with every option explained.")
]

FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Start again; removes what the folder holds.")
]

TaskOption = Annotated[
    str | None, typer.Option(help="rte, mrpc, sts-b, sst-2, cola, qnli, or reviews.")
]

StartOption = Annotated[
    str | None,
    typer.Option(
        help="A shipped model, a model's folder, or scratch.",
        show_default="tiny-gaussian or tiny-softmax, by the attention",
    ),
]

RefreshPriceOption = Annotated[
    str | None, typer.Option(help="'bootstrap', or seconds a refreshed ciphertext.")
]

ObjectiveOption = Annotated[
    str, typer.Option(help="seconds, or rounds: the fewest round trips to the key holder.")
]

AccuracyOption = Annotated[
    float | None,
    typer.Option(help="Of a trade-off study: the cheapest configuration of so many points."),
]
SecondsOption = Annotated[
    float | None,
    typer.Option(min=0.0, help="The best within so many core-seconds of one sentence."),
]
LevelsBudgetOption = Annotated[
    float | None, typer.Option(min=0.0, help="The best within so many levels.")
]
BootstrapsOption = Annotated[
    float | None, typer.Option(min=0.0, help="The best within so many refreshed ciphertexts.")
]
"""Questions to a trade-off study."""

MemoryOption = Annotated[
    float | None,
    typer.Option(min=0.0, help="GB that compiling, and a process that evaluates, may take."),
]
