"""`hesim validate`: any model of ours on held-out rows, in the clear and encrypted, and its report.

What is finished is not done again: the run folder belongs to the model's files, the settings and
the code.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments import machines
from experiments.console import Display
from experiments.planning import Arguments, compile_forward, forward_arguments
from experiments.validation import clear as in_the_clear
from experiments.validation.clear import Clear, Prepared, answers_of
from experiments.validation.encrypting import Forward, encrypt, note_plan
from experiments.validation.folder import RunFolder
from experiments.validation.report import write_report
from experiments.validation.results import Results
from experiments.validation.settings import Validation
from he_backend.clusters.cluster import Cluster
from he_backend.machines.table import find
from models.data.batches import Batch, select_rows
from models.nn.lora import Params

__all__ = ["run_validation", "validate_in_the_clear"]


def validate_in_the_clear(asked: Validation, display: Display) -> bool:
    """Print scores and, for each polynomial, what it met on all held-out rows; whether everything
    lay in its domain. Raises as `run_validation`.
    """
    data = in_the_clear.prepare(asked, display)
    found = in_the_clear.evaluate_in_the_clear(data)
    display.console.print(in_the_clear.render(data, found))
    return not in_the_clear.outside(data, found)


def run_validation(
    asked: Validation,
    out: str | Path | None = None,
    *,
    fresh: bool = False,
    display: Display | None = None,
    cluster: Any = None,
) -> tuple[Results, RunFolder]:
    """Validate a model, or do what is left of it, and write `report.html` and `results.json`.

    Args:
      asked: what to do.
      out: where its work is kept and found again; by default under `runs`.
      fresh: start again from nothing.
      display: what a person sees; by default the console.
      cluster: of Dask, as for `he_backend.run`; where it is computed is no part of the run.

    Returns:
      The results and the run folder. Guarantees that were not kept are in `Results.broken`.

    Raises:
      ExperimentError: no such model, one that the data do not fit, more rows than there are, or a
        folder of another run. BackendError: the machine's library is not there. DataError,
        CheckpointError, and the other errors of `hesim` and `he_backend`.

    Examples:
      >>> from experiments import Validation, run_validation
      >>> run_validation(Validation("runs/no-such-model"))
      Traceback (most recent call last):
          ...
      experiments.errors.ExperimentError: there is no model ...
    """
    machines.need(asked.backend)
    spread_over = Cluster.reached(cluster)
    show = display if display is not None else Display()
    started = time.monotonic()
    show.stage("1/3  Model, data, and both models in the clear")
    data = in_the_clear.prepare(asked, show)
    path = Path(out) if out is not None else asked.default_folder(data.resolved.digest)
    folder = RunFolder.claim(path, data.resolved, fresh=fresh, option="--out")
    with folder.held("--out"):
        show.say(
            f"run folder: {folder.path}  ",
            dim="(interrupt at any time: the same command resumes)",
        )
        if not folder.done("clear"):
            found = in_the_clear.evaluate_in_the_clear(data)
            in_the_clear.note_clear(data, found, time.monotonic() - started, folder)
            _say_clear(data, found, show)
        forward = _plan(data, folder, show)
        encrypts = find(asked.backend).encrypts
        show.stage(
            f"3/3  {len(forward.rows.tokens):,} held-out rows, "
            + ("encrypted" if encrypts else "on plain vectors: nothing is encrypted")
        )
        compared = {"none": 0, "first": 1, "all": None}[asked.compare]
        encrypt(forward, asked.backend, folder, show, compared, spread_over)
        results = Results.load(folder)
        folder.save("results", results.summary())
        write_report(results, folder.path / "report.html")
    return results, folder


def _say_clear(data: Prepared, found: Clear, show: Display) -> None:
    show.console.print(in_the_clear.render(data, found))
    left = in_the_clear.outside(data, found)
    if left:
        worst = ", ".join(f"{n} {share:.3%}" for n, share in sorted(left.items()))
        show.warn(
            f"values left their polynomial's range: {worst}. Fine-tune with a range penalty, or "
            "give a larger margin or wider ranges in the section [twin] of --config"
        )


def _plan(data: Prepared, folder: RunFolder, show: Display) -> Forward:
    """Trace the forward pass of one batch and compile it."""
    show.stage("2/3  Trace and compile")
    started, resolved = time.monotonic(), data.resolved
    asked, length = resolved.validation, resolved.length
    params = data.params | {"embedding": dict(data.params["embedding"])}
    if data.model.config.positions == "learned":  # as many as the traced model has
        params["embedding"]["position"] = params["embedding"]["position"][:length]
    bootstraps = not resolved.refresher.interactive
    circuit = compile_forward(
        data.model,
        resolved.how.ckks,
        resolved.batch,
        resolved.answer,
        samples=_samples(data, params) if bootstraps else (),
        refresh_price=asked.refresh_price,
        objective=asked.objective,
        memory=asked.memory,
        refresher=resolved.refresher,
    )
    made = "logits" if resolved.answer == "logits" else "embeddings"
    rows = _cut(data, np.arange(resolved.rows))
    forward = Forward(
        *(circuit, data.model, params, rows, resolved.batch, made),
        answers_of(resolved.answer),
        profile=resolved.how.profile,
    )
    note_plan(forward, time.monotonic() - started, folder, show)
    return forward


def _cut(data: Prepared, chosen: np.ndarray) -> Batch:
    """Held-out rows of as many tokens as the validation has."""
    rows, length = select_rows(data.test, chosen), data.resolved.length
    return Batch(
        np.asarray(rows.tokens)[..., :length],
        np.asarray(rows.mask)[..., :length],
        rows.targets,
        None if rows.types is None else np.asarray(rows.types)[..., :length],
    )


def _samples(data: Prepared, params: Params) -> list[Arguments]:
    """Arguments of a batch of the last held-out rows, which are encrypted only if all are."""
    count, batch = len(data.test.tokens), data.resolved.batch
    rows = _cut(data, np.arange(count - batch, count) % count)
    return [forward_arguments(data.model, params, rows)]
