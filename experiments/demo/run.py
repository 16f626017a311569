"""`hesim demo`: train on real sentences, run held-out ones encrypted, compare, and report.

The stages are those of `experiments.demo.stages` and `experiments.validation.encrypting`; what is
finished is not done again.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from experiments import machines
from experiments.console import Display
from experiments.demo import bootstrapping, stages
from experiments.demo.settings import Settings
from experiments.validation.encrypting import encrypt
from experiments.validation.folder import RunFolder
from experiments.validation.results import Results
from experiments.xla_cache import keep_compiled
from he_backend.machines.table import find

__all__ = ["run_demo"]


def run_demo(
    settings: Settings,
    run_dir: str | Path | None = None,
    *,
    fresh: bool = False,
    display: Display | None = None,
    compiled: str | Path | None = None,
) -> tuple[Results, RunFolder]:
    """Run the demo, or what is left of it, and write `report.html` and `results.json`.

    Args:
      settings: what to run.
      run_dir: where its work is kept and found again; by default `settings.default_folder()`.
      fresh: start again from nothing.
      display: what a person sees; by default the console.
      compiled: where compiled programs are kept; by default in the run folder, until it is
        finished.

    Returns:
      The results and the run folder. Guarantees that were not kept are in `Results.broken`.

    Raises:
      ExperimentError: the folder belongs to another run, or too many sentences are asked for.
      DataError, and the errors of `hesim` and `he_backend`.

    Examples:
      >>> import pathlib, tempfile
      >>> from experiments import Settings, run_demo
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> _ = (folder / "notes.txt").write_text("not a run")
      >>> run_demo(Settings(), folder)
      Traceback (most recent call last):
          ...
      experiments.errors.ExperimentError: ... is not empty and holds no run; ...
    """
    from experiments.validation.report import write_report

    machines.need(settings.backend)
    show = display if display is not None else Display()
    path = Path(run_dir) if run_dir is not None else settings.default_folder()
    folder = RunFolder.claim(path, settings, fresh=fresh)
    with folder.held():
        show.say(
            f"run folder: {folder.path}  ",
            dim="(interrupt at any time: the same command resumes)",
        )
        if not (_encrypted(folder) and bootstrapping.finished(settings, folder)):
            with keep_compiled(folder.path / "compiled" if compiled is None else compiled):
                _work(settings, folder, show)
            shutil.rmtree(folder.path / "compiled", ignore_errors=True)
        else:
            show.say("all stages were finished before; --fresh starts again")
        results = Results.load(folder)
        folder.save("results", results.summary())
        write_report(results, folder.path / "report.html")
    return results, folder


def _work(settings: Settings, folder: RunFolder, show: Display) -> None:
    count = 4 + bootstrapping.wanted(settings)
    show.stage(f"1/{count}  Data")
    data = stages.prepare(settings)
    sizes = [len(part.tokens) for part in (data.train, data.validation, data.test)]
    show.say(
        f"{data.dataset.description}\n{sizes[0]:,} sentences to train on, {sizes[1]:,} for "
        f"validation, {sizes[2]:,} held out; {data.config.vocabulary:,} word pieces"
    )
    show.stage(f"2/{count}  Training: exact, then through polynomials and simulated noise")
    trained = stages.train(settings, data, folder, show)
    for name, function in trained.sites.entries:
        low, high = trained.ranges_fitted[name]
        show.say(
            "",
            dim=f"  {name:<32} degree {function.degree} on {low:.3g} to {high:.3g}, "
            f"error {function.max_error:.1e}",
        )
    show.stage(f"3/{count}  Trace and compile")
    planned = stages.plan(settings, data, trained, folder, show)
    encrypted = find(settings.backend).encrypts
    show.stage(
        f"4/{count}  {settings.sentences} held-out sentences, "
        + ("encrypted" if encrypted else "on plain vectors: nothing is encrypted")
    )
    if not _encrypted(folder):
        encrypt(planned, settings.backend, folder, show)
    if bootstrapping.wanted(settings):
        show.stage(f"5/5  The first {settings.bootstrapped}, bootstrapped: no key holder")
        bootstrapping.bootstrap(settings, data, trained, folder, show)


def _encrypted(folder: RunFolder) -> bool:
    """Whether all batches were run."""
    if not (folder.done("training") and folder.done("plan")):
        return False
    batches = int(folder.figures("plan")["batches"])
    return all(folder.done(f"encrypted-{k}") for k in range(batches))
