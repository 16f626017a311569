"""The commands that make models, one after another on toy data, as a person types them: what each
exits with, leaves in its folder and says; and Ctrl-C in the three that train.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from experiments.cli import common, main
from models.data.datasets import GLUE
from models.data.tokenizer import SPECIAL_TOKENS
from models.weights.folder import load_model
from models.weights.safetensors import write_safetensors
from models.weights.shipped import load_pretrained

pytestmark = pytest.mark.usefixtures("quick_compilation")

ANIMALS = {"fox": "red", "crow": "black", "frog": "green", "swan": "white"}
PRETRAIN = """
[model]
layers = 1
hidden = 16
ffn = 16
pooler = [8]
[text]
length = 16
vocabulary = 60
held_out = 0.2
[training]
steps = 500
batch = 16
rate = 2e-2
chunk = 0
log_every = 10
evaluate_every = 250
[card]
data = "Sentences about animals, made for this test."
"""
FINETUNE = """
[task]
length = 16
[training]
epochs = 10
batch = 8
learning_rate = 1e-2
buckets = [16]
"""
DISTIL = """
[text]
length = 16
held_out_rows = 16
[start]
rows = 32
[training]
steps = 400
batch = 8
rate = 3e-3
buckets = [16]
log_every = 10
evaluate_every = 200
"""


def sentence(random: np.random.Generator, right: bool) -> str:
    animal = str(random.choice([*ANIMALS]))
    colours = [c for a, c in ANIMALS.items() if (a == animal) == right]
    return f"the {animal} is {random.choice(colours)}"


def write_texts(folder: Path) -> None:
    """Four files of sentences in which an animal has its own colour."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for part in range(4):
        lines = [f"{sentence(random, True)} and {sentence(random, True)}" for _ in range(160)]
        (folder / f"{part}.txt").write_text("\n".join(lines))


def write_glue(top: Path) -> None:
    """40 training and 20 held-out rows of an RTE and of an STS-B in GLUE's columns."""
    random = np.random.default_rng(1)
    for part, count in (("train", 40), ("dev", 20)):
        rte, sts = ["index\tsentence1\tsentence2\tlabel"], ["index\tsentence1\tsentence2\tscore"]
        for n in range(count):
            first, same = sentence(random, True), bool(n % 2)
            second = first if same else sentence(random, False)
            rte.append(f"{n}\t{first}\t{second}\t{'entailment' if same else 'not_entailment'}")
            sts.append(f"{n}\t{first}\t{second}\t{4.0 + n % 3 / 2 if same else n % 5 / 2:.3f}")
        for task, lines in (("RTE", rte), ("STS-B", sts)):
            (top / task).mkdir(parents=True, exist_ok=True)
            (top / task / f"{part}.tsv").write_text("\n".join(lines) + "\n")


def write_bert(folder: Path) -> None:
    """A BERT of one layer with random weights, as the Hugging Face library lays it out."""
    words = [*SPECIAL_TOKENS, "the", "is", "and", *ANIMALS, *ANIMALS.values()]
    h, f = 16, 32
    config = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": h,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": f,
        "max_position_embeddings": 24,
        "type_vocab_size": 2,
        "vocab_size": len(words),
    }
    layer = "encoder.layer.0"
    shapes = {
        "embeddings.word_embeddings.weight": (len(words), h),
        "embeddings.position_embeddings.weight": (24, h),
        "embeddings.token_type_embeddings.weight": (2, h),
        f"{layer}.intermediate.dense.weight": (f, h),
        f"{layer}.intermediate.dense.bias": (f,),
        f"{layer}.output.dense.weight": (h, f),
        f"{layer}.output.dense.bias": (h,),
    }
    for name in ("self.query", "self.key", "self.value", "output.dense"):
        place = f"{layer}.attention.{name}"
        shapes |= {f"{place}.weight": (h, h), f"{place}.bias": (h,)}
    for place in ("embeddings", f"{layer}.attention.output", f"{layer}.output"):
        shapes |= {f"{place}.LayerNorm.{part}": (h,) for part in ("weight", "bias")}
    random = np.random.default_rng(2)
    tensors = {name: random.normal(0, 0.4, s).astype(np.float32) for name, s in shapes.items()}
    for name in tensors:
        if name.endswith("LayerNorm.weight"):
            tensors[name] += 1
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    write_safetensors(folder / "model.safetensors", tensors)


class Done(NamedTuple):
    """An exit code, and what was printed on both outputs, as one line."""

    code: int
    said: str


def hesim(*arguments: str | Path) -> Done:
    """The command, in this process."""
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        pytest.raises(SystemExit) as done,
    ):
        main([str(argument) for argument in arguments])
    assert isinstance(done.value.code, int)
    return Done(done.value.code, " ".join(printed.getvalue().split()))


def interrupted(*arguments: str | Path) -> Done:
    """The command in a process of its own, with Ctrl-C once it has told of a step."""
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        [sys.executable, "-m", "experiments", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    assert child.stdout is not None
    lines: list[str] = []
    for line in child.stdout:
        lines.append(line)
        if re.search(r"step \d+, ", line):
            child.send_signal(signal.SIGINT)
            break
    lines += child.stdout.readlines()
    return Done(child.wait(), " ".join(" ".join(lines).split()))


@pytest.mark.parametrize(
    ("module", "job", "command"),
    [
        ("pretrain", "run_pretraining", ("pretrain", "--data", ".")),
        ("distil", "run_distilling", ("distil", "a", "b")),
        ("finetune", "run_finetuning", ("finetune",)),
    ],
)
def test_ctrl_c_before_the_first_step_says_how_to_go_on(
    module: str, job: str, command: tuple[str, ...], tmp_path: Path, monkeypatch
):
    def ended(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"experiments.training.{module}.{job}", ended)
    done = hesim(*command, "--out", tmp_path / "out")
    said = f"stopped; the same command goes on from {tmp_path / 'out'}"
    assert done == Done(common.INTERRUPTED, said)


def log_of(out: Path) -> list[int]:
    with open(out / "metrics.csv", newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


class Trained(NamedTuple):
    """A training that Ctrl-C stopped, and that the same command then ended."""

    stopped: Done
    steps: list[int]
    models: list[Path]
    ended: Done
    out: Path


def stopped_and_ended(out: Path, *arguments: str | Path) -> Trained:
    command = (*arguments, "--out", out)
    stopped = interrupted(*command)
    steps, models = log_of(out), list(out.glob("model"))
    return Trained(stopped, steps, models, hesim(*command), out)


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, tasks, a BERT and settings."""
    folder = tmp_path_factory.mktemp("commands")
    write_texts(folder / "texts")
    write_glue(folder / "glue")
    write_bert(folder / "bert")
    for name, text in (("pretrain", PRETRAIN), ("finetune", FINETUNE), ("distil", DISTIL)):
        (folder / f"{name}.toml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def pretrained(top: Path) -> Trained:
    chosen = ("--config", top / "pretrain.toml", "--data", top / "texts")
    return stopped_and_ended(top / "pretrained", "pretrain", *chosen)


@pytest.fixture(scope="module")
def published(top: Path, pretrained: Trained) -> tuple[Done, Path]:
    chosen = ("--config", top / "pretrain.toml", "--data", top / "texts")
    return hesim("publish", pretrained.out, "--to", top / "encoder", *chosen), top / "encoder"


@pytest.fixture(scope="module")
def finetuned(top: Path, published: tuple[Done, Path]) -> Trained:
    chosen = ("--config", top / "finetune.toml", "--data-dir", top / "glue")
    start = ("--task", "rte", "--method", "full", "--start", published[1])
    return stopped_and_ended(top / "finetuned", "finetune", *start, *chosen)


@pytest.fixture(scope="module")
def converted(top: Path) -> tuple[Done, Path]:
    chosen = ("--attention", "gaussian", "--activation", "relu", "--pooler", "8")
    return hesim("convert", top / "bert", "--out", top / "student", *chosen), top / "student"


@pytest.fixture(scope="module")
def distilled(top: Path, converted: tuple[Done, Path]) -> Trained:
    texts = ("--data", "glue/STS-B", "--data-dir", top / "glue", "--text", top / "texts")
    chosen = ("--config", top / "distil.toml", *texts)
    return stopped_and_ended(top / "distilled", "distil", top / "bert", converted[1], *chosen)


@pytest.mark.parametrize("name", ["pretrained", "finetuned", "distilled"])
def test_ctrl_c_saves_and_says_how_to_go_on_and_the_same_command_does(
    name: str, request: pytest.FixtureRequest
):
    done: Trained = request.getfixturevalue(name)
    assert done.stopped.code == common.INTERRUPTED, done.stopped.said
    assert "stopped" in done.stopped.said and "Traceback" not in done.stopped.said
    assert f"the same command goes on from {done.out}" in done.stopped.said
    assert not done.models
    assert done.ended.code == 0, done.ended.said
    at = re.search(r"going on from step ([\d,]+)", done.ended.said)
    assert at is not None
    steps = log_of(done.out)
    assert done.steps[-1] <= int(at.group(1).replace(",", "")) < steps[-1]
    assert steps == sorted(set(steps)) and set(done.steps) < set(steps)
    assert list((done.out / "tensorboard").glob("events.out.tfevents.*"))
    assert (done.out / "checkpoints").is_dir()


def test_a_pretrained_model_is_published_with_its_card(
    pretrained: Trained, published: tuple[Done, Path]
):
    done, folder = published
    assert "500 steps in" in pretrained.ended.said and str(pretrained.out) in pretrained.ended.said
    assert done.code == 0 and "nats a held-out word after 500 steps" in done.said
    card = (folder / "README.md").read_text()
    assert "made for this test" in card and "500 steps of 16 rows" in card
    found = load_pretrained(folder, classes=2)
    assert found.notes["held_out_loss"] < 0.7 * found.notes["held_out_loss_by_word_frequency"]
    assert found.tokenizer.size == found.model.config.vocabulary <= 60


def test_a_finetuned_model_keeps_what_it_was_trained_on(finetuned: Trained, top: Path):
    saved = load_model(finetuned.out / "model")
    assert (saved.notes["task"], saved.notes["method"]) == ("glue/RTE", "full")
    assert saved.notes["start"] == str(top / "encoder") and len(saved.notes["history"]) == 10
    assert saved.tokenizer is not None and saved.config.lora_rank == 0
    assert f"{saved.notes['trainable']:,} numbers trained" in finetuned.ended.said
    again = hesim("finetune", "--task", "rte", "--out", finetuned.out, "--data-dir", top / "glue")
    assert again.code == common.REFUSED and "finished already" in again.said


def test_evaluate_tells_three_scores_of_a_finetuned_model(finetuned: Trained, top: Path):
    done = hesim("evaluate", finetuned.out, "--data-dir", top / "glue")
    assert done.code == 0
    for word in ("exact", "polynomial", "simulated", "layer0.attention.exp", "pooler.tanh"):
        assert word in done.said


def test_a_converted_bert_says_what_was_swapped(converted: tuple[Done, Path]):
    done, folder = converted
    assert done.code == 0
    assert "softmax -> gaussian" in done.said and "gelu -> relu" in done.said
    assert "distil or fine-tune it before use" in done.said and str(folder) in done.said
    saved = load_model(folder)
    assert (saved.config.attention, saved.config.activation) == ("gaussian", "relu")
    assert saved.config.pooler == (8,) and saved.tokenizer is not None
    again = hesim("convert", folder.parent / "bert", "--out", folder)
    assert again.code == common.REFUSED and "already exists" in again.said


def test_a_distilled_student_is_nearer_to_its_teacher(
    distilled: Trained, converted: tuple[Done, Path]
):
    figures = json.loads((distilled.out / "agreement.json").read_text())
    final = {name: row["states"][-1] for name, row in figures["agreement"].items()}
    assert final["distilled"] < 0.8 * final["as converted"] and figures["steps"] == 400
    assert "Spearman of mean-pooled embeddings, distilled" in distilled.ended.said
    student = load_model(distilled.out / "model")
    assert student.config == load_model(converted[1]).config
    assert student.notes["distilled"]["texts"] == ["glue/STS-B", "texts"]


@pytest.fixture(scope="module")
def study(top: Path, published: tuple[Done, Path]) -> Callable[[], Done]:
    rows = [f"[{task}]\nepochs = 2\nbatch = 8\nbuckets = [16]\n" for task in GLUE]
    (top / "table.toml").write_text("\n".join(rows))
    chosen = ("--tasks", "rte", "--columns", "full-gaussian", "--seeds", "1")
    where = ("--data-dir", top / "glue", "--settings", top / "table.toml", "--length", "16")
    start = ("--start-gaussian", published[1], "--out", top / "study")
    return lambda: hesim("study", "glue", *chosen, *where, *start)


def test_a_study_ends_with_its_tables_and_repeats_nothing(study: Callable[[], Done], top: Path):
    done, out = study(), top / "study"
    assert done.code == 0, done.said
    with open(out / "glue.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["column"]) for row in rows] == [("RTE", "full-gaussian")]
    text = (out / "glue.txt").read_text()
    assert "RTE" in text and " ".join(text.split()) in done.said
    assert (out / "glue.png").read_bytes().startswith(b"\x89PNG")
    runs = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    assert runs and study().code == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.json")} == runs
