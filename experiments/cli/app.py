"""The `hesim` command: one function a subcommand, each a thin layer over a job of this package.

An error that one of our packages raises on purpose is one message on standard error and exit code
2; `--debug` shows where it came from. Heavy imports happen inside the commands.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.cli.common import (
    BROKEN,
    REFUSED,
    AccuracyOption,
    BackendOption,
    BootstrapsOption,
    DataDirOption,
    DataOption,
    FreshOption,
    InsecureOption,
    LevelsBudgetOption,
    SecondsOption,
    price_of,
    resumable,
)
from experiments.cli.encrypted_training import app as encrypted_training_app
from experiments.cli.owners import app as owners_app
from experiments.cli.planning import app as planning_app
from experiments.cli.studies import app as studies_app
from experiments.cli.training import app as models_app
from experiments.cli.validating import app as validating_app
from experiments.console import make_console
from he_backend.machines.table import DEFAULT_MACHINE
from hesim.circuit.costs.table import VARIABLE, CostTable

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Transformers under CKKS homomorphic encryption: exact, simulated, encrypted.",
)
app.add_typer(planning_app)
app.add_typer(models_app)
app.add_typer(encrypted_training_app)
app.add_typer(validating_app)
app.add_typer(owners_app)
app.add_typer(studies_app, name="study")


def _version(shown: bool) -> None:
    if shown:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"hesim {version('hesim')}")
        except PackageNotFoundError:
            typer.echo("hesim, run from a checkout without being installed")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    costs: Annotated[
        Path | None,
        typer.Option(
            envvar=VARIABLE,
            help="Predict and plan by this file, written by calibrate-costs.",
            show_default="the table that is shipped, of an x86-64 machine",
        ),
    ] = None,
) -> None:
    """Transformers under CKKS homomorphic encryption: exact, simulated, encrypted."""
    del debug, version  # main reads --debug, the callback handles --version
    if costs is not None:
        CostTable.load(costs)
        os.environ[VARIABLE] = str(costs.resolve())  # processes that are started read it, too


@app.command()
def demo(
    data: DataOption = "reviews",
    data_dir: DataDirOption = None,
    sentences: Annotated[int, typer.Option(min=1, help="Held-out sentences to encrypt.")] = 256,
    seed: Annotated[int, typer.Option(help="Of weights, batches and noise.")] = 0,
    seeds: Annotated[
        int, typer.Option(min=1, help="Models to train; the first one runs encrypted.")
    ] = 1,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Where the run is kept and resumed from.", show_default="runs/demo-..."),
    ] = None,
    fresh: FreshOption = False,
    refresh_price: Annotated[
        str | None,
        typer.Option(
            help="Plan as if a refresh cost this: 'bootstrap' (its price; none is run), or seconds."
        ),
    ] = None,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="A small model and 64 sentences, to see the machinery work."),
    ] = False,
    backend: BackendOption = DEFAULT_MACHINE,
    insecure: InsecureOption = None,
    bootstrapped: Annotated[
        int,
        typer.Option(min=0, help="Of the sentences, bootstrapped too where OpenFHE is; 0: none."),
    ] = 4,
) -> None:
    """Train a transformer, run held-out sentences encrypted, compare, and write a report."""
    from experiments.console import Display
    from experiments.demo.run import run_demo
    from experiments.demo.settings import FAST, Settings
    from experiments.validation.table import render
    from models.data.datasets import task_spec

    base = FAST if fast else Settings()
    settings = dataclasses.replace(
        base,
        data=task_spec(data),
        data_dir=str(data_dir) if data_dir is not None else None,
        sentences=min(sentences, base.sentences) if fast else sentences,
        seed=seed,
        seeds=seeds,
        refresh_price=price_of(refresh_price),
        backend=backend,
        insecure=insecure,
        bootstrapped=bootstrapped,
    )
    console = make_console()
    display = Display(console)
    path = run_dir if run_dir is not None else settings.default_folder()
    with resumable(path):
        results, folder = run_demo(settings, path, fresh=fresh, display=display)
    display.stage("Result")
    console.print(render(results, notes=console.width >= 100))
    display.say(f"\nreport: {folder.path / 'report.html'}")
    if results.broken:
        raise typer.Exit(BROKEN)


@app.command()
def fit(
    target: Annotated[
        str,
        typer.Argument(
            help="exp, gelu, gelu_tanh, silu, sigmoid, tanh, softplus, erf, relu, sign, abs, inv, "
            "inv_sqrt, sqrt or log."
        ),
    ],
    domain: Annotated[
        tuple[float, float], typer.Option("--range", help="Domain, low and high.")
    ] = (-8.0, 8.0),
    degree: Annotated[
        int | None, typer.Option(min=0, help="Highest power; without degree, depth, tol: depth 5.")
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Levels, the affine map included.")
    ] = None,
    tol: Annotated[float | None, typer.Option(help="Largest error permitted.")] = None,
    method: Annotated[str, typer.Option(help="minimax, chebyshev or least_squares.")] = "minimax",
    plot: Annotated[Path | None, typer.Option(help="Write the error curve to this file.")] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write the polynomial to this file ('-' to print it).")
    ] = None,
) -> None:
    """Fit a polynomial to a function and say how good it is."""
    from experiments.fitting import fit_and_show

    fit_and_show(target, domain, (degree, depth, tol), method, plot, json)


@app.command()
def data(
    name: Annotated[
        str, typer.Argument(help="reviews, reviews-regression, or a task of GLUE, such as rte.")
    ] = "reviews",
    data_dir: DataDirOption = None,
) -> None:
    """Fetch a data set if need be, and describe it."""
    from models.data.datasets import load

    found = load(name, data_dir=data_dir)
    console = make_console()
    console.print(found.description)
    for split in ("train", "validation", "test"):
        part = getattr(found, split)
        example = part.texts[0] if len(part) else ""
        console.print(f"{split:<11} {len(part):>7,}  {example!r}")


@app.command()
def report(
    run_dir: Annotated[
        Path,
        typer.Argument(
            help="Run folder of a finished demo or validation, of an encrypted training that was "
            "begun, or of a trade-off study."
        ),
    ],
    accuracy: AccuracyOption = None,
    seconds: SecondsOption = None,
    levels: LevelsBudgetOption = None,
    bootstraps: BootstrapsOption = None,
) -> None:
    """Print the table of a run and write its report again."""
    from experiments.encrypted_training import KIND
    from experiments.studies.tradeoff.folder import is_tradeoff
    from experiments.validation.folder import RunFolder

    if is_tradeoff(run_dir):
        from experiments.studies.tradeoff.report import Question, write_report

        said, paths = write_report(run_dir, Question(accuracy, seconds, levels, bootstraps))
        make_console(whole=True).print(f"{said}\n{', '.join(map(str, paths))}")
        return
    asked = {"accuracy": accuracy, "seconds": seconds, "levels": levels, "bootstraps": bootstraps}
    if given := [f"--{name}" for name, value in asked.items() if value is not None]:
        raise typer.BadParameter(f"{run_dir} is no trade-off study, which {given[0]} is for")
    folder = RunFolder.find(run_dir)
    if folder.settings.get("kind") == KIND:
        from experiments.console import Display
        from experiments.encrypted_training.run import show_report

        show_report(folder, Display())
        return
    from experiments.validation.report import write_report
    from experiments.validation.results import Results
    from experiments.validation.table import render

    results = Results.load(folder)
    console = make_console()
    console.print(render(results, notes=console.width >= 100))
    console.print(f"\nreport: {write_report(results, run_dir / 'report.html')}")


@app.command("calibrate-costs")
def calibrate_costs(
    out: Annotated[Path, typer.Argument(help="File to write, JSON.", dir_okay=False)] = Path(
        "costs.json"
    ),
    log_n: Annotated[
        tuple[int, int], typer.Option(help="Rings N = 2^LOG_N, from the first to the second.")
    ] = (13, 15),
    backend: BackendOption = DEFAULT_MACHINE,
) -> None:
    """Time the operations of a machine, here and now, for plans and predictions: some minutes."""
    from experiments.calibration import calibrate_and_show

    calibrate_and_show(out, log_n, backend, make_console())


@app.command()
def doctor() -> None:
    """Check that everything the demo needs is installed and works."""
    from experiments.doctor import examine

    if not examine(make_console()):
        raise typer.Exit(BROKEN)


def main(arguments: list[str] | None = None) -> None:
    """Entry of the console script. Exits 0 if all went well, else as `BROKEN`, `REFUSED` say."""
    given = sys.argv[1:] if arguments is None else arguments
    code = _run(app, given)
    _leave_what_compiles(code)
    sys.exit(code)


def _leave_what_compiles(code: int) -> None:
    """Ends the process at once if a step that was left is still being compiled: the interpreter
    would wait for it.
    """
    compiling = sys.modules.get("models.train.compiling")
    if compiling is not None and compiling.pending():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(command: Callable[..., Any], arguments: list[str]) -> int:
    debug = "--debug" in arguments
    # --debug is understood at any place.
    rest = [a for a in arguments if a != "--debug"]
    try:
        command(rest, prog_name="hesim", standalone_mode=True)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except Exception as error:
        hidden = _hidden() if isinstance(error, ImportError) else None
        if hidden is not None and not debug:
            make_console(error=True, whole=True).print(f"hesim: {hidden}", style="red")
            return REFUSED
        if debug or not _is_ours(error):
            raise
        name = type(error).__name__
        make_console(error=True, whole=True).print(f"hesim: {name}: {error}", style="red")
        return REFUSED
    return 0


def _hidden() -> str | None:
    """Which of our packages another one of its name hides, and what to do; None if none is."""
    home = Path(__file__).resolve().parent.parent.parent
    for name in ("approx", "hesim", "models", "he_backend"):
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
        found = [Path(place).resolve() for place in places if place]
        if found and not any(path.is_relative_to(home / name) for path in found):
            return (
                f"the package {name} at {found[0]} hides the one that hesim brings: start from "
                "another folder, take that one off PYTHONPATH, or rename it"
            )
    return None


def _is_ours(error: Exception) -> bool:
    """Whether an error of our packages was raised on purpose and says what to do next."""
    from hesim.errors import HesimError

    # A file or folder that cannot be read or written is named by the system's own message.
    return isinstance(error, HesimError | OSError)
