"""`hesim encrypted-finetune`: rehearsed, or run encrypted, in one folder that the same command
resumes.
"""

from __future__ import annotations

import os
from pathlib import Path

from experiments import machines
from experiments.console import Display
from experiments.encrypted_training.preparing import Planned, claim, fitted, plan_steps, prepare
from experiments.encrypted_training.rehearsing import rehearse
from experiments.encrypted_training.report import Found, table, write_report
from experiments.encrypted_training.running import Running, run_encrypted
from experiments.encrypted_training.settings import EncryptedJob
from experiments.training.finetune import remember
from experiments.training.signals import until_signalled
from experiments.validation.folder import RunFolder
from he_backend.expected import expected_seconds

__all__ = ["run_encrypted_training", "show_report"]


def run_encrypted_training(
    job: EncryptedJob,
    out: str | Path,
    how: Running | None,
    *,
    data_dir: str | None = None,
    memory: float | None = None,
    fresh: bool = False,
    display: Display | None = None,
) -> tuple[bool, RunFolder]:
    """Rehearse a training, or run it encrypted, or do what is left of either.

    Args:
      job: what is trained. out: its run folder. how: None for a rehearsal.
      data_dir: GLUE's folder.
      memory: bytes, as for `hesim.compile`.
      fresh: start again from nothing.
      display: what a person sees; by default the console.

    Returns:
      Whether it is finished, and the run folder. Ctrl-C ends a rehearsal after its step, and an
      encrypted run at once, as KeyboardInterrupt.

    Raises:
      ExperimentError: a folder of another run, a rehearsal that does not hold what is asked for, or
        a step that leaves a domain. DataError, CheckpointError; the errors of `hesim.compile` where
        there is no plan, and those of `he_backend.session`.
    """
    if how is not None:
        machines.need(how.backend)
    show = display if display is not None else Display()
    show.stage("1/3  Data, model, and its polynomials")
    start, data = prepare(job, data_dir, show)
    folder = claim(job, start, data, Path(out), fresh=fresh)
    with folder.held("--out"):
        remember(folder.path, data_dir)
        show.say(f"run folder: {folder.path}  ", dim="(stop at any time: the same command goes on)")
        prepared = fitted(job, start, data, folder)
        show.stage("2/3  Trace and compile one step")
        planned = plan_steps(prepared, folder, show, memory)
        show.say(_by_the_clock(planned, how))
        if how is None:
            show.stage("3/3  Rehearsal: simulated, nothing is encrypted")
            with until_signalled() as stop:
                if not rehearse(planned, folder, show, job.save_every, stop):
                    return False, folder
        else:
            what = "encrypted" if how.encrypts else "on plain vectors: nothing is encrypted"
            show.stage(f"3/3  {planned.steps:,} steps, {what}")
            run_encrypted(planned, folder, show, how)
        show_report(folder, show)
    return True, folder


def show_report(folder: RunFolder, show: Display) -> None:
    """Print the table of a training, finished or not, and write its page. ExperimentError where its
    folder is damaged, or holds no planned step yet.
    """
    found = Found.of(folder)
    show.console.print(table(found))
    for line in found.warnings:
        show.warn(line)
    show.say(f"report: {write_report(found, folder)}")


def _by_the_clock(planned: Planned, how: Running | None) -> str:
    """What a step will take by the clock of this machine, and what other numbers of workers would
    make of it.
    """
    cores = os.cpu_count() or 1
    own = Running().workers if how is None else how.workers
    counts = sorted({1, own, max(cores - 1, 1), cores})
    each = {n: expected_seconds(planned.circuit, workers=n) for n in counts}
    others = [f"{each[n]:,.0f} s with {n:,}" for n in counts if n != own]
    also = f" ({', '.join(others)})" if others else ""
    word = "worker" if own == 1 else "workers"
    return (
        f"  by the clock: {each[own]:,.0f} s a step with {own:,} {word} on {cores:,} cores{also}, "
        f"{planned.steps * each[own] / 3600:.1f} h for {planned.steps:,} steps"
    )
