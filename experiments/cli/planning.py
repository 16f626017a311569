"""The subcommand of `hesim` that plans a model's encrypted run and says what it would spend."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from experiments.cli.common import (
    BackendOption,
    ConfigOption,
    InsecureOption,
    KeyHolderOption,
    MemoryOption,
    ObjectiveOption,
    RefreshPriceOption,
    price_of,
)
from experiments.console import make_console
from he_backend.machines.table import DEFAULT_MACHINE

__all__ = ["app"]

app = typer.Typer()


@app.command()
def plan(
    model: Annotated[
        str,
        typer.Argument(
            help="demo, tiny, paper, a shipped model, or the folder of a model, a fine-tuning or a "
            "demo."
        ),
    ] = "demo",
    batch: Annotated[
        int | None,
        typer.Option("--batch", "--sentences", min=1, help="Sentences side by side in the slots."),
    ] = 256,
    length: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a sentence.", show_default="the model's own"),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option(
            help="logits, or cosine: embeddings of sentences, one by one.",
            show_default="what the model was trained for",
        ),
    ] = None,
    levels: Annotated[
        int | None,
        typer.Option(min=0, help="Levels of the ring, one a rescale.", show_default="3"),
    ] = None,
    log_n: Annotated[
        int | None, typer.Option(help="Ring degree N = 2^LOG_N.", show_default="14")
    ] = None,
    scale_bits: Annotated[
        int | None,
        typer.Option(
            help="Bits of the scale, and of the primes that rescale by it.", show_default="40"
        ),
    ] = None,
    first_bits: Annotated[
        int | None,
        typer.Option(help="Bits of the first prime.", show_default="10 above the scale's"),
    ] = None,
    special_bits: Annotated[
        int | None,
        typer.Option(help="Bits of the special prime.", show_default="60"),
    ] = None,
    refresh_price: RefreshPriceOption = None,
    objective: ObjectiveOption = "seconds",
    alone: Annotated[
        bool,
        typer.Option("--no-interactive", help="The key holder refreshes nothing."),
    ] = False,
    memory: MemoryOption = None,
    config: ConfigOption = None,
    backend: BackendOption = DEFAULT_MACHINE,
    insecure: InsecureOption = None,
    key_holder: KeyHolderOption = False,
    listing: Annotated[bool, typer.Option("--listing", help="Print the program, too.")] = False,
) -> None:
    """Plan a model's encrypted run, without running it: layouts, levels, seconds, memory, keys."""
    from experiments.planning import plan_model
    from hesim.progress import Bar

    bits = {"levels": levels, "log_n": log_n, "scale_bits": scale_bits}
    bits |= {"first_bits": first_bits, "special_bits": special_bits}
    ring: dict[str, Any] = {name: value for name, value in bits.items() if value is not None}
    if scale_bits is not None:
        ring = {"first_bits": min(60, scale_bits + 10), "special_bits": 60} | ring
    with Bar() as bar:
        found = plan_model(
            model,
            batch,
            length=length,
            answer=answer,
            ring=ring,
            config=config,
            backend=backend,
            insecure=insecure,
            key_holder=key_holder,
            progress=bar,
            refresh_price=price_of(refresh_price),
            objective=objective,
            interactive=not alone,
            memory=None if memory is None else memory * 1e9,
        )
    console = make_console(whole=True)
    if listing:
        console.print(str(found.program))
    console.print(f"{found.circuit.params}")
    console.print(f"polynomials: {found.polynomials}\n")
    console.print(f"{found.circuit}\n")
    console.print(f"levels of the program {found.program.depth}")
    console.print(str(found.circuit.ledger))
