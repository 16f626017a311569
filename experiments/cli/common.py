"""What several subcommands of `hesim` share: exit codes and options."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from experiments.console import make_console

__all__ = [
    "BROKEN",
    "INTERRUPTED",
    "REFUSED",
    "Backend",
    "DataDirOption",
    "DataOption",
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


class Backend(StrEnum):
    pyfhel = "pyfhel"
    slots = "slots"


DataOption = Annotated[
    str,
    typer.Option(
        help="reviews, reviews-regression, or a task of GLUE, such as rte, with --data-dir."
    ),
]
DataDirOption = Annotated[
    Path | None, typer.Option(help="Folder that holds GLUE's task folders.", file_okay=False)
]
