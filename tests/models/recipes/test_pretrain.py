"""Pre-training: it learns, stops and resumes to the bit, narrows ranges, refuses other folders."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from hesim.errors import ParameterError
from models.config import EncoderConfig
from models.data.corpus import Corpus
from models.errors import CheckpointError
from models.objectives.next_word import NextWord
from models.recipes.pretrain import Pretrained, Pretraining, guessing_of, pretrain
from models.train.loop import Progress
from models.train.schedules import Budget

CONFIG = EncoderConfig(
    layers=1, hidden=16, heads=2, ffn=16, sequence=16, pooler=(8,), lm_head="tied", first_norm=True
)
SETTINGS = Pretraining(
    config=CONFIG,
    batch=16,
    budget=Budget(steps=60),
    rate=2e-2,
    log_every=5,
    evaluate_every=20,
    chunk=32,
    held_out_rows=32,
    save_seconds=0.0,
    penalty=0.5,
    penalty_last=0.5,
    targets=(("relu", (-1.0, 1.0)),),
)


pytestmark = pytest.mark.usefixtures("quick_compilation")


def write_texts(folder: Path) -> Path:
    """Sentences in which a colour follows an animal of its own."""
    rng = np.random.default_rng(0)
    pairs = [("fox", "red"), ("crow", "black"), ("frog", "green"), ("swan", "white")]
    for part in range(4):
        lines = []
        for _ in range(160):
            a, b = (pairs[i] for i in rng.integers(0, 4, 2))
            lines.append(f"the {a[0]} is {a[1]} and the {b[0]} is {b[1]}")
        (folder / f"{part}.txt").write_text("\n".join(lines))
    return folder


def read(folder: Path) -> Corpus:
    return Corpus.read(folder, length=16, vocabulary=60, held_out=0.2)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def whole(texts, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pretrained, list[Progress]]:
    reports: list[Progress] = []
    folder = tmp_path_factory.mktemp("whole")
    return pretrain(SETTINGS, read(texts), folder, report=reports.append), reports


def test_held_out_loss_falls_and_figures_are_reported(whole):
    result, reports = whole
    held = [r.figures["held_out_loss"] for r in reports if "held_out_loss" in r.figures]
    assert len(held) == 3 and held[-1] < held[0] and held[-1] < 0.6 * np.log(20)
    assert result.finished and result.step == 60 and result.evaluated.loss == held[-1]
    assert [r.step for r in reports] == list(range(5, 61, 5))
    rates = [r.figures["learning_rate"] for r in reports]
    assert max(rates) == rates[1] and rates[-1] == pytest.approx(0.0)
    assert "penalty" in reports[-1].figures and "penalty" not in reports[0].figures


def test_the_penalty_narrows_the_range_that_is_met(texts, whole, tmp_path):
    without = dataclasses.replace(SETTINGS, penalty=0.0)
    free = pretrain(without, read(texts), tmp_path).evaluated
    kept = whole[0].evaluated
    assert free is not None and kept is not None
    width = [high - low for low, high in (e.ranges["layer0.ffn.relu"] for e in (kept, free))]
    assert width[0] < 0.8 * width[1]


@pytest.mark.parametrize("stop", [7, 38])
def test_a_stopped_run_goes_on_to_the_same_bits(texts, whole, tmp_path, stop: int):
    corpus, calls = read(texts), [0]

    def stopped() -> bool:
        calls[0] += 1
        return calls[0] > stop

    first = pretrain(SETTINGS, corpus, tmp_path, stop=stopped)
    assert not first.finished and 0 < first.step < 60
    second = pretrain(SETTINGS, corpus, tmp_path)
    assert second.finished
    jax.tree.map(np.testing.assert_array_equal, second.params, whole[0].params)


DECODER = dataclasses.replace(
    SETTINGS, config=CONFIG.replace(causal=True), penalty=0.0, save_seconds=180.0
)


@pytest.fixture(scope="module")
def decoder(texts, tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    return pretrain(DECODER, read(texts), tmp_path_factory.mktemp("decoder"))


def test_a_causal_model_learns_the_next_word_from_more_than_the_last(texts, decoder):
    guessing = guessing_of(decoder.model.config, read(texts).tokenizer, DECODER.share)
    assert isinstance(guessing, NextWord)
    # Of ten tokens the last one leaves two animals and two colours of four open, and twice whether
    # the sentence goes on.
    by_the_last = (4 * np.log(4) + 2 * np.log(2)) / 10
    assert decoder.evaluated is not None and decoder.evaluated.loss < 0.9 * by_the_last
    assert decoder.evaluated.accuracy > 0.6


def test_a_stopped_decoder_goes_on_to_the_same_bits(texts, decoder, tmp_path):
    calls = iter(range(38))
    first = pretrain(DECODER, read(texts), tmp_path, stop=lambda: next(calls, None) is None)
    assert not first.finished and 0 < first.step < 60
    second = pretrain(DECODER, read(texts), tmp_path)
    assert second.finished
    jax.tree.map(np.testing.assert_array_equal, second.params, decoder.params)


def test_a_share_of_k_in_n_penalises_the_last_k_of_n_steps(texts, tmp_path):
    settings = dataclasses.replace(
        SETTINGS, budget=Budget(10), penalty_last=3 / 10, log_every=1, save_seconds=180.0
    )
    reports: list[Progress] = []
    pretrain(settings, read(texts), tmp_path, report=reports.append)
    assert [r.step for r in reports if "penalty" in r.figures] == [8, 9, 10]


def test_what_a_training_starts_from_is_what_its_model_can(texts, tmp_path):
    learned = CONFIG.replace(positions="learned")
    assert Pretraining(config=CONFIG).starts_from() == "corpus"
    assert Pretraining(config=learned).starts_from() == "random"
    assert Pretraining(config=CONFIG, initial="random").starts_from() == "random"
    wide = Pretraining(config=CONFIG.replace(hidden=128))
    assert (wide.starts_from(), wide.starts_from(words=60)) == ("corpus", "random")
    asked = dataclasses.replace(wide, initial="corpus")
    with pytest.raises(ParameterError, match="a vocabulary of 60 is too small"):
        pretrain(asked, read(texts), tmp_path)


def test_another_trainings_folder_is_refused(texts, tmp_path):
    calls = [0]

    def stopped() -> bool:
        calls[0] += 1
        return calls[0] > 3

    pretrain(SETTINGS, read(texts), tmp_path, stop=stopped)
    with pytest.raises(CheckpointError, match="settings.rate is"):
        pretrain(dataclasses.replace(SETTINGS, rate=1e-3), read(texts), tmp_path)


KILLED = """
import sys
import jax
jax.config.update("jax_disable_most_optimizations", True)
sys.path.insert(0, {here!r})
from test_pretrain import SETTINGS, read
from models.recipes.pretrain import pretrain
from pathlib import Path
report = lambda progress: print(progress.step, flush=True)
pretrain(SETTINGS, read(Path({texts!r})), {folder!r}, report=report)
"""


def test_a_killed_run_goes_on_to_the_same_bits(texts, whole, tmp_path):
    code = KILLED.format(
        here=str(Path(__file__).parent), texts=str(texts), folder=str(tmp_path / "run")
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    kill_at = int(np.random.default_rng(os.getpid()).integers(2, 11))
    for number, _ in enumerate(child.stdout):
        if number == kill_at:
            child.send_signal(signal.SIGKILL)
            break
    assert child.wait() == -signal.SIGKILL
    reports: list[Progress] = []
    result = pretrain(SETTINGS, read(texts), tmp_path / "run", report=reports.append)
    assert 5 < reports[0].step <= 60, "nothing was resumed"
    jax.tree.map(np.testing.assert_array_equal, result.params, whole[0].params)


SPREAD = """
import sys
import jax
jax.config.update("jax_disable_most_optimizations", True)
sys.path.insert(0, {here!r})
from test_pretrain import SETTINGS, read
from models.recipes.pretrain import pretrain
from models.train.sharding import make_mesh
from pathlib import Path
calls = []
stop = lambda: len(calls) == 2
report = lambda progress: (calls.append(0), print(progress.figures["loss"]))
mesh = make_mesh(2, 2)
pretrain(SETTINGS, read(Path({texts!r})), {folder!r}, report=report, stop=stop, mesh=mesh)
"""


def test_four_devices_train_as_one_and_one_goes_on(texts, whole, tmp_path):
    code = SPREAD.format(
        here=str(Path(__file__).parent), texts=str(texts), folder=str(tmp_path / "run")
    )
    flags = f"--xla_force_host_platform_device_count=4 {os.environ['XLA_FLAGS']}"
    env = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    expected = [report.figures["loss"] for report in whole[1]]
    np.testing.assert_allclose([float(x) for x in done.stdout.split()], expected[:2], rtol=1e-5)
    result = pretrain(SETTINGS, read(texts), tmp_path / "run")
    assert result.finished and result.evaluated is not None
    np.testing.assert_allclose(result.evaluated.loss, whole[0].evaluated.loss, rtol=1e-2)


def test_a_mesh_that_does_not_divide_is_refused(texts, tmp_path):
    for rows, said in (
        (AbstractMesh((3, 1), ("data", "tensor")), "16 rows"),
        (AbstractMesh((1, 4), ("data", "tensor")), "2 heads"),
    ):
        with pytest.raises(ParameterError, match=f"{said} cannot be cut"):
            pretrain(SETTINGS, read(texts), tmp_path, mesh=rows)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": CONFIG.replace(lm_head="none")}, "lm_head"),
        ({"targets": (("gelu", (-1.0, 1.0)),)}, "gelu"),
        ({"accumulate": 3}, "multiple"),
        ({"batch": 0}, "batch"),
        ({"share": 1.5}, "share"),
        ({"rate": -1.0}, "rate"),
        ({"rise": 0.0}, "rise"),
        ({"b2": 1.0}, "b2"),
        ({"initial": "text"}, "corpus or random"),
        ({"initial": "corpus", "config": CONFIG.replace(positions="learned")}, "'learned'"),
        ({"initial": "corpus", "config": CONFIG.replace(positions="none")}, "'none'"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message: str):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, **changes)
