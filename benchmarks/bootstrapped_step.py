"""A training step with no key holder after encryption: `python -m benchmarks.bootstrapped_step`.

Forward pass, gradient and AdamW-HE of an encoder with adapters and random weights, planned for
OpenFHE as `hesim encrypted-finetune` plans them, are run encrypted and held against the exact step.
What is trained and its moments are left refreshed, as the next step takes them; the step is the
fourth of a training whose first three are made in the clear. Predicted and measured in one run:
bootstraps, seconds, memory, and errors of all that the step leaves.

    python -m benchmarks.bootstrapped_step             in a small ring, which protects nothing: two
                                                       minutes, 1 GB
    python -m benchmarks.bootstrapped_step --secure    the same step with N = 2^16, at 128 bits: a
                                                       quarter of an hour

`--layers`, `--hidden`, `--tokens`, `--sentences`, `--rank`, `--insecure LOG_N` and `--workers`
change either. Returns 1 if the std of errors of one group is further than `Group.tolerance` from
what `hesim.certify` predicts; 2 if OpenFHE is not there, or the plan wants more memory than is
free.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: figures are for one core

import dataclasses
import math
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import he_backend
import hesim
from benchmarks import bootstrapped
from benchmarks.bootstrapped import command, random_rows, suited_settings
from he_backend.report.html import power_of_two
from hesim.circuit.circuit import Circuit
from hesim.program import Program
from models.config import EncoderConfig
from models.nn.encoder import Model
from models.recipes.encrypted_training import prepare_training
from models.recipes.finetune_settings import FineTune

__all__ = [
    "TOLERANCE",
    "Case",
    "Group",
    "Outcome",
    "Planned",
    "main",
    "measure",
    "planned",
    "table",
]

TOLERANCE = 0.5
"""Bits between the std of a group's errors, measured and predicted, beside what few numbers tell
of their std."""

_MACHINE = "openfhe"
_STEPS = 64
"""Of the training, of which one is run."""

_BEFORE = 3
"""Steps before it in the clear: adapters and moments start at 0, where half of the gradients are
0, too."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is run.

    Attributes:
      layers, hidden, tokens, sentences: of the encoder and its batch; heads are 2, the feed-forward
        part is twice as wide.
      rank: of the adapters, which all projections of attention but the last have.
      insecure: log2 of the ring degree of a ring without security; None for the secure one.
      memory: bytes, as for `hesim.compile`.
      workers: processes that evaluate, among which the cores are divided.
    """

    layers: int = 1
    hidden: int = 32
    tokens: int = 16
    sentences: int = 2
    rank: int = 2
    insecure: int | None = 11
    memory: float | None = None
    workers: int = 1

    @property
    def config(self) -> EncoderConfig:
        """Of the encoder, without adapters."""
        return bootstrapped.Case(self.layers, self.hidden, self.tokens).config


@dataclasses.dataclass(frozen=True)
class Planned:
    """A compiled step, and what it is run on. seconds: of making and planning it, by the clock."""

    case: Case
    program: Program
    circuit: Circuit
    args: tuple[Any, ...]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Group:
    """Errors of some of the numbers that a step leaves.

    Attributes:
      name: of the group. count: of its numbers.
      largest: absolute value among the exact ones.
      std: of their errors, (predicted, measured).
    """

    name: str
    count: int
    largest: float
    std: tuple[float, float]

    @property
    def bits_off(self) -> float:
        """log2 of the std, measured over predicted."""
        return math.log2(self.std[1] / self.std[0])

    @property
    def tolerance(self) -> float:
        """Bits that it may be off: `TOLERANCE`, and three times how far the std of so few normal
        numbers is from theirs.
        """
        return TOLERANCE + 3.0 / (math.log(2.0) * math.sqrt(2.0 * self.count))

    @property
    def sound(self) -> bool:
        """Whether errors are as predicted."""
        return abs(self.bits_off) <= self.tolerance


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one run found. Attributes by (predicted, measured): seconds of all cores, bytes at the
    peak; errors by group; and seconds by the clock, and those of keys.
    """

    planned: Planned
    core_seconds: tuple[float, float]
    peak_bytes: tuple[float, float]
    groups: tuple[Group, ...]
    seconds: float
    key_seconds: float

    @property
    def sound(self) -> bool:
        """Whether the errors of all groups are as predicted."""
        return all(group.sound for group in self.groups)


def planned(case: Case) -> Planned:
    """The Circuit of a step of a random encoder, and the arguments of the step that is run.

    Raises as `hesim.compile` does, and ParameterError where the ring has no bootstrap.
    """
    rng, began = np.random.default_rng(0), time.monotonic()
    config, chosen = case.config, suited_settings(case.insecure)
    rows = random_rows(config, 64, rng)
    rows = rows._replace(targets=rng.integers(0, config.classes, 64).astype(np.int32))
    settings = FineTune(batch=case.sentences, rank=case.rank, learning_rate=1e-2, warmup=0.0)
    training, params = prepare_training(
        *(config, Model(config).init(jax.random.key(0)), rows, config.classes),
        *(settings, chosen.how),
        length=config.sequence,
        steps=_STEPS,
    )
    (state, frozen), batches = training.begin(params), training.batch_of(rows)
    inputs = [training.inputs(frozen, *batches(k)) for k in range(_BEFORE + 1)]
    program = training.program(state, inputs[0])
    samples = training.samples(state, frozen, batches)
    circuit = training.compile(
        program,
        refresher=chosen.refresher,
        interactive=False,
        calibration=hesim.calibrate(program, [(*a, *b) for a, b in samples]),
        memory=case.memory,
    )
    for each in inputs[:-1]:
        state = training.watched(state, each).state
    return Planned(case, program, circuit, (*state, *inputs[-1]), time.monotonic() - began)


def measure(plan: Planned) -> Outcome:
    """One encrypted step, with no key holder between encryption and decryption, and its prediction.

    Raises HesimError where OpenFHE is not there, or refuses.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        certified = hesim.certify(plan.circuit, plan.args, keys=4, profile=_MACHINE)
        with he_backend.session(
            plan.program,
            circuit=plan.circuit,
            backend=_MACHINE,
            workers=plan.case.workers,
            outside="warn",
        ) as session:
            report = session.run(*plan.args, batch="step")
            found = session.read("step")
    for message in report.outside:
        print(f"warning: {message}")
    assert not report.interactive
    stds = [None if left is None else left.std for left in certified.outputs]
    return Outcome(
        plan,
        (plan.circuit.ledger.seconds, report.core_seconds),
        (report.predicted_peak_bytes, report.peak_bytes),
        _groups(found, report.exact, stds),
        report.evaluation_seconds,
        report.key_seconds,
    )


def _groups(found: Any, exact: Any, stds: Sequence[float | None]) -> tuple[Group, ...]:
    """Errors of all encrypted results, by group. stds: predicted ones, leaf by leaf."""
    parts: dict[str, list[tuple[np.ndarray, np.ndarray, float]]] = {}
    leaves = jax.tree_util.tree_leaves_with_path(exact)
    for (path, wanted), got, std in zip(leaves, jax.tree.leaves(found), stds, strict=True):
        if std is not None:
            own = np.asarray(got) - np.asarray(wanted), np.asarray(wanted), std
            parts.setdefault(_group_of(jax.tree_util.keystr(path)), []).append(own)
    made: list[Group] = []
    for name, own in parts.items():
        errors = np.concatenate([error.ravel() for error, _, _ in own])
        variance = sum(error.size * std**2 for error, _, std in own) / len(errors)
        largest = max(float(np.max(np.abs(wanted))) for _, wanted, _ in own)
        std = math.sqrt(variance), float(np.sqrt(np.mean(errors**2)))
        made.append(Group(name, len(errors), largest, std))
    return tuple(made)


def _group_of(path: str) -> str:
    """The group of a result of a step by its path in (trained, optimizer, logits)."""
    named = {"lora_": "adapters", "pooler": "pooler", "head": "head"}
    named |= {".mean": "first moments", ".square": "second moments"}
    return next((name for part, name in named.items() if part in path), "logits")


def said(plan: Planned) -> str:
    """A plan in a few lines."""
    case, ledger, ring = plan.case, plan.circuit.ledger, plan.circuit.params
    security = f"{ring.security}-bit security" if ring.security else "NO SECURITY"
    return (
        f"one step of {case.layers} layers of {case.hidden} features with adapters of rank "
        f"{case.rank}, on {case.sentences} sentences of {case.tokens} tokens; N = 2^{ring.log_n}, "
        f"{ring.levels} levels, {security}\n"
        f"planned in {plan.seconds:.0f} s: {ledger.refreshes} bootstraps, "
        f"{ledger.refresh_rounds} in sequence, {ledger.carried} ciphertexts handed on; "
        f"{ledger.rotations:,} rotations by {ledger.rotation_keys} keys, "
        f"{ledger.relinearizations:,} relinearizations"
    )


def table(found: Outcome) -> str:
    """Predicted and measured, a line each, as text."""
    rows = [
        ("core-seconds", *(f"{s:.1f}" for s in found.core_seconds), ""),
        ("peak memory, GB", *(f"{b / 1e9:.2f}" for b in found.peak_bytes), ""),
    ]
    for group in found.groups:
        wrong = "" if group.sound else f"  off by more than {group.tolerance:.1f} bits"
        most = f"of up to {power_of_two(group.largest)}{wrong}"
        rows.append((f"std of errors of {group.name}", *map(power_of_two, group.std), most))
    lines = [f"{'':<32}{'predicted':>12}{'measured':>12}"]
    lines += [f"{name:<32}{one:>12}{other:>12}  {most}".rstrip() for name, one, other, most in rows]
    took = f"{found.seconds:.1f} s by the clock; keys {found.key_seconds:.1f} s besides"
    return "\n".join([*lines, took])


def main(arguments: Sequence[str]) -> int:
    """The command line; see the module."""
    cases = Case(), Case(insecure=None)
    return command("bootstrapped_step", arguments, cases, planned, said, measure, table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
