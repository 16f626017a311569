"""Encrypted training with bootstraps: what it is planned by, what it refuses, and one step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import pytest

from benchmarks import bootstrapped_step
from benchmarks.bootstrapped_step import Case, Group, Outcome, measure, planned, table
from experiments.console import Display
from experiments.encrypted_training.preparing import Prepared, claim, fitted, plan_steps, prepare
from experiments.encrypted_training.run import run_encrypted_training
from experiments.encrypted_training.running import Running
from experiments.encrypted_training.settings import EncryptedJob, for_machine, read_job
from experiments.errors import ExperimentError
from models.train.optim import AdamHEState
from tests.experiments.conftest import write_encoder

QUIET = Display(quiet=True)
SETTINGS = """
[task]
task = "sst-2"
length = 8
[start]
attention = "gaussian"
start = "{start}"
[training]
batch = 2
steps = 40
learning_rate = 1e-2
epsilon = 2e-3
rank = 1
alpha = 1.0
pooling = "token"
"""

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def job(glue: Path, tmp_path_factory: pytest.TempPathFactory) -> EncryptedJob:
    top = tmp_path_factory.mktemp("start")
    path = top / "settings.toml"
    start = write_encoder(top / "encoder", glue, ffn=4, layers=1)
    path.write_text(SETTINGS.format(start=start))
    found = for_machine(read_job(path), "openfhe", insecure=10)
    return dataclasses.replace(found, how=dataclasses.replace(found.how, range_rows=64))


@pytest.fixture(scope="module")
def prepared(job: EncryptedJob, glue: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    start, data = prepare(job, str(glue), QUIET)
    return fitted(job, start, data, claim(job, start, data, tmp_path_factory.mktemp("run")))


def moments(state: Any) -> AdamHEState:
    leaves = jax.tree.leaves(state.optimizer, is_leaf=lambda x: isinstance(x, AdamHEState))
    return next(leaf for leaf in leaves if isinstance(leaf, AdamHEState))


def largest(tree: Any) -> float:
    return max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(tree))


def test_bootstraps_are_planned_by_first_steps_and_a_last_one(prepared: Prepared):
    training = prepared.training
    batches = training.batch_of(prepared.data.train)
    states = [
        moments(state) for state, _ in training.samples(*training.begin(prepared.params), batches)
    ]
    assert [int(state.count) for state in states] == [0, 3, training.steps - 1]
    assert largest(states[0].square) == 0.0 < largest(states[1].square)
    # Of like gradients v is (1 - b2^t) of their squares, and m (1 - b1^t) of them.
    grown = (1 - 0.999**39) / (1 - 0.999**4)
    assert largest(states[2].square) > 0.5 * grown * largest(states[1].square)


def test_a_step_that_leaves_a_domain_names_it_before_it_is_planned(
    prepared: Prepared, tmp_path: Path
):
    training = dataclasses.replace(
        prepared.training, settings=dataclasses.replace(prepared.training.settings, epsilon=1e-9)
    )
    asked = dataclasses.replace(prepared, training=training)
    batches = training.batch_of(prepared.data.train)
    found = training.samples(*training.begin(prepared.params), batches)
    assert len(found) == 1  # what follows a step that is lost tells nothing
    with pytest.raises(ExperimentError, match=r"optimizer.inv_sqrt meets \[.*a larger epsilon"):
        plan_steps(asked, claim(asked.job, asked.start, asked.data, tmp_path), QUIET)


# The benchmark


def outcome(*groups: Group) -> Outcome:
    ledger = SimpleNamespace(seconds=4.0)
    plan = SimpleNamespace(case=Case(), circuit=SimpleNamespace(ledger=ledger))
    return Outcome(cast(Any, plan), (4.0, 5.0), (1e9, 1.25e9), groups, 6.4, 2.0)


@pytest.mark.parametrize(
    ("count", "off", "sound"),
    [(1024, 0.5, True), (1024, 0.7, False), (4, 1.5, True), (4, -2.5, False)],
)
def test_a_step_is_judged_by_the_errors_of_each_group(count: int, off: float, sound: bool):
    good = Group("pooler", 64, 0.5, (2.0**-20, 2.0**-20))
    found = outcome(good, Group("logits", count, 1.0, (2.0**-20, 2.0 ** (off - 20))))
    assert found.sound == sound and outcome(good).sound
    assert ("off by more than" in table(found)) != sound


def test_results_are_held_against_exact_ones_group_by_group():
    leaf = {"lora_a": np.ones((2, 2)), "lora_b": np.zeros((2, 2))}
    exact = ({"blocks": [leaf], "head": np.full(2, 3.0)}, np.arange(1), np.ones((1, 2)))
    got = jax.tree.map(lambda x: x + 2.0**-10, exact)
    stds = [2.0**-10, 0.0, 2.0**-12, None, 2.0**-9]
    adapters, head, logits = bootstrapped_step._groups(got, exact, stds)
    assert (adapters.name, adapters.count, adapters.largest) == ("adapters", 8, 1.0)
    assert adapters.std == pytest.approx((2.0**-10.5, 2.0**-10))
    assert (head.bits_off, logits.bits_off) == pytest.approx((2.0, -1.0))
    assert (head.name, logits.name) == ("head", "logits")


@pytest.mark.slow
def test_a_step_errs_as_predicted_with_no_key_holder(needs_openfhe: str):
    found = measure(planned(Case(hidden=8, tokens=8, rank=1, insecure=10)))
    circuit = found.planned.circuit
    assert circuit.ledger.carried > 0 and not circuit.refresher.interactive
    assert {group.name for group in found.groups} >= {"adapters", "first moments", "logits"}
    assert found.sound, table(found)


@pytest.mark.slow
def test_a_training_with_bootstraps_goes_as_simulated(
    job: EncryptedJob, glue: Path, tmp_path: Path, needs_openfhe: str
):
    short, how = dataclasses.replace(job, steps=2), Running("openfhe", workers=1)
    done, folder = run_encrypted_training(
        *(short, tmp_path / "run", how), data_dir=str(glue), display=QUIET
    )
    assert done
    figures = folder.figures("encrypted")
    assert figures["encrypted"] and figures["error_bits"] < -12
    # The largest of few errors: simulated runs have a standard deviation of half a bit.
    assert abs(figures["error_bits"] - figures["predicted_bits"]) < 2.0
    assert not folder.figures("plan")["interactive"]
