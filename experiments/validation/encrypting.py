"""A planned forward pass, batch after batch: encrypted, evaluated, decrypted, compared, noted.

What is finished stays finished: a batch leaves its figures and arrays in the run folder, and one
that was interrupted goes on from the tasks that it had done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import he_backend
from experiments.console import Display, Update
from experiments.planning import Arguments, forward_arguments
from experiments.validation.folder import RunFolder
from he_backend.clusters.cluster import Cluster
from he_backend.errors import RunFolderWarning
from he_backend.machines.table import find
from he_backend.processes.memory import peak_bytes
from he_backend.report.environment import environment
from he_backend.sessions import Session
from hesim.circuit.circuit import Circuit
from hesim.errors import ValueOverflowWarning
from hesim.program import Equation
from models.data.batches import Batch, select_rows
from models.data.datasets import Dataset
from models.encrypted.forward import simulated_forward
from models.nn.encoder import Model
from models.nn.lora import Params
from models.sites.sites import Range, site_names

_ROOT = Path(__file__).resolve().parents[2]

_KEYS, _LEAST_KEYS = 8, 4
"""Random keys under which errors are predicted: of one batch, and at least of each of several."""

__all__ = [
    "Forward",
    "Shown",
    "describe_dataset",
    "encrypt",
    "note_plan",
    "said_before",
    "site_rows",
]


@dataclasses.dataclass(frozen=True)
class Forward:
    """A compiled forward pass, and all rows that go through it.

    Attributes:
      circuit: of one batch; arguments are weights, embedded rows, mask.
      model: the polynomial twin that was traced.
      params: its weights, public.
      rows: token ids and masks, of as many tokens as the Circuit has.
      batch: rows side by side in the slots.
      answer: "logits", or "embeddings", of the Circuit.
      answers: what the client makes of a batch's decrypted outputs; by default nothing else.
      profile: of the noise that is simulated.
    """

    circuit: Circuit
    model: Model
    params: Params
    rows: Batch
    batch: int
    answer: str = "logits"
    answers: Callable[[np.ndarray], np.ndarray] = np.asarray
    profile: str = "seal"

    @property
    def batches(self) -> int:
        return -(-len(self.rows.tokens) // self.batch)

    def chosen(self, k: int) -> np.ndarray:
        """Row numbers of batch k, filled up with the first ones; `count` of them are its own."""
        return np.arange(k * self.batch, (k + 1) * self.batch) % len(self.rows.tokens)

    def count(self, k: int) -> int:
        """How many rows of batch k are its own."""
        return min(self.batch, len(self.rows.tokens) - k * self.batch)

    @functools.cached_property
    def simulate(self) -> Callable[..., Any]:
        """(key, weights, rows, mask) -> outputs with simulated noise, compiled once for all
        batches.
        """
        forward = simulated_forward(
            *(self.model, self.circuit.params, self.profile, self.circuit, self.answer)
        )
        return jax.jit(lambda *args: forward(*args)[0])

    def simulated(self, k: int) -> np.ndarray:
        """The outputs of batch k under one random key, simulated."""
        return np.asarray(self.simulate(jax.random.key(k), *self.arguments(k)))

    def arguments(self, k: int) -> Arguments:
        """(weights, embedded rows to encrypt, mask) of batch k."""
        return forward_arguments(self.model, self.params, select_rows(self.rows, self.chosen(k)))


def note_plan(forward: Forward, seconds: float, folder: RunFolder, display: Display) -> None:
    """Writes "plan" and `program.txt`, and says what the run will spend.

    seconds: that compiling took.
    """
    circuit = forward.circuit
    program = circuit.program
    assert program is not None
    (folder.path / "program.txt").write_text(f"{program}\n", encoding="utf-8")
    kinds = Counter(equation.name for equation in program.ops)
    tap, refresher = circuit.outputs[0], circuit.refresher
    assert tap is not None
    figures = {
        "listing": str(program),
        "operations": dict(kinds.most_common()),
        "labels": [_label(equation) for equation in program.ops],
        "depth": program.depth,
        "output": tap.op,
        "ledger": dataclasses.asdict(circuit.ledger),
        "instructions": len(circuit.kind),
        "ring": _ring(circuit),
        "refresher": {"name": refresher.name, "interactive": refresher.interactive},
        "batch": forward.batch,
        "batches": forward.batches,
        "seconds": seconds,
        "environment": environment(),
    }
    if not folder.done("plan"):
        folder.save("plan", figures)
    _say_plan(display, figures, folder)


def _label(equation: Equation) -> str:
    """Name of an operation; of a polynomial, the function that it stands in for."""
    if equation.name != "polynomial":
        return equation.name
    return f"polynomial {equation.params['poly'].name}"


def _say_plan(display: Display, figures: dict[str, Any], folder: RunFolder) -> None:
    ledger, ring = figures["ledger"], figures["ring"]
    kinds = ", ".join(f"{count} {name}" for name, count in figures["operations"].items())
    security = f"{ring['security']}-bit security" if ring["security"] else "NO SECURITY"
    display.say(
        f"traced: {sum(figures['operations'].values())} operations on encrypted values, at least "
        f"{figures['depth']} levels deep "
        f"({folder.path / 'program.txt'})\n",
        dim=f"  {kinds}",
    )
    display.say(
        f"compiled for N = 2^{ring['log_n']}, {ring['levels']} levels, log2(QP) = "
        f"{ring['log_qp']:.0f}, {security}: {figures['instructions']:,} ciphertext instructions"
    )
    names = ("products", "plain_products", "rotations", "relinearizations", "rescales", "refreshes")
    display.say("  " + ", ".join(f"{ledger[name]:,} {name.replace('_', ' ')}" for name in names))
    display.say(f"  {_refreshing(figures)}")
    boots = ledger["refreshes"] and not figures["refresher"]["interactive"]
    also = "the relinearization key, those of bootstraps" if boots else "the relinearization key"
    display.say(
        f"  keys to make: {ledger['rotation_keys']} rotation keys and {also}, "
        f"{ledger['key_bytes'] / 1e6:,.0f} MB"
    )


def _refreshing(figures: dict[str, Any]) -> str:
    """Who refreshes, and whether the key holder takes part."""
    ledger = figures["ledger"]
    count, rounds = f"{ledger['refreshes']:,}", ledger["refresh_rounds"]
    if figures["refresher"]["interactive"]:
        return (
            f"{count} ciphertexts are refreshed by the key holder in {rounds} rounds: an "
            "interactive evaluation"
        )
    return (
        f"{count} bootstraps on the server, at most {rounds} of them in sequence: the key holder "
        "takes no part between encryption and decryption"
    )


def encrypt(
    forward: Forward,
    backend: str,
    folder: RunFolder,
    display: Display,
    compared: int | None = None,
    cluster: Cluster | None = None,
) -> None:
    """Every batch encrypted, evaluated and decrypted, all under one set of keys. Writes
    "encrypted-<k>" for each.

    compared: so many batches, the first ones, are compared operation by operation, too; None: all.
      The answers are compared of all.
    cluster: of Dask, whose workers evaluate.
    """
    waiting = [k for k in range(forward.batches) if not folder.done(f"encrypted-{k}")]
    shown = Shown()
    if waiting:
        with he_backend.session(
            forward.circuit,
            backend=backend,
            compare=compared is None or compared > 0,
            keys=max(_LEAST_KEYS, _KEYS // (compared or forward.batches)),
            outside="warn",
            run_dir=folder.encrypted if find(backend).encrypts or cluster else None,
            cluster=cluster,
            progress=shown,
        ) as session:
            for k in waiting:
                compare = compared is None or k < compared
                _encrypt_one(session, forward, folder, display, k, shown, compare)
                session.forget(k)
    folder.forget()


def _encrypt_one(
    session: Session,
    forward: Forward,
    folder: RunFolder,
    display: Display,
    k: int,
    shown: Shown,
    compare: bool,
) -> None:
    started = time.monotonic()
    title = "encrypted" if session.options.encrypts else "on plain vectors"
    title += f", batch {k + 1} of {forward.batches}" if forward.batches > 1 else ""
    with display.bar(title, 1.0) as update, said_before(display) as said:
        shown.on(update)
        report = session.run(*forward.arguments(k), batch=k, compare=compare)
        shown.phase("simulating under one random key")
        simulated = forward.answers(forward.simulated(k))
        what = "the exact and the predicted results" if compare else "the exact results"
        update(1.0, f"compared with {what}", 0.0)
    for message in report.outside:
        if message not in said:
            display.warn(message)
    encrypted, reference = forward.answers(report.outputs), forward.answers(report.exact)
    # Of a batch that was filled up, its own come first.
    own = forward.count(k) * len(encrypted) // forward.batch
    figures = {
        "sentences": own,
        "encrypted": report.encrypted,
        "backend": report.backend,
        "seconds": report.evaluation_seconds,
        "key_seconds": report.key_seconds,
        "core_seconds": report.core_seconds,
        "bootstrapped_seconds": report.bootstrapped_seconds,
        "compare_seconds": max(0.0, time.monotonic() - started - report.seconds),
        "peak_bytes": report.peak_bytes if report.encrypted else 0,
        "own_peak_bytes": peak_bytes(),
        "tasks": report.tasks,
        "skipped": report.skipped,
        "replaced": report.replaced,
        "outside": list(report.outside),
        "compared": report.compared,
        "as_predicted": report.as_predicted,
        "verdict": report.verdict(),
        "ops": [_operation(op) for op in report.ops],
    }
    arrays = {
        "encrypted": encrypted,
        "reference": reference,
        "simulated": simulated,
    }
    folder.save(f"encrypted-{k}", figures, arrays)


@contextlib.contextmanager
def said_before(display: Display) -> Iterator[set[str]]:
    """Say at once what a bootstrap is not made for, which it makes no sense to wait for; other
    warnings are in the report, but for work that is lost. What was said is handed out.
    """
    said: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("default", RunFolderWarning)
        warnings.simplefilter("always", ValueOverflowWarning)
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
            if not issubclass(category, ValueOverflowWarning):
                usual(message, category, *rest)
            elif str(message) not in said:
                said.add(str(message))
                display.warn(str(message))

        warnings.showwarning = show
        yield said


class Shown:
    """Phases and tasks of an encrypted run on one bar, whose length is that of the tasks."""

    def __init__(self) -> None:
        self.on(lambda done, note, left: None)

    def on(self, update: Update) -> None:
        """From now on another bar, of the next batch."""
        self._update = update
        self._done = 0.0
        self._text = ""

    def __call__(self, p: he_backend.Progress) -> None:
        self._done = p.fraction
        task = f"task {p.tasks_done}/{p.tasks_total}" if p.tasks_total else ""
        note = ", ".join(filter(None, (p.op, task)))
        self._update(p.fraction, note, p.eta)

    def phase(self, text: str) -> None:
        self._text = text
        self._update(self._done, text, None)

    def at(self, fraction: float, note: str = "", left: float | None = None) -> None:
        if not note:  # of a task, the call has told it
            self._update(self._done, f"{self._text}, {fraction:.0%}", None)


def _operation(op: he_backend.OpRecord) -> dict[str, Any]:
    row = dataclasses.asdict(op)
    row["source"] = str(op.source).replace(f"{_ROOT}{os.sep}", "")
    return row


def site_rows(
    model: Model, met: Mapping[str, Range], outside: Mapping[str, float] | None = None
) -> Iterator[dict[str, Any]]:
    """A row of figures for each polynomial of a twin: what it is, what it met, and the share of
    values outside its domain.
    """
    functions, fitted = dict(model.sites.entries), model.sites.ranges()
    for name in site_names(model.config):
        if name not in functions or name not in met:
            continue
        function = functions[name]
        yield {
            "name": name,
            "degree": int(function.degree),
            "depth": int(function.plan.depth),
            "max_error": float(function.max_error),
            "certified": bool(function.certified),
            "fitted": [float(v) for v in fitted[name]],
            "met": [float(v) for v in met[name]],
            "outside": float((outside or {}).get(name, 0.0)),
        }


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """What a report says of a data set."""
    return {
        "name": dataset.name,
        "description": dataset.description,
        "task": dataset.task,
        "metric": dataset.metrics[0],
        "classes": list(dataset.classes),
        "sizes": {name: len(getattr(dataset, name)) for name in ("train", "validation", "test")},
    }


def _ring(circuit: Circuit) -> dict[str, Any]:
    params = circuit.params
    names = ("log_n", "levels", "scale_bits", "first_bits", "special_bits", "security", "digits")
    return {
        **{name: getattr(params, name) for name in names},
        "log_qp": float(params.log_qp),
        "slots": circuit.slots,
    }
