"""Encrypted gradients beside predicted ones, group by group: `python -m benchmarks.gradients`.

Forward pass and gradient of `tiny-gaussian`, with its shipped weights and adapters that a few exact
steps have moved from B = 0, on one row of RTE, as `hesim encrypted-finetune` differentiates them.
They run encrypted under fresh keys, again and again. Each parameter is a group, whose errors are
held against the largest entry of its exact polynomial gradient, and their std against two
predictions: that of `hesim.certify`, carried through the Circuit, and that of `hesim.simulate`, by
which a training is rehearsed.

    python -m benchmarks.gradients [--data-dir GLUE] [--layers 2] [--runs 8] [--memory 3]

Errors of a gradient may be few: where one sentence is pooled at its first token, the gradient by a
query's A is that token times `rank` numbers, whose errors are all that there is. So the spread over
keys says how sure a comparison is, and more runs make it surer.

It takes about 4 GB. Returns 1 if a gradient is further from the exact one than `LIMIT`, or the std
of a group's errors further from its prediction than `TOLERANCE` and `_SURE` standard errors.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: figures are for one core

import argparse
import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import he_backend
import hesim
from experiments.console import Display
from experiments.encrypted_training.preparing import prepare
from experiments.encrypted_training.settings import EncryptedJob, read_job
from experiments.training.finetune import Start
from hesim.certificates import Certificate
from hesim.circuit.circuit import Circuit
from hesim.errors import EmptySlotsWarning
from hesim.program import Program
from models.data.tasks import TaskData
from models.nn.lora import Params
from models.recipes.encrypted_training import EncryptedTraining, prepare_training

__all__ = [
    "LIMIT",
    "SETTINGS",
    "TOLERANCE",
    "Gradient",
    "Group",
    "begun",
    "gradient",
    "groups",
    "main",
    "measure",
    "parser_of",
    "said",
    "shortened",
]

LIMIT = 2.0**-8
"""Largest error of a gradient, of the largest entry of its group."""

TOLERANCE = 0.5
"""Bits between the std of a group's errors, measured and predicted."""

_SURE = 2.5
"""Standard errors that a comparison may be off by where they are larger than `TOLERANCE`."""

SETTINGS: dict[str, Any] = {
    "task.task": "rte",
    "task.length": 64,
    "task.train_rows": 1000,
    "training.batch": 1,
    "training.pairs": "cross-encoder",
    "training.pooling": "token",
    "training.learning_rate": 1e-3,
    "training.epsilon": 1e-3,
    "training.alpha": 16.0,
}
"""Of the training whose gradients are taken: one row of RTE, joint, a step."""


def said(path: Sequence[Any]) -> str:
    """The path of a parameter, by points."""
    return ".".join(str(key.key) for key in path)


@dataclass(frozen=True)
class Gradient:
    """Forward pass and gradient as a traced program, and what it is run on.

    Attributes:
      training: the polynomial twin, and its ring.
      program: (trained, frozen, rows, mask, targets) -> (gradients, logits (rows, classes)).
      args: of the program. encrypted: which of them are.
    """

    training: EncryptedTraining
    program: Program
    args: tuple[Any, ...]
    encrypted: tuple[int, ...] = (0, 2, 4)

    @property
    def names(self) -> list[str]:
        """Of the parameters, in the order of the result's leaves; the logits come after them."""
        paths, _ = jax.tree_util.tree_flatten_with_path(self.args[0])
        return [said(path) for path, _ in paths]


@dataclass(frozen=True)
class Group:
    """Errors of one parameter's gradient, or of the logits, in their units.

    Attributes:
      name, entries: of the parameter, and how many numbers it has.
      largest: of the exact gradient. worst: largest error of all runs.
      measured: root mean square over entries and runs; `by_run` of each run.
      certified, simulated: the same predicted, over keys.
      standard_error: of a comparison, in bits, by the spread over the keys of the certificate.
      limit: of the largest error, as a share of the largest entry.
    """

    name: str
    entries: int
    largest: float
    worst: float
    measured: float
    by_run: tuple[float, ...]
    certified: float
    simulated: float
    standard_error: float
    limit: float = LIMIT

    @property
    def off(self) -> tuple[float, float]:
        """Bits by which the errors are larger than certified, and than simulated."""
        both = self.measured / self.certified, self.measured / self.simulated
        return math.log2(both[0]), math.log2(both[1])

    @property
    def holds(self) -> bool:
        """Whether errors are as small, and as near to the prediction, as they are to be."""
        allowed = max(TOLERANCE, _SURE * self.standard_error)
        return self.worst <= self.limit * self.largest and max(map(abs, self.off)) <= allowed


def begun(start: Start, data: TaskData, job: EncryptedJob) -> tuple[EncryptedTraining, Params]:
    """The training of a job, its twin fitted, and the parameters that it starts from."""
    return prepare_training(
        *(start.config, start.params, data.train, data.classes, job.settings, job.how),
        length=job.length,
    )


def gradient(start: Start, data: TaskData, job: EncryptedJob, before: int) -> Gradient:
    """The gradient of the row that comes after so many exact steps, by what they have trained."""
    training, params = begun(start, data, job)
    state, frozen = training.begin(params)
    batch_of = training.batch_of(data.train)
    for number in range(before):
        state = training.watched(state, training.inputs(frozen, *batch_of(number))).state
    *args, _ = state.trained, *training.inputs(frozen, *batch_of(before))
    program = hesim.trace(training.gradient, *args, encrypted=Gradient.encrypted)
    return Gradient(training, program, tuple(args))


def measure(
    case: Gradient, circuit: Circuit, runs: int, workers: int = 2, backend: str = "pyfhel"
) -> Iterator[list[tuple[Any, Any]]]:
    """Leaves of the result, found and exact, run by run, each under keys of its own."""
    for _ in range(runs):
        report = he_backend.run(
            case.program, *case.args, circuit=circuit, workers=workers, backend=backend
        )
        both = jax.tree.leaves(report.outputs), jax.tree.leaves(report.exact)
        yield [(np.asarray(found), np.asarray(exact)) for found, exact in zip(*both, strict=True)]


def simulated(case: Gradient, circuit: Circuit, keys: int) -> list[float]:
    """Root mean squares of the simulated errors of the result's leaves over so many keys."""
    training = case.training
    with jax.enable_x64(True):
        args = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), case.args)
        exact = jax.tree.leaves(jax.jit(training.gradient)(*args))
        noisy = jax.jit(
            hesim.simulate(
                training.gradient,
                training.how.ckks,
                case.encrypted,
                training.how.profile,
                circuit=circuit,
            )
        )
        squares = np.zeros(len(exact))
        for key in jax.random.split(jax.random.key(0), keys):
            found = jax.tree.leaves(noisy(key, *args))
            squares += [float(np.mean((a - b) ** 2)) for a, b in zip(found, exact, strict=True)]
    return np.sqrt(squares / keys).tolist()


def groups(
    names: Sequence[str],
    runs: Sequence[Sequence[tuple[Any, Any]]],
    certified: Certificate,
    simulated: Sequence[float],
) -> list[Group]:
    """Measured beside predicted; names: of the result's leaves. runs: of `measure`."""
    found = []
    for k, name in enumerate(names):
        exact, own = runs[0][k][1], certified.outputs[k]
        assert own is not None
        errors = [run[k][0] - run[k][1] for run in runs]
        each = [float(np.sqrt(np.mean(np.square(error)))) for error in errors]
        found.append(
            Group(
                name,
                exact.size,
                float(np.max(np.abs(exact))),
                max(float(np.max(np.abs(error))) for error in errors),
                float(np.sqrt(np.mean(np.square(each)))),
                tuple(each),
                own.std,
                simulated[k],
                _standard_error(own.by_key, len(runs)),
            )
        )
    return found


def _standard_error(by_key: Sequence[float], runs: int) -> float:
    """Of log2 of a ratio of two stds, one over so many runs, one over these keys."""
    squares = np.square(by_key)
    relative = float(squares.std(ddof=1) / squares.mean())
    return relative / (2 * math.log(2)) * math.sqrt(1 / runs + 1 / len(squares))


def table(found: Sequence[Group]) -> str:
    """The groups as text: log2 of the largest error over the largest entry, and of the std; bits by
    which that is larger than certified and than simulated, and their standard error.
    """
    head = f"{'':<36} {'entries':>7} {'largest':>8} {'worst':>6} {'std':>7}"
    lines = [f"{head} {'certified':>10} {'simulated':>10} {'+-':>5}"]
    for group in found:
        by_certificate, by_simulation = group.off
        lines.append(
            f"{group.name:<36} {group.entries:>7,} {group.largest:>8.2g} "
            f"{math.log2(group.worst / group.largest):>6.1f} {math.log2(group.measured):>7.2f} "
            f"{by_certificate:>+10.2f} {by_simulation:>+10.2f} {group.standard_error:>5.2f}"
            f"{'' if group.holds else '  *'}"
        )
    return "\n".join(lines)


def shortened(start: Start, layers: int) -> Start:
    """The first layers of an encoder."""
    blocks = {k: start.params["blocks"][k] for k in range(layers)}
    config = start.config.replace(layers=layers)
    return start._replace(config=config, params=start.params | {"blocks": blocks})


def parser_of(
    name: str, runs: int, keys: int, memory: float = 3.0, workers: int = 2
) -> argparse.ArgumentParser:
    """Options of a benchmark that holds encrypted runs against predictions.

    name: of its module. runs, keys, memory, workers: by default, memory in GB.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--data-dir", help="folder that holds GLUE's task folders")
    parser.add_argument("--runs", type=int, default=runs, help="encrypted, under keys of their own")
    parser.add_argument("--keys", type=int, default=keys, help="of predictions")
    parser.add_argument("--memory", type=float, default=memory, help="GB of a process")
    parser.add_argument("--workers", type=int, default=workers)
    return parser


def main(arguments: Sequence[str] = ()) -> int:
    """Print the figures of each model; 1 if one of them is not what it is to be, else 0."""
    parser = parser_of("gradients", runs=8, keys=16)
    parser.add_argument("--layers", type=int, nargs="+", default=[2], help="of each model")
    parser.add_argument("--steps", type=int, default=20, help="exact ones before the gradient")
    given = parser.parse_args(list(arguments))
    job = read_job(None, SETTINGS)
    start, data = prepare(job, given.data_dir, Display())
    sound = True
    for layers in given.layers:
        case = gradient(shortened(start, layers), data, job, given.steps)
        sound &= _shown(case, layers, given)
    return int(not sound)


def _shown(case: Gradient, layers: int, given: argparse.Namespace) -> bool:
    """Measure one gradient and print it; whether every group holds."""
    ring = case.training.how.ckks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptySlotsWarning)
        circuit = hesim.compile(case.program, ring, memory=given.memory * 1e9)
    config, ledger = case.training.model.config, circuit.ledger
    print(
        f"{layers} layers of {config.hidden} features, {case.training.length} tokens, rank "
        f"{config.lora_rank}, {ring}: {len(circuit):,} instructions, {ledger.seconds:.1f} "
        f"core-seconds predicted",
        flush=True,
    )
    began = time.perf_counter()
    certified = hesim.certify(circuit, case.args, keys=given.keys)
    print(f"certified in {time.perf_counter() - began:.0f} s", flush=True)
    began = time.perf_counter()
    predicted = simulated(case, circuit, given.keys)
    print(f"simulated in {time.perf_counter() - began:.0f} s", flush=True)
    runs = []
    for found in measure(case, circuit, given.runs, given.workers):
        runs.append(found)
        print(f"run {len(runs)} of {given.runs}", flush=True)
    found = groups([*case.names, "logits"], runs, certified, predicted)
    print(table(found), flush=True)
    worst = max(found[:-1], key=lambda group: group.worst / group.largest)
    print(
        f"gradients within 2^{math.log2(worst.worst / worst.largest):.1f} of the largest entry of "
        f"their group; std within {max(abs(g.off[0]) for g in found):.2f} bit of the certificate's,"
        f" {max(abs(g.off[1]) for g in found):.2f} bit of the simulator's"
    )
    return all(group.holds for group in found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
