"""The subcommands of two owners, an evaluator and a key holder, on one host or two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.cli.common import BackendOption, ClusterOption, resumable
from experiments.console import Display, make_console
from he_backend.machines.table import DEFAULT_MACHINE

__all__ = ["app"]

app = typer.Typer()

BundleArgument = Annotated[Path, typer.Argument(help="Folder that hesim.save wrote.")]
CertificatesOption = Annotated[
    Path | None,
    typer.Option(help="Folder with own.crt, own.key and peer.crt, for TLS.", file_okay=False),
]


@app.command()
def share(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Argument(help="New folder for the key holder's part.")],
) -> None:
    """Write the part of a bundle that a key holder needs, without any number of the model."""
    from experiments import owners

    owners.share(bundle, out, Display(make_console(whole=True)))


@app.command()
def certificates(
    out: Annotated[Path, typer.Argument(help="New folder.")],
    name: Annotated[
        str | None,
        typer.Option(help="Make one side's certificate only, of this name.", show_default="both"),
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="Days that they are valid.")] = 365,
) -> None:
    """Make certificates by which an evaluator and a key holder know each other over TLS."""
    from he_backend.owners.certificates import make_certificate, make_pair

    if name is None:
        evaluator, holder = make_pair(out, days)
        Display(make_console(whole=True)).say(
            f"for the evaluator: {evaluator}\nfor the key holder: {holder}"
        )
        return
    make_certificate(out, name, days)
    Display(make_console(whole=True)).say(
        f"give the other side {out / 'own.crt'}, and put theirs at {out / 'peer.crt'}"
    )


@app.command()
def serve(
    bundle: BundleArgument,
    listen: Annotated[str, typer.Option(help="unix:PATH, or HOST:PORT over TLS.")],
    folder: Annotated[
        Path | None,
        typer.Option(help="Evaluation keys and unfinished work.", show_default="runs/serve-..."),
    ] = None,
    certificates: CertificatesOption = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that evaluate.")] = 2,
    idle: Annotated[
        float, typer.Option(min=1.0, help="Seconds after which a silent key holder is shown out.")
    ] = 600.0,
    backend: BackendOption = DEFAULT_MACHINE,
    cluster: ClusterOption = None,
) -> None:
    """Evaluate a bundle for a key holder, who connects with `hesim encrypt`; stop it by Ctrl-C."""
    from experiments import owners

    place = folder if folder is not None else owners.default_folder("serve", bundle)
    settings = {"backend": backend, "workers": workers, "idle_seconds": idle, "cluster": cluster}
    with resumable(place):
        owners.serve(
            bundle,
            listen,
            place,
            Display(make_console(whole=True)),
            certificates=certificates,
            **settings,
        )


@app.command()
def encrypt(
    bundle: BundleArgument,
    connect: Annotated[str, typer.Option(help="Where `hesim serve` listens.")],
    data: Annotated[
        list[Path],
        typer.Option(help=".npz file of arguments, a batch each; may be given several times."),
    ],
    out: Annotated[
        Path, typer.Option(help=".npz file for the result; a folder for several batches.")
    ],
    folder: Annotated[
        Path | None,
        typer.Option(help="Secret key, inputs and results.", show_default="runs/encrypt-..."),
    ] = None,
    certificates: CertificatesOption = None,
    clients: Annotated[
        int, typer.Option(min=1, max=8, help="Processes that encrypt and decrypt.")
    ] = 2,
    backend: BackendOption = DEFAULT_MACHINE,
) -> None:
    """Encrypt data, have an evaluator run its model on it, and decrypt the results."""
    from experiments import owners

    place = folder if folder is not None else owners.default_folder("encrypt", bundle)
    settings = {"backend": backend, "clients": clients, "certificates": certificates}
    with resumable(place):
        owners.encrypt(
            bundle, connect, data, out, place, Display(make_console(whole=True)), **settings
        )
