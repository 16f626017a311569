"""States of an encrypted training beside predicted ones: `python -m benchmarks.carried_steps`.

A few steps of `hesim encrypted-finetune`, of the model and the rows that `benchmarks.gradients`
takes, each going on from the ciphertexts that the one before left. What the last one leaves, read
by the key holder, is held against the exact polynomial steps: parameter by parameter, the moments
of the optimizer by their stacks. Errors are predicted by certificates that go on from one another,
and by steps that are simulated one after another.

    python -m benchmarks.carried_steps [--data-dir GLUE] [--steps 2] [--runs 3] [--memory 2]

Two steps of two layers take 4.4 to 5.1 GB, of all processes together, with one worker and
`--memory 2`, and ten minutes. Returns 1 if something that was trained is further from the exact one
than `LIMIT`, or the std of a group's errors further from its prediction than `TOLERANCE` and a few
standard errors.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: figures are for one core

import argparse
import dataclasses
import gc
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import he_backend
import hesim
from benchmarks.gradients import (
    SETTINGS,
    Group,
    begun,
    groups,
    parser_of,
    said,
    shortened,
    table,
)
from experiments.console import Display
from experiments.encrypted_training.preparing import prepare
from experiments.encrypted_training.settings import EncryptedJob, read_job
from experiments.training.finetune import Start
from hesim.certificates import Certificate
from hesim.circuit.circuit import Circuit
from hesim.program import Program
from models.data.tasks import TaskData
from models.recipes.encrypted_training import EncryptedTraining, Inputs, State

__all__ = ["LIMIT", "Steps", "certified", "main", "measure", "simulated", "steps_of"]

LIMIT = 2.0**-7
"""Largest error of what was trained, of the largest entry of its group."""

_LAST = "logits"


@dataclass(frozen=True)
class Steps:
    """Steps of a training as a traced program, and what they are run on.

    Attributes:
      training: the polynomial twin, and its ring. program: of a step.
      state: before the first one. inputs: of each.
    """

    training: EncryptedTraining
    program: Program
    state: State
    inputs: list[Inputs]

    @property
    def names(self) -> list[str]:
        """Of the leaves of a step's result, in order."""
        trained, _ = jax.tree_util.tree_flatten_with_path(self.state.trained)
        moments, _ = jax.tree_util.tree_flatten_with_path(self.state.optimizer)
        of_moments = (jax.tree_util.keystr(path) for path, _ in moments)
        return [*(said(path) for path, _ in trained), *(f"moments{x}" for x in of_moments), _LAST]


def steps_of(start: Start, data: TaskData, job: EncryptedJob, count: int) -> Steps:
    """The first steps of a training."""
    training, params = begun(start, data, job)
    state, frozen = training.begin(params)
    batch_of = training.batch_of(data.train)
    inputs = [training.inputs(frozen, *batch_of(number)) for number in range(count)]
    return Steps(training, training.program(state, inputs[0]), state, inputs)


def measure(
    case: Steps, circuit: Circuit, runs: int, workers: int = 2
) -> Iterator[list[tuple[Any, Any]]]:
    """Leaves that the last step left and returned, found and exact, each run under its own keys."""
    last = len(case.inputs) - 1
    for _ in range(runs):
        with he_backend.session(case.program, circuit=circuit, workers=workers) as session:
            steps = session.steps(case.state, case.inputs, check=True, read=lambda k: k == last)
            *_, step = steps
        both = jax.tree.leaves(step.outputs), jax.tree.leaves(step.report.exact)
        yield [(np.asarray(found), np.asarray(exact)) for found, exact in zip(*both, strict=True)]


def certified(case: Steps, circuit: Circuit, keys: int) -> Certificate:
    """Of the last step, each going on from the errors of the one before."""
    state, found = case.state, None
    for inputs in case.inputs:
        found = hesim.certify(circuit, (*state, *inputs), keys=keys, after=found)
        state = State(*case.program(*state, *inputs, precision="float64")[:2])
    assert found is not None
    return found


def simulated(case: Steps, circuit: Circuit, keys: int) -> list[float]:
    """Root mean squares over keys of the simulated errors of what the last step returns."""
    training = case.training
    with jax.enable_x64(True):
        state, inputs = jax.tree.map(_wide, (case.state, case.inputs))
        exact = jax.jit(training.step)
        run = training.simulated(state, circuit)
        true: Any = (*state, None)
        for own in inputs:
            true = exact(*true[:2], *own)
        squares = np.zeros(len(jax.tree.leaves(true)))
        for key in jax.random.split(jax.random.key(0), keys):
            noisy, logits = state, None
            for k, own in enumerate(inputs):
                made = run(jax.random.fold_in(key, k), noisy, own, k > 0)
                noisy, logits = made.state, made.logits
            pairs = zip(jax.tree.leaves((*noisy, logits)), jax.tree.leaves(true), strict=True)
            squares += [float(np.mean((np.asarray(a) - np.asarray(b)) ** 2)) for a, b in pairs]
    return np.sqrt(squares / keys).tolist()


def _wide(leaf: Any) -> Any:
    array = np.asarray(leaf)
    return array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array


def main(arguments: Sequence[str] = ()) -> int:
    """Print the figures; 1 if one of them is not what it is to be, else 0."""
    parser = parser_of("carried_steps", runs=3, keys=8, memory=2.0, workers=1)
    parser.add_argument("--layers", type=int, default=2, help="of the model")
    parser.add_argument("--steps", type=int, default=2, help="one after another")
    given = parser.parse_args(list(arguments))
    job = read_job(None, SETTINGS)
    start, data = prepare(job, given.data_dir, Display())
    case = steps_of(shortened(start, given.layers), data, job, given.steps)
    circuit = case.training.compile(case.program, memory=given.memory * 1e9)
    print(
        f"{given.steps} steps of {given.layers} layers: {len(circuit):,} instructions and "
        f"{circuit.ledger.seconds:.1f} core-seconds a step, predicted",
        flush=True,
    )
    found = _measured(case, circuit, given)
    print(table(found), flush=True)
    return int(not all(group.holds for group in found))


def _measured(case: Steps, circuit: Circuit, given: argparse.Namespace) -> list[Group]:
    """All groups, public ones left out."""
    began = time.perf_counter()
    by_certificate = certified(case, circuit, given.keys)
    print(f"certified in {time.perf_counter() - began:.0f} s", flush=True)
    began = time.perf_counter()
    by_simulation = simulated(case, circuit, given.keys)
    print(f"simulated in {time.perf_counter() - began:.0f} s", flush=True)
    jax.clear_caches()  # a gigabyte, which the processes that are started now may need
    gc.collect()
    runs = []
    for found in measure(case, circuit, given.runs, given.workers):
        runs.append(found)
        print(f"run {len(runs)} of {given.runs}", flush=True)
    names = case.names
    secret = [k for k, own in enumerate(by_certificate.outputs) if own is not None]
    chosen = groups(
        [names[k] for k in secret],
        [[run[k] for k in secret] for run in runs],
        dataclasses.replace(
            by_certificate, outputs=tuple(by_certificate.outputs[k] for k in secret)
        ),
        [by_simulation[k] for k in secret],
    )
    return [dataclasses.replace(group, limit=_limit(group.name)) for group in chosen]


def _limit(name: str) -> float:
    return 1.0 if name == _LAST or name.startswith("moments") else LIMIT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
