"""The gradient of a training step beside its prediction: what `python -m benchmarks.gradients`
measures, of a small model.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import hesim
from benchmarks import carried_steps
from benchmarks.gradients import Gradient, Group, gradient, groups, measure, simulated, table
from experiments.encrypted_training.settings import EncryptedJob, read_job
from experiments.training.finetune import Start, load_rows
from models.config import preset
from models.data.datasets import load
from models.data.tasks import TaskData
from models.data.tokenizer import Tokenizer
from models.nn.encoder import Model

pytestmark = pytest.mark.usefixtures("quick_compilation")

SETTINGS = {
    "task.task": "sst-2",
    "task.length": 8,
    "training.batch": 1,
    "training.pooling": "token",
    "training.learning_rate": 2e-2,
    "training.epsilon": 2e-3,
    "training.rank": 1,
    "training.alpha": 4.0,
}


@pytest.fixture(scope="module")
def given(glue: Path) -> tuple[Start, TaskData, EncryptedJob]:
    tokenizer = Tokenizer.train(load("glue/SST-2", data_dir=glue).train.texts, size=64)
    config = preset(
        "tiny", layers=1, hidden=8, ffn=4, sequence=8, pooler=(8,), vocabulary=tokenizer.size
    )
    start = Start(config, Model(config).init(jax.random.key(0)), tokenizer)
    job = read_job(None, SETTINGS)
    ring = dataclasses.replace(job.how.ckks, log_n=12, security=None)
    job = dataclasses.replace(job, how=dataclasses.replace(job.how, ckks=ring, range_rows=64))
    return start, load_rows(start, job.task, 8, 0, "cross-encoder", str(glue)), job


@pytest.fixture(scope="module")
def case(given: tuple[Start, TaskData, EncryptedJob]) -> Gradient:
    return gradient(*given, 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::hesim.errors.EmptySlotsWarning")
def test_gradients_are_those_of_the_loss_and_their_errors_those_predicted(case: Gradient):
    moved = case.args[0]["blocks"][0]["attention"]["query"]["lora_b"]
    assert np.abs(moved).max() > 1e-3
    circuit = hesim.compile(case.program, case.training.how.ckks)
    runs = list(measure(case, circuit, 3, workers=1))
    certified = hesim.certify(circuit, case.args, keys=16)
    names = [*case.names, "logits"]
    found = groups(names, runs, certified, simulated(case, circuit, 16))
    assert names[0] == "blocks.0.attention.key.lora_a" and len(names) == len(found)
    assert all(group.holds for group in found), table(found)
    plain = jax.tree.leaves(case.training.gradient(*case.args))
    for (_, exact), other in zip(runs[0], plain, strict=True):
        np.testing.assert_allclose(exact, other, atol=1e-4 * np.abs(exact).max())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::hesim.errors.EmptySlotsWarning")
def test_what_steps_leave_is_as_far_from_exact_as_certified_and_simulated(
    given: tuple[Start, TaskData, EncryptedJob],
):
    steps = carried_steps.steps_of(*given, 3)
    circuit = steps.training.compile(steps.program)
    runs = list(carried_steps.measure(steps, circuit, 2, workers=1))
    certified = carried_steps.certified(steps, circuit, 8)
    simulated = carried_steps.simulated(steps, circuit, 8)
    secret = [k for k, own in enumerate(certified.outputs) if own is not None]
    assert len(steps.names) == len(simulated) == len(secret) + 1  # all but the count
    for k in secret:
        own = certified.outputs[k]
        assert own is not None
        measured = np.sqrt(np.mean([np.mean((run[k][0] - run[k][1]) ** 2) for run in runs]))
        for predicted in (own.std, simulated[k]):
            assert abs(np.log2(measured / predicted)) < 1.0, (steps.names[k], measured, predicted)


def test_a_group_fails_by_a_large_error_and_by_one_that_was_not_predicted():
    sound = Group("w", 4, 1.0, 2.0**-9, 2.0**-12, (2.0**-12,), 2.0**-12, 2.0**-12, 0.1)
    assert sound.holds and not dataclasses.replace(sound, worst=2.0**-7).holds
    for predicted in ("certified", "simulated"):
        wrong = dataclasses.replace(sound, **{predicted: 2.0**-13})
        assert not wrong.holds and table([wrong]).endswith("*")
        assert dataclasses.replace(wrong, standard_error=0.5).holds
