"""An encoder with no key holder after encryption: `python -m benchmarks.bootstrapped`.

A transformer with Gaussian-kernel attention and random weights is planned for OpenFHE, run
encrypted, and held against its polynomial twin in the clear: bootstraps, seconds, memory, and the
errors of its logits, predicted and measured in one run.

    python -m benchmarks.bootstrapped                one block in a small ring, which protects
                                                     nothing: about a minute, 1 GB
    python -m benchmarks.bootstrapped --secure       two layers of 128 features on 4 sentences of
                                                     64 tokens, N = 2^16, 128 bits: 8 minutes, and
                                                     19 GB, which --memory 18 bounds

`--layers`, `--hidden`, `--tokens`, `--sentences`, `--insecure LOG_N` and `--workers` change either.
Returns 1 if a label is not the twin's, or the std of the logits' errors further than `TOLERANCE`
from what `hesim.certify` predicts; 2 if OpenFHE is not there, or the plan wants more memory than is
free.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: figures are for one core

import argparse
import dataclasses
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import he_backend
import hesim
from experiments import machines
from experiments.machines import Suited
from experiments.planning import Arguments, compile_forward, forward_arguments
from he_backend.report.html import power_of_two
from hesim.circuit.circuit import Circuit
from hesim.errors import HesimError
from models.config import EncoderConfig
from models.data.batches import Batch, select_rows
from models.encrypted.settings import EncryptionSettings
from models.encrypted.twin import twin_of
from models.nn.encoder import Model
from models.nn.lora import Params

__all__ = [
    "SECURE",
    "TOLERANCE",
    "Case",
    "Outcome",
    "Planned",
    "command",
    "main",
    "measure",
    "planned",
    "random_rows",
    "suited_settings",
    "table",
]

TOLERANCE = 0.5
"""Bits between the std of the logits' errors, measured and predicted."""

_MACHINE = "openfhe"
_DEGREES = {"exp": 15, "inv_sqrt": 15, "relu": 15, "tanh": 31}
"""Of polynomials: what evaluation in the clear cannot tell from more, and fewer levels."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is run.

    Attributes:
      layers, hidden, tokens, sentences: of the encoder and its batch; heads are 2, the feed-forward
        part is twice as wide.
      insecure: log2 of the ring degree of a ring without security; None for the secure one.
      memory: bytes, as for `hesim.compile`.
      workers: processes that evaluate, among which the cores are divided. Bootstraps follow one
        another, so one with all cores is fastest.
    """

    layers: int = 1
    hidden: int = 32
    tokens: int = 16
    sentences: int = 4
    insecure: int | None = 11
    memory: float | None = None
    workers: int = 1

    @property
    def config(self) -> EncoderConfig:
        """Of the encoder."""
        return EncoderConfig(
            layers=self.layers,
            hidden=self.hidden,
            heads=2,
            ffn=2 * self.hidden,
            sequence=self.tokens,
            vocabulary=64,
            pooler=(self.hidden,),
            first_norm=True,
        )


SECURE = Case(layers=2, hidden=128, tokens=64, insecure=None)


@dataclasses.dataclass(frozen=True)
class Planned:
    """A Circuit, its polynomial twin and what it is run on."""

    case: Case
    circuit: Circuit
    model: Model
    params: Params
    rows: Batch
    seconds: float

    @property
    def args(self) -> Arguments:
        """Of the run."""
        return forward_arguments(self.model, self.params, self.rows)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one run found. Attributes by (predicted, measured): seconds of all cores, bytes at the
    peak, std of the logits' errors; and seconds by the clock, those of keys, the largest error, and
    labels that are the twin's.
    """

    planned: Planned
    core_seconds: tuple[float, float]
    peak_bytes: tuple[float, float]
    std: tuple[float, float]
    seconds: float
    key_seconds: float
    largest: float
    same: int

    @property
    def bits_off(self) -> float:
        """log2 of the std of the logits' errors, measured over predicted."""
        return math.log2(self.std[1] / self.std[0])

    @property
    def sound(self) -> bool:
        """Whether labels and errors are as they should be."""
        return self.same == self.planned.case.sentences and abs(self.bits_off) <= TOLERANCE


def suited_settings(insecure: int | None) -> Suited:
    """Ring, polynomials and bootstrap of a model with random weights. Raises as `machines.suited`
    does.
    """
    base = machines.based(EncryptionSettings(), _MACHINE)
    chosen = machines.suited(base, _MACHINE, insecure=insecure)
    degrees = tuple(sorted((dict(chosen.how.fit.degrees) | _DEGREES).items()))
    fit = dataclasses.replace(chosen.how.fit, degrees=degrees, margin=0.5, ranges=())
    return dataclasses.replace(chosen, how=dataclasses.replace(chosen.how, fit=fit))


def random_rows(config: EncoderConfig, count: int, rng: np.random.Generator) -> Batch:
    """Sentences of random words, all of them of full length, and of class 0."""
    tokens = rng.integers(1, config.vocabulary, (count, config.sequence)).astype(np.int32)
    return Batch(tokens, np.ones(tokens.shape, np.float32), np.zeros(count, np.int32))


def planned(case: Case) -> Planned:
    """The twin of a random encoder, and the Circuit of its forward pass. Raises as `hesim.compile`
    does, and ParameterError where the ring has no bootstrap.
    """
    rng, config, began = np.random.default_rng(0), case.config, time.monotonic()
    model = Model(config)
    params = model.init(jax.random.key(0))
    head = np.asarray(params["head"]["kernel"])
    params["head"]["kernel"] = head + rng.normal(size=head.shape) / math.sqrt(len(head))
    rows = random_rows(config, max(64, 2 * case.sentences), rng)
    chosen = suited_settings(case.insecure)
    how = chosen.how
    twin = twin_of(model, params, rows, (config.sequence,), how)
    twin = dataclasses.replace(twin, low_rank=False)
    parts = [select_rows(rows, np.arange(k, k + case.sentences)) for k in (0, case.sentences)]
    circuit = compile_forward(
        *(twin, how.ckks, case.sentences, "logits"),
        samples=[forward_arguments(twin, params, part) for part in parts[1:]],
        refresher=chosen.refresher,
        memory=case.memory,
    )
    return Planned(case, circuit, twin, params, parts[0], time.monotonic() - began)


def measure(plan: Planned) -> Outcome:
    """One encrypted run, with no key holder between encryption and decryption, and its prediction.

    Raises HesimError where OpenFHE is not there, or refuses.
    """
    circuit, args = plan.circuit, plan.args
    assert circuit.program is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        report = he_backend.run(
            *(circuit.program, *args),
            circuit=circuit,
            backend=_MACHINE,
            workers=plan.case.workers,
            outside="warn",
        )
        (found,) = hesim.certify(circuit, args, keys=4, profile=_MACHINE).outputs
    for message in report.outside:
        print(f"warning: {message}")
    assert found is not None and not report.interactive
    outputs, exact = np.asarray(report.outputs), np.asarray(report.exact)
    error = outputs - exact
    return Outcome(
        plan,
        (circuit.ledger.seconds, report.core_seconds),
        (report.predicted_peak_bytes, report.peak_bytes),
        (found.std, float(np.sqrt(np.mean(error**2)))),
        report.evaluation_seconds,
        report.key_seconds,
        float(np.max(np.abs(error))),
        int(np.sum(outputs.argmax(-1) == exact.argmax(-1))),
    )


def said(plan: Planned) -> str:
    """A plan in a few lines."""
    case, ledger, ring = plan.case, plan.circuit.ledger, plan.circuit.params
    security = f"{ring.security}-bit security" if ring.security else "NO SECURITY"
    return (
        f"{case.layers} layers of {case.hidden} features, {case.sentences} sentences of "
        f"{case.tokens} tokens; N = 2^{ring.log_n}, {ring.levels} levels, {security}\n"
        f"planned in {plan.seconds:.0f} s: {ledger.refreshes} bootstraps, "
        f"{ledger.refresh_rounds} in sequence; {ledger.rotations:,} rotations by "
        f"{ledger.rotation_keys} keys, {ledger.relinearizations:,} relinearizations; "
        f"{ledger.encoding_seconds:.2f} of the core-seconds encode vectors"
    )


def table(found: Outcome) -> str:
    """Predicted and measured, a line each, as text."""
    tokens = found.planned.case.sentences * found.planned.case.tokens
    rows = [
        ("core-seconds", *(f"{s:.1f}" for s in found.core_seconds)),
        ("peak memory, GB", *(f"{b / 1e9:.2f}" for b in found.peak_bytes)),
        ("std of the logits' errors", *map(power_of_two, found.std)),
    ]
    lines = [f"{'':<28}{'predicted':>12}{'measured':>12}"]
    lines += [f"{name:<28}{predicted:>12}{measured:>12}" for name, predicted, measured in rows]
    return "\n".join(
        [
            *lines,
            f"{found.seconds:.1f} s by the clock, {found.seconds / tokens:.2f} s a token; keys "
            f"{found.key_seconds:.1f} s besides",
            f"largest error {power_of_two(found.largest)}; {found.same} of "
            f"{found.planned.case.sentences} labels are the polynomial twin's",
        ]
    )


def command(
    name: str,
    arguments: Sequence[str],
    cases: tuple[Any, Any],
    planned: Callable[[Any], Any],
    said: Callable[[Any], str],
    measure: Callable[[Any], Any],
    table: Callable[[Any], str],
) -> int:
    """A benchmark of this machine by the fields of its case as options: plans, says the plan, runs
    it and prints what was found.

    cases: the small one, and that of `--secure`. Returns 0 if what was found is sound, else 1; 2,
    with the error, where the machine is not there or refuses.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--secure", action="store_true", help="the case at 128 bits")
    for field in dataclasses.fields(cases[0]):
        if field.name != "memory":
            parser.add_argument(f"--{field.name}", type=int)
    parser.add_argument("--memory", type=float, help="GB, of compiling and of a process")
    given = vars(parser.parse_args(arguments))
    base, memory = cases[given.pop("secure")], given.pop("memory")
    changes = {name: value for name, value in given.items() if value is not None}
    case = dataclasses.replace(base, **changes, memory=memory and memory * 1e9)
    try:
        machines.need(_MACHINE)
        plan = planned(case)
        print(said(plan), flush=True)
        found = measure(plan)
    except HesimError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(table(found))
    return 0 if found.sound else 1


def main(arguments: Sequence[str]) -> int:
    """The command line; see the module."""
    return command("bootstrapped", arguments, (Case(), SECURE), planned, said, measure, table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
