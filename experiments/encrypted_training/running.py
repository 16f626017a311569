"""An encrypted training: step after step under one set of keys, each going on from the ciphertexts
that the one before left; shown live, kept, and resumed at whatever point it was stopped.

The server works on ciphertexts alone. The client, which is this process and those that it starts,
holds sentences, labels and the secret key: it decrypts logits, so it knows the loss, and reads what
is trained when a model is to be saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

import he_backend
from experiments.console import Display, Update
from experiments.encrypted_training.margins import cause
from experiments.encrypted_training.predicting import Beside
from experiments.encrypted_training.preparing import Planned, save_trained
from experiments.encrypted_training.rehearsing import REHEARSED, scores_of, state_error
from experiments.encrypted_training.states import latest, load_state, save_state
from experiments.errors import ExperimentError
from experiments.training.finetune import MODEL
from experiments.training.logbook import Logbook
from experiments.validation.encrypting import said_before
from experiments.validation.folder import RunFolder
from he_backend.errors import BackendError, RunFolderError
from he_backend.expected import expected_seconds
from he_backend.machines.table import DEFAULT_MACHINE, find
from he_backend.sessions import Session
from he_backend.steps import Step
from hesim.circuit.plain.errors import ValueRangeError
from hesim.errors import ArgumentError
from models.recipes.encrypted_training import Inputs, State, Watched
from models.sites.sites import join_ranges

__all__ = ["Check", "Running", "run_encrypted"]

Check = Literal["every", "first", "none"]
"""Steps that are evaluated in the clear beforehand, on plain vectors, too: every one, the first, or
none. But for "none" the exact step goes on beside the encrypted one, so that its loss is shown and
a value that would leave its domain stops the training before it is lost."""

_SMALLER = (
    ": a smaller loss_scale under [encrypted] makes gradients and moments smaller, a smaller alpha "
    "under [training] what the adapters add"
)
"""What to do about values that are too large for a bootstrap."""

_RECENT = 8
"""Steps by which the time left is estimated."""


@dataclasses.dataclass(frozen=True)
class Running:
    """How a training is run.

    Attributes:
      backend: a machine of the table. workers: processes that evaluate.
      check: see `Check`.
      start: step of a rehearsal whose state is encrypted to begin with; 0: the first.
      every: steps between two saved models, 0: at the end alone.
      cluster: of Dask, whose workers evaluate instead, as for `he_backend.run`.
    """

    backend: str = DEFAULT_MACHINE
    workers: int = 2
    check: Check = "first"
    start: int = 0
    every: int = 0
    cluster: Any = None

    def __post_init__(self) -> None:
        if self.check not in get_args(Check):
            raise ArgumentError(f"check={self.check!r} is one of {', '.join(get_args(Check))}")

    @property
    def encrypts(self) -> bool:
        return find(self.backend).encrypts

    @property
    def name(self) -> str:
        """Of what this run leaves in the folder."""
        own = "encrypted" if self.encrypts else "plain"
        return f"{own}-from-{self.start}" if self.start else own


def run_encrypted(
    planned: Planned,
    folder: RunFolder,
    show: Display,
    how: Running,
) -> None:
    """Train encrypted, or do what is left of it. Writes `metrics.csv`, model folders, and the stage
    `how.name`. It may be stopped at any time, by Ctrl-C too: what a step has finished is kept.

    Raises ExperimentError where a value would leave its polynomial's domain, or the run fails; it
    names the step, and what is kept. Others as `he_backend.session`.
    """
    if folder.done(how.name):
        _forget(folder, how)
        return
    if not 0 <= how.start < planned.steps:
        raise ExperimentError(f"there are {planned.steps:,} steps: begin at one before the last")
    begin = planned.state
    if how.start:
        begin = load_state(folder, REHEARSED, how.start, planned.state)
    _Run(planned, folder, show, how, begin).go()


class _Run:
    """One attempt. begin: the state before step `how.start`, which is encrypted by the client."""

    def __init__(
        self, planned: Planned, folder: RunFolder, show: Display, how: Running, begin: State
    ) -> None:
        self.planned, self.folder, self.show, self.how = planned, folder, show, how
        self.first, self.begin = how.start, begin
        if not how.encrypts and (saved := latest(folder, how.name)):
            self._begins(saved)
        if folder.done(self.again):
            self._begins(folder.figures(self.again)["step"])
        self.exact = {how.start: begin}
        self.simulated = Beside(planned, how.start, begin)
        self.exact_losses: dict[int, float] = {}
        self.seconds: list[float] = []
        self.expected: list[float] = []
        if how.encrypts and how.cluster is None:  # what a cluster takes, nobody knows before
            self.expected.append(expected_seconds(planned.circuit, workers=how.workers))
        self.note, self.number, self.since = "", -1, time.monotonic()
        self.update: Update = lambda done, note, left: None

    def go(self) -> None:
        what = "encrypted" if self.how.encrypts else "on plain vectors, nothing encrypted"
        total = self.planned.steps - self.how.start
        title = f"{what}, {total:,} steps"
        with self.show.bar(title, 1.0) as self.update, said_before(self.show):
            self._train()

    def _train(self) -> None:
        planned, how = self.planned, self.how
        with (
            he_backend.session(
                planned.program,
                circuit=planned.circuit,
                backend=how.backend,
                workers=how.workers,
                cluster=how.cluster,
                run_dir=self.folder.path / f"{how.name}.server" if how.encrypts else None,
                client_dir=self.folder.path / f"{how.name}.client" if how.encrypts else None,
                progress=self._told,
            ) as session,
            contextlib.ExitStack() as held,
        ):
            log: Logbook | None = None
            for step in self._steps(session):
                log = log or held.enter_context(Logbook(self.out, step.number))
                figures = self._figures(step)
                log.write(step.number + 1, figures)
                if self._saves(step.number):
                    self._save(step, figures)
            self._finish()
        _forget(self.folder, how)

    @property
    def out(self) -> Path:
        """Where figures and models go: those of a whole encrypted training to the top."""
        whole = self.how.name == "encrypted"
        return self.folder.path if whole else self.folder.path / self.how.name

    @property
    def again(self) -> str:
        """The stage that says of which saved state it was begun again."""
        return f"{self.how.name}-again"

    def _begins(self, saved: int) -> None:
        """Begin with the state that was saved after so many steps."""
        self.first = saved
        self.begin = load_state(self.folder, self.how.name, saved, self.begin)

    def _saves(self, number: int) -> bool:
        return saves(number + 1, self.planned.steps, self.how.every)

    def _steps(self, session: Session) -> Iterator[Step]:
        """Finished steps, the last one of an earlier attempt first. Where no encrypted state is
        whole, those since the model that was saved last are made again.
        """
        try:
            yield from self._asked(session)
        except RunFolderError as error:
            saved = latest(self.folder, self.how.name)
            if self.number >= 0 or saved <= self.first:
                raise self._failed(error) from error
            self.show.warn(
                f"{error}. Begun again with the state that was saved after step {saved:,}"
            )
            for batch in session.batches:
                session.forget(batch)
            self.folder.save(self.again, {"step": saved})
            self._begins(saved)
            yield from self._steps(session)
        except (BackendError, ValueRangeError) as error:
            raise self._failed(error) from error

    def _asked(self, session: Session) -> Iterator[Step]:
        how = self.how
        return session.steps(
            self._before,
            self._inputs,
            count=self.planned.steps,
            first=self.first,
            check=lambda k: how.check == "every" or (how.check == "first" and k == self.first),
            read=self._saves,
            ahead=self.planned.inputs,
        )

    def _failed(self, error: Exception) -> ExperimentError:
        if self.number < 0:
            return ExperimentError(f"{error}; or begin anew, with --fresh")
        bends = self.planned.circuit.bootstrap is not None and isinstance(error, ValueRangeError)
        return ExperimentError(
            f"step {self.number + 1:,} of {self.planned.steps:,} failed: {error}. The same command "
            f"goes on from {self.folder.path}; other settings begin anew, in another --out"
            + (_SMALLER if bends else "")
        )

    def _before(self, number: int) -> State:
        """The state before a step as this process knows it: the one that it encrypts; later ones
        exact, or of unchecked ones the count alone.
        """
        if number == self.first:
            return self.begin
        if self.how.check != "none":
            return self._exact_before(number)
        return _counted(self.begin, number - self.first)

    def _inputs(self, number: int) -> Inputs:
        """The arguments of a step that is about to be run; what the exact one gives is noted."""
        if self.number < 0 and number > self.how.start:
            self.show.say(f"going on from step {number:,}")
        if self.number < 0:
            self._at(number)
        inputs = self.planned.inputs(number)
        if self.how.check != "none":
            self.exact_losses[number] = self._checked(number, inputs)
        return inputs

    def _at(self, number: int) -> None:
        """This step is worked at from now on."""
        self.number, self.since = number, time.monotonic()

    def _figures(self, step: Step) -> dict[str, float]:
        """Of a finished step."""
        report, number, planned = step.report, step.number, self.planned
        figures: dict[str, float] = {"rate": planned.rate(number)}
        if number in self.exact_losses:
            figures["exact_loss"] = self.exact_losses.pop(number)
        logits = np.asarray(step.outputs[2])
        figures["loss"] = planned.training.loss(logits, planned.batch(number))
        if not math.isfinite(figures["loss"]):
            raise ExperimentError(
                f"step {number + 1:,} gave logits that are no numbers: rehearse it (--rehearse), "
                "which names the site whose domain is left"
            )
        figures |= {
            "seconds": report.seconds,
            "core_seconds": report.core_seconds,
            "refreshes": report.refreshes,
            "peak_bytes": report.peak_bytes if report.encrypted else 0,
        }
        seconds = time.monotonic() - self.since
        if not report.tasks or report.skipped < report.tasks:  # what is read back takes no time
            self.seconds.append(seconds)
        self._show(number + 1, figures, seconds)
        self._at(number + 1)
        return figures

    # The exact step beside it

    def _exact_before(self, number: int) -> State:
        """The exact state before this step."""
        while (last := max(self.exact)) < number:
            self._goes_on(
                last, self.planned.training.watched(self.exact[last], self.planned.inputs(last))
            )
        return self.exact[number]

    def _goes_on(self, number: int, found: Watched) -> None:
        """Keep the state that exact step `number` gave, and those before it that may be asked for
        again.
        """
        self.exact[number + 1] = found.state
        self.exact.pop(number + 1 - _RECENT, None)

    def _checked(self, number: int, inputs: Inputs) -> float:
        """The loss of the exact step. ExperimentError if a value leaves its polynomial's domain: it
        would make the encrypted step worthless, and nobody could see it.
        """
        found = self.planned.training.watched(self._exact_before(number), inputs)
        left = {name: float(share) for name, share in found.outside.items() if float(share) > 0}
        if left:
            met = join_ranges([{name: found.ranges[name] for name in left}])
            worst = cause(self.planned.training, met)
            raise ExperimentError(
                f"step {number + 1:,} would leave the domain of {worst.name}: it meets "
                f"[{worst.met[0]:.4g}, {worst.met[1]:.4g}], the polynomial holds on "
                f"[{worst.domain[0]:.4g}, {worst.domain[1]:.4g}]. It was not run; what the step "
                f"before left is kept in {self.folder.path}. Begin anew, in another --out, with "
                f"{worst.remedy}"
            )
        self._goes_on(number, found)
        return self.planned.training.loss(found.logits, self.planned.batch(number))

    # What a person sees

    def _share(self, done: float) -> float:
        return (done - self.how.start) / (self.planned.steps - self.how.start)

    def _left(self, done: float) -> float | None:
        """Seconds left, by the last steps, and before the first by what the plan says; None where
        that is of ciphertexts and nothing is encrypted.
        """
        each = self.seconds[-_RECENT:] or self.expected
        return (self.planned.steps - done) * sum(each) / len(each) if each else None

    def _told(self, p: he_backend.Progress) -> None:
        """A task of the step that is being evaluated."""
        done = self.number + p.fraction
        task = f"task {p.tasks_done}/{p.tasks_total}" if p.tasks_total else ""
        note = ", ".join(filter(None, (self.note or f"step {self.number + 1:,}", task)))
        self.update(self._share(done), note, self._left(done))

    def _show(self, done: int, figures: Mapping[str, float], seconds: float) -> None:
        exact = f" (exact {figures['exact_loss']:.4f})" if "exact_loss" in figures else ""
        self.note = f"step {done:,}, loss {figures['loss']:.4f}{exact}, {seconds:,.0f} s"
        self.update(self._share(done), self.note, self._left(done))

    # What is kept

    def _save(self, step: Step, figures: Mapping[str, float]) -> None:
        """Keep what the key holder read of a step: its state, and a model's folder."""
        trained, optimizer, _ = step.outputs
        like = self.planned.state
        leaves = [
            np.asarray(new, np.asarray(old).dtype)
            for new, old in zip(
                jax.tree.leaves((trained, optimizer)), jax.tree.leaves(like), strict=True
            )
        ]
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        done = step.number + 1
        scores = scores_of(self.planned, state)
        kept: dict[str, Any] = {"step": done, "scores": scores}
        kept |= self._errors(state, done)
        save_state(self.folder, self.how.name, done, state, kept)
        notes = {"step": done, "steps": self.planned.steps, "history": [kept | dict(figures)]}
        save_trained(self.out / MODEL, self.planned, state, notes | {"trained": self.what})
        said = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.show.say(f"step {done:,}: model in {self.out / MODEL}; validation {said}")

    def _errors(self, state: State, done: int) -> dict[str, float]:
        """How far a state after so many steps is from the exact one, and was expected to be."""
        if self.how.check == "none":
            return {}
        exact = self._exact_before(done)
        found = {"error_bits": state_error(state, exact)}
        if self.how.encrypts:
            found |= self.simulated.figures(done, exact)
        return found

    @property
    def what(self) -> str:
        return "encrypted" if self.how.encrypts else "on plain vectors"

    def _finish(self) -> None:
        steps = self.planned.steps
        state = load_state(self.folder, self.how.name, steps, self.planned.state)
        figures: dict[str, Any] = {
            "steps": steps,
            "start": self.how.start,
            "backend": self.how.backend,
            "encrypted": self.how.encrypts,
            "validation": scores_of(self.planned, state),
            "test": scores_of(self.planned, state, "test"),
        }
        if self.how.check != "none":
            exact = self._exact_before(steps)
            figures |= self._errors(state, steps)
            figures |= {
                "exact_validation": scores_of(self.planned, exact),
                "exact_test": scores_of(self.planned, exact, "test"),
            }
        self.folder.save(self.how.name, figures)


def saves(done: int, steps: int, every: int) -> bool:
    """Whether the model is saved after so many steps."""
    return done == steps or (every > 0 and done % every == 0)


def _forget(folder: RunFolder, how: Running) -> None:
    """Remove what a finished run needed: ciphertexts, and the client's secret key."""
    for side in ("server", "client"):
        shutil.rmtree(folder.path / f"{how.name}.{side}", ignore_errors=True)


def _counted(state: State, steps: int) -> State:
    """A state whose public counts are those after so many steps more; the rest is not looked at."""
    return jax.tree.map(
        lambda leaf: leaf + steps if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf, state
    )
