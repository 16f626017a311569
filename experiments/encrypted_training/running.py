"""An encrypted training: step after step under one set of keys, each going on from the ciphertexts
that the one before left; shown live, kept, and resumed at whatever point it was stopped.

The server works on ciphertexts alone. The client, which is this process and those that it starts,
holds sentences, labels and the secret key: it decrypts logits, so it knows the loss, and reads what
is trained when a model is to be saved.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

import he_backend
from experiments.console import Display, Update
from experiments.encrypted_training.margins import cause
from experiments.encrypted_training.preparing import Planned, save_trained
from experiments.encrypted_training.rehearsing import REHEARSED, scores_of, state_error
from experiments.encrypted_training.states import latest, load_state, save_state
from experiments.errors import ExperimentError
from experiments.training.finetune import MODEL
from experiments.training.logbook import Logbook
from experiments.validation.folder import RunFolder
from he_backend.errors import BackendError
from he_backend.machines.table import DEFAULT_MACHINE, find
from he_backend.sessions import Session
from hesim.circuit.plain.errors import ValueRangeError
from hesim.errors import ArgumentError
from models.recipes.encrypted_training import Inputs, State
from models.sites.sites import join_ranges

__all__ = ["Check", "Running", "run_encrypted"]

Check = Literal["every", "first", "none"]
"""Steps that are evaluated in the clear beforehand, on plain vectors, too: every one, the first, or
none. But for "none" the exact step goes on beside the encrypted one, so that its loss is shown and
a value that would leave its domain stops the training before it is lost."""

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
    """

    backend: str = DEFAULT_MACHINE
    workers: int = 2
    check: Check = "first"
    start: int = 0
    every: int = 0

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
        return
    if not 0 <= how.start < planned.steps:
        raise ExperimentError(f"there are {planned.steps:,} steps: begin at one before the last")
    begin = planned.state
    if how.start:
        begin = load_state(folder, REHEARSED, how.start, planned.state)
    _Run(planned, folder, show, how, begin).go()


class _Run:
    """One attempt. begin: the state before step `first`, which is encrypted by the client."""

    def __init__(
        self, planned: Planned, folder: RunFolder, show: Display, how: Running, begin: State
    ) -> None:
        self.planned, self.folder, self.show, self.how = planned, folder, show, how
        self.first, self.begin = how.start, begin
        if not how.encrypts and (saved := latest(folder, how.name)):
            self.first, self.begin = saved, load_state(folder, how.name, saved, begin)
        self.exact, self.exact_at = begin, how.start
        self.seconds: list[float] = []
        self.note, self.number = "", self.first
        self.update: Update = lambda done, note, left: None

    def go(self) -> None:
        what = "encrypted" if self.how.encrypts else "on plain vectors, nothing encrypted"
        total = self.planned.steps - self.how.start
        with self.show.bar(f"{what}, {total:,} steps", 1.0) as self.update:
            self._train()

    def _train(self) -> None:
        planned, how, steps = self.planned, self.how, self.planned.steps
        with he_backend.session(
            planned.program,
            circuit=planned.circuit,
            backend=how.backend,
            workers=how.workers,
            run_dir=self.folder.path / f"{how.name}.server" if how.encrypts else None,
            client_dir=self.folder.path / f"{how.name}.client" if how.encrypts else None,
            progress=self._told,
        ) as session:
            at = self._resumed(session)
            if at > how.start:
                self.show.say(f"going on from step {at:,}")
            with Logbook(self.out, at) as log:
                for number in range(at, steps):
                    self.number = number
                    figures = self._one(session, number)
                    log.write(number + 1, figures)
                    if saves(number + 1, steps, how.every):
                        self._save(session, number, figures)
            self._finish()
        for side in ("server", "client") if how.encrypts else ():
            shutil.rmtree(self.folder.path / f"{how.name}.{side}", ignore_errors=True)

    @property
    def out(self) -> Path:
        """Where figures and models go: those of a whole encrypted training to the top."""
        whole = self.how.name == "encrypted"
        return self.folder.path if whole else self.folder.path / self.how.name

    def _resumed(self, session: Session) -> int:
        """The step to begin with: the last one that is finished, which is read back, or the first
        one.
        """
        numbers = range(self.planned.steps - 1, self.first - 1, -1)
        return next((n for n in numbers if session.done(n)), self.first)

    def _one(self, session: Session, number: int) -> dict[str, float]:
        """Step `number`, from 0, encrypted; its figures."""
        planned, how = self.planned, self.how
        inputs = planned.inputs(number)
        self.note, began = f"step {number + 1:,}", time.monotonic()
        figures: dict[str, float] = {"rate": float(inputs.rate)}
        state = self.begin
        if how.check != "none":
            state = self._exact_before(number)
            figures["exact_loss"] = self._checked(number, inputs)
        elif number > self.first:
            state = _counted(self.begin, number - self.first)
        fully = how.check == "every" or (how.check == "first" and number == self.first)
        after = number - 1 if number > self.first else None
        try:
            report = session.run(*state, *inputs, batch=number, after=after, check=fully)
        except (BackendError, ValueRangeError) as error:
            raise ExperimentError(
                f"step {number + 1:,} of {planned.steps:,} failed: {error}. What the step before "
                f"left is kept in {self.folder.path}: the same command goes on from there"
            ) from error
        if number - 2 >= self.first:
            session.forget(number - 2)
        logits = np.asarray(report.outputs[2])
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
        self.seconds.append(time.monotonic() - began)
        self._show(number + 1, figures)
        return figures

    # The exact step beside it

    def _exact_before(self, number: int) -> State:
        """The exact state before this step."""
        while self.exact_at < number:
            inputs = self.planned.inputs(self.exact_at)
            self.exact = self.planned.training.watched(self.exact, inputs).state
            self.exact_at += 1
        return self.exact

    def _checked(self, number: int, inputs: Inputs) -> float:
        """The loss of the exact step. ExperimentError if a value leaves its polynomial's domain: it
        would make the encrypted step worthless, and nobody could see it.
        """
        found = self.planned.training.watched(self.exact, inputs)
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
        self.exact, self.exact_at = found.state, number + 1
        return self.planned.training.loss(found.logits, self.planned.batch(number))

    # What a person sees

    def _share(self, done: float) -> float:
        return (done - self.how.start) / (self.planned.steps - self.how.start)

    def _left(self, done: float) -> float | None:
        """Seconds left, by the last steps; None while there is none."""
        known = self.seconds[-_RECENT:]
        return (self.planned.steps - done) * sum(known) / len(known) if known else None

    def _told(self, p: he_backend.Progress) -> None:
        """A task of the step that is being evaluated."""
        done = self.number + p.fraction
        task = f"task {p.tasks_done}/{p.tasks_total}" if p.tasks_total else ""
        note = ", ".join(filter(None, (self.note, task)))
        self.update(self._share(done), note, self._left(done))

    def _show(self, done: int, figures: Mapping[str, float]) -> None:
        exact = f" (exact {figures['exact_loss']:.4f})" if "exact_loss" in figures else ""
        self.note = f"step {done:,}, loss {figures['loss']:.4f}{exact}, {self.seconds[-1]:,.0f} s"
        self.update(self._share(done), self.note, self._left(done))

    # What is kept

    def _save(self, session: Session, number: int, figures: Mapping[str, float]) -> State:
        """The key holder reads what step `number` left: its state, and a model's folder."""
        trained, optimizer, _ = session.read(number)
        like = self.planned.state
        leaves = [
            np.asarray(new, np.asarray(old).dtype)
            for new, old in zip(
                jax.tree.leaves((trained, optimizer)), jax.tree.leaves(like), strict=True
            )
        ]
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        done = number + 1
        scores = scores_of(self.planned, state)
        kept: dict[str, Any] = {"step": done, "scores": scores}
        if self.how.check != "none":
            kept["error_bits"] = state_error(state, self._exact_before(done))
        save_state(self.folder, self.how.name, done, state, kept)
        notes = {"step": done, "steps": self.planned.steps, "history": [kept | dict(figures)]}
        save_trained(self.out / MODEL, self.planned, state, notes | {"trained": self.what})
        said = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.show.say(f"step {done:,}: model in {self.out / MODEL}; validation {said}")
        return state

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
            figures |= {
                "error_bits": state_error(state, exact),
                "exact_validation": scores_of(self.planned, exact),
                "exact_test": scores_of(self.planned, exact, "test"),
            }
        self.folder.save(self.how.name, figures)


def saves(done: int, steps: int, every: int) -> bool:
    """Whether the model is saved after so many steps."""
    return done == steps or (every > 0 and done % every == 0)


def _counted(state: State, steps: int) -> State:
    """A state whose public counts are those after so many steps more; the rest is not looked at."""
    return jax.tree.map(
        lambda leaf: leaf + steps if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf, state
    )
