"""What several subcommands of `hesim` share: exit codes and options."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["BROKEN", "INTERRUPTED", "REFUSED", "Backend", "DataDirOption", "DataOption"]

BROKEN, REFUSED, INTERRUPTED = 1, 2, 130
"""Exit codes: a guarantee was not kept; a named error; Ctrl-C."""


class Backend(StrEnum):
    pyfhel = "pyfhel"
    slots = "slots"


DataOption = Annotated[
    str, typer.Option(help="reviews, reviews-regression, or glue/TASK with --data-dir.")
]
DataDirOption = Annotated[
    Path | None, typer.Option(help="Folder that holds GLUE's task folders.", file_okay=False)
]
