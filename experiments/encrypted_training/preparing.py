"""What an encrypted training needs before its first step: data, twin, Circuit; kept in its folder.

A run that is resumed takes polynomials and Circuit from the folder: they are the very same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import time
from pathlib import Path
from typing import Any

from experiments.console import Display
from experiments.encrypted_training.margins import cause
from experiments.encrypted_training.settings import EncryptedJob
from experiments.errors import ExperimentError
from experiments.training.finetune import Start, describe, load_rows, load_start
from experiments.training.twin import said_ring
from experiments.validation.folder import RunFolder
from he_backend.report.environment import environment
from hesim.calibrate import Calibration, calibrate
from hesim.circuit.circuit import Circuit
from hesim.circuit.publics import bound
from hesim.errors import ParameterError
from hesim.program import Program
from hesim.progress import Bar
from models.data.batches import Batch
from models.data.tasks import TaskData, baseline
from models.nn.lora import Params, count
from models.recipes.encrypted_training import (
    EncryptedTraining,
    Inputs,
    State,
    prepare_training,
)
from models.sites.sites import join_ranges
from models.train.checkpoint import digest_of, sites_from_json, sites_to_json
from models.weights.folder import save_model

__all__ = ["Planned", "Prepared", "claim", "fitted", "plan_steps", "prepare", "save_trained"]

CIRCUIT = "step.npz"
"""The Circuit of a step, in the run folder."""

_TWIN, _PLAN = "twin", "plan"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A job with its data and its twin.

    Attributes:
      job: what to do. training: how. start: the model that it starts from.
      data: rows of the task. params: of the whole model before the first step.
    """

    job: EncryptedJob
    training: EncryptedTraining
    start: Start
    data: TaskData
    params: Params


class Planned:
    """A prepared job with its compiled step.

    Args:
      prepared: the job. program, circuit: of a step.

    Attributes:
      state: before the first step. frozen: parameters that stay public.
      prepared, program, circuit: as above.
    """

    def __init__(self, prepared: Prepared, program: Program, circuit: Circuit) -> None:
        self.prepared, self.program, self.circuit = prepared, program, circuit
        self.training = prepared.training
        self.state, self.frozen = self.training.begin(prepared.params)
        self._batch_of = self.training.batch_of(prepared.data.train)

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.training.steps

    def batch(self, number: int) -> Batch:
        """The rows of step `number`, from 0."""
        return self._batch_of(number)[0]

    def rate(self, number: int) -> float:
        """The learning rate of step `number`, from 0."""
        return float(self._batch_of(number)[1])

    def inputs(self, number: int) -> Inputs:
        """The arguments of step `number`, from 0, beside the state."""
        return self.training.inputs(self.frozen, *self._batch_of(number))


def prepare(job: EncryptedJob, data_dir: str | None, show: Display) -> tuple[Start, TaskData]:
    """The model to start from, and the rows of the task. Raises DataError, CheckpointError,
    ExperimentError.
    """
    start = load_start(job.start, job.attention, job.task, job.length, data_dir, job.settings.seed)
    data = load_rows(start, job.task, job.length, job.train_rows, job.settings.pairs, data_dir)
    show.say(describe(data))
    for line in job.off:
        show.say(f"off: {line}")
    return start, data


def claim(
    job: EncryptedJob, start: Start, data: TaskData, out: Path, *, fresh: bool = False
) -> RunFolder:
    """The run folder of this job. ExperimentError where it is another one's."""
    plain = job.plain(digest_of(start.params), f"{data.name} {digest_of(data.train)}")
    return RunFolder.claim(out, _Plain(plain), fresh=fresh, option="--out")


@dataclasses.dataclass(frozen=True)
class _Plain:
    content: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        return self.content


def fitted(job: EncryptedJob, start: Start, data: TaskData, folder: RunFolder) -> Prepared:
    """The job with its twin: that of the folder, or one that is fitted and left there."""
    sites = sites_from_json(folder.figures(_TWIN)["sites"]) if folder.done(_TWIN) else None
    training, params = prepare_training(
        start.config,
        start.params,
        data.train,
        data.classes,
        job.settings,
        job.how,
        length=job.length,
        steps=job.steps,
        sites=sites,
    )
    if sites is None:
        folder.save(_TWIN, {"sites": sites_to_json(training.model.sites)})
    return Prepared(job, training, start, data, params)


def plan_steps(
    prepared: Prepared, folder: RunFolder, show: Display, memory: float | None = None
) -> Planned:
    """Trace and compile a step, or load the Circuit that the folder has; says what it spends.

    memory: bytes, as for `hesim.compile`, whose errors this raises. For bootstraps it is planned by
    the values of some steps; raises ExperimentError where a polynomial's domain is left there.
    """
    training = prepared.training
    state, frozen = training.begin(prepared.params)
    batch_of = training.batch_of(prepared.data.train)
    program = training.program(state, training.inputs(frozen, *batch_of(0)))
    path, began = folder.path / CIRCUIT, time.monotonic()
    circuit = None
    if folder.done(_PLAN) and path.exists():
        with contextlib.suppress(ParameterError):  # damaged: it is compiled again
            circuit = bound(Circuit.load(path), program)
    if circuit is None:
        with Bar(show.console) as bar:
            options: dict[str, Any] = {"refresher": prepared.job.refresher}
            if math.isfinite(prepared.job.refresher.value_range):
                samples = training.samples(state, frozen, batch_of)
                options["calibration"] = _calibrated(training, program, samples)
            circuit = training.compile(program, bar, memory=memory, **options)
        circuit.save(path)
        (folder.path / "program.txt").write_text(f"{program}\n", encoding="utf-8")
    if not folder.done(_PLAN):
        folder.save(_PLAN, _figures(circuit, prepared, time.monotonic() - began))
    _say(show, circuit, folder.figures(_PLAN))
    return Planned(prepared, program, circuit)


def _calibrated(
    training: EncryptedTraining, program: Program, samples: list[tuple[State, Inputs]]
) -> Calibration:
    """What values steps have. ExperimentError where they are none, names the site that was left."""
    try:
        return calibrate(program, [(*state, *inputs) for state, inputs in samples])
    except ParameterError as error:
        met = [training.watched(state, inputs).ranges for state, inputs in samples[-1:]]
        worst = cause(training, join_ranges(met))
        raise ExperimentError(
            f"a step by which the bootstraps are planned gives no numbers: {worst.name} meets "
            f"[{worst.met[0]:.4g}, {worst.met[1]:.4g}], its polynomial holds on "
            f"[{worst.domain[0]:.4g}, {worst.domain[1]:.4g}]. Give {worst.remedy}"
        ) from error


def _figures(circuit: Circuit, prepared: Prepared, seconds: float) -> dict[str, Any]:
    params, training = circuit.params, prepared.training
    names = ("log_n", "levels", "scale_bits", "first_bits", "special_bits", "security")
    state, frozen = training.begin(prepared.params)
    return {
        "ledger": dataclasses.asdict(circuit.ledger),
        "instructions": len(circuit.kind),
        "carried": len(circuit.carried),
        "ring": {name: getattr(params, name) for name in names} | {"log_qp": float(params.log_qp)},
        "trained": count(state.trained),
        "public": count(frozen),
        "steps": training.steps,
        "batch": training.settings.batch,
        "seconds": seconds,
        "environment": environment(),
        "interactive": circuit.refresher.interactive,
    }


def _say(show: Display, circuit: Circuit, figures: dict[str, Any]) -> None:
    ledger, ring = circuit.ledger, figures["ring"]
    security = f"{ring['security']}-bit security" if ring["security"] else "NO SECURITY"
    show.say(
        f"one step of {figures['batch']} rows for N = 2^{ring['log_n']}, {ring['levels']} levels, "
        f"{security}: {figures['instructions']:,} ciphertext instructions, "
        f"{ledger.refreshes:,} ciphertexts refreshed by the {circuit.refresher.name} in "
        f"{ledger.refresh_rounds} rounds, {figures['carried']:,} handed on to the next step"
    )
    show.say(
        f"  {figures['trained']:,} numbers trained, encrypted with their moments; "
        f"{figures['public']:,} public; {ledger.rotation_keys} rotation keys, "
        f"{ledger.key_bytes / 1e9:.1f} GB of keys"
    )
    show.say(
        f"  predicted: {ledger.seconds:,.0f} core-seconds a step, "
        f"{ledger.seconds * figures['steps'] / 3600:.1f} core-hours for {figures['steps']:,} steps,"
        f" {ledger.peak_bytes / 1e9:.1f} GB in a process that evaluates"
    )


def save_trained(target: Path, planned: Planned, state: State, notes: dict[str, Any]) -> Path:
    """A model's folder with what was trained so far, as `hesim evaluate` and `validate` take it;
    an older one is replaced. notes: of this training beside those of every fine-tuning.
    """
    prepared, training = planned.prepared, planned.training
    job, data = prepared.job, prepared.data
    own: dict[str, Any] = {
        "task": job.task,
        "start": job.start,
        "length": job.length,
        "token_types": training.model.config.token_types,
        "train_rows": job.train_rows,
        "method": job.settings.method,
        "buckets": [job.length],
        "settings": dataclasses.asdict(job.settings),
        "encrypted": said_ring(job.how),
        "trainable": count(state.trained),
        "baseline": baseline(data),
        "sites": sites_to_json(training.model.sites),
        "training_sites": sites_to_json(training.training_sites),
    }
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    params = training.finished(state, planned.frozen)
    save_model(fresh, training.model.config, params, prepared.start.tokenizer, own | notes)
    if target.exists():
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.replace(old)
        fresh.replace(target)
        shutil.rmtree(old)
    else:
        fresh.replace(target)
    return target
