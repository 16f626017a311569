"""`hesim pretrain` and `hesim publish`: log, stop by a signal, going on, and the model folder."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest

from experiments import training
from experiments.cli import main
from experiments.console import Display
from experiments.errors import ExperimentError
from experiments.training.logbook import Logbook
from experiments.training.pretrain import Job, read_corpus, read_job, run_pretraining
from experiments.training.publish import card, publish
from experiments.training.signals import until_signalled
from models.config import PRESETS
from models.weights.shipped import SHIPPED, load_pretrained

SETTINGS = """
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
steps = 60
batch = 16
rate = 2e-2
chunk = 0
log_every = 5
evaluate_every = 30
[card]
data = "Sentences about animals, made for this test."
licence = "MIT"
"""


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def job_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("job")
    (folder / "s.toml").write_text(SETTINGS)
    texts = folder / "texts"
    texts.mkdir()
    rng = np.random.default_rng(0)
    pairs = [("fox", "red"), ("crow", "black"), ("frog", "green"), ("swan", "white")]
    for part in range(4):
        chosen = [[pairs[i] for i in rng.integers(0, 4, 2)] for _ in range(160)]
        lines = [f"the {a[0]} is {a[1]} and the {b[0]} is {b[1]}" for a, b in chosen]
        (texts / f"{part}.txt").write_text("\n".join(lines))
    return folder / "s.toml", texts


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(job_files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that SIGTERM stopped once and that then went on to its end."""
    config, texts = job_files
    out = tmp_path_factory.mktemp("out")
    job = read_job(config)

    class Killing(Display):
        @contextlib.contextmanager
        def bar(self, title, total):
            with super().bar(title, total) as update:

                def seen(done, note, left):
                    update(done, note, left)
                    if done >= 0.25:
                        os.kill(os.getpid(), signal.SIGTERM)

                yield seen

    before = signal.getsignal(signal.SIGTERM)
    first = run_pretraining(job, texts, out, Killing(quiet=True))
    assert signal.getsignal(signal.SIGTERM) is before
    assert not first.finished and first.step == 15
    with pytest.raises(ExperimentError, match="25 % of its budget"):
        publish(job, texts, out, out / "early", Display(quiet=True))
    second = run_pretraining(job, texts, out, Display(quiet=True))
    assert second.finished and second.step == 60
    return out


def test_the_log_has_each_report_once_and_event_files(finished):
    found = rows(finished)
    assert [int(row["step"]) for row in found] == list(range(5, 61, 5))
    assert all(float(row["loss"]) > 0 for row in found)
    assert [row["step"] for row in found if row["held_out_loss"]] == ["30", "60"]
    events = list((finished / "tensorboard").glob("events.out.tfevents.*"))
    assert events and any(b"held_out_loss" in path.read_bytes() for path in events)


def test_a_published_model_loads_with_its_card_and_facts(job_files, finished, tmp_path):
    config, texts = job_files
    facts = publish(read_job(config), texts, finished, tmp_path / "m", Display(quiet=True))
    assert facts["held_out_loss"] < facts["held_out_loss_by_word_frequency"]
    assert abs(facts["held_out_loss"] - facts["held_out_loss_before_rounding"]) < 0.05
    found = load_pretrained(tmp_path / "m", classes=3)
    assert found.notes["steps"] == 60
    assert found.params["head"]["kernel"].shape == (8, 3)
    page = (tmp_path / "m" / "README.md").read_text()
    assert "made for this test" in page and "layer0.attention.exp" in page
    assert "An encoder" in page and "by masked language modelling" in page
    assert "masked language modelling: 25 %" in facts["objective"]
    assert "licensed under MIT, as far" in page


@pytest.mark.parametrize("name", ["tiny-gaussian", "tiny-softmax"])
def test_the_shipped_cards_are_what_publishing_writes(name: str):
    """Of their settings and notes, the weights' licence included."""
    job = read_job(Path(training.__path__[0]) / "settings" / f"{name}.toml")
    notes = json.loads((SHIPPED / name / "notes.json").read_text())
    assert (SHIPPED / name / "README.md").read_text() == card(name, job, notes)
    assert "licensed under Apache-2.0" in card(name, job, notes)


def lines_of(job: Job, texts: Path, out: Path) -> str:
    class Heard(Display):
        said = ""

        def say(self, text: str, dim: str = "") -> None:
            self.said += text + dim + "\n"

    display = Heard(quiet=True)
    assert run_pretraining(job, texts, out, display).finished
    return display.said


def test_a_decoder_is_trained_and_published_as_one(job_files, tmp_path):
    config, texts = job_files
    text = config.read_text().replace("[text]", "causal = true\n[text]")
    (tmp_path / "d.toml").write_text(text)
    job = read_job(tmp_path / "d.toml")
    assert "by next-word prediction" in lines_of(job, texts, tmp_path / "o")
    facts = publish(job, texts, tmp_path / "o", tmp_path / "m", Display(quiet=True))
    corpus = read_corpus(job, texts, tmp_path / "o", Display(quiet=True))
    # The baseline counts what is guessed: the end of a sentence, too, but never a hidden word.
    counts = np.bincount(corpus.train.tokens, minlength=corpus.tokenizer.size) + 1
    expected = -np.log(counts / counts.sum())[corpus.held_out.tokens].mean()
    assert facts["held_out_loss_by_word_frequency"] == pytest.approx(expected)
    assert facts["held_out_loss"] < 0.5 * expected
    assert facts["objective"].startswith("next-word prediction")
    found = load_pretrained(tmp_path / "m")
    assert found.model.config.causal and found.notes["objective"] == facts["objective"]
    page = (tmp_path / "m" / "README.md").read_text()
    assert "A decoder" in page and "by next-word prediction" in page and "mask" not in page


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_trained_with_the_templates_defaults(name: str, job_files, tmp_path):
    small = "layers = 1\nhidden = 16\nheads = 2\nffn = 16\npooler = [8]"
    rest = "[text]\nlength = 16\nvocabulary = 60\nheld_out = 0.2\n[training]\nsteps = 1"
    (tmp_path / "s.toml").write_text(f'[model]\npreset = "{name}"\n{small}\n{rest}\nbatch = 4')
    said = lines_of(read_job(tmp_path / "s.toml"), job_files[1], tmp_path / "o")
    learned = PRESETS[name].positions == "learned"
    assert ("random parameters to start from" in said) == learned


def test_the_command_refuses_what_it_cannot_do(job_files, finished, tmp_path, capsys):
    config, texts = job_files
    with pytest.raises(SystemExit) as done:
        main(["pretrain", "--data", str(tmp_path), "--out", str(tmp_path / "o")])
    assert done.value.code == 2 and "holds no" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        main(["pretrain", "--config", str(config)])
    assert done.value.code == 2
    with pytest.raises(SystemExit) as done:
        main(["pretrain", "--template"])
    assert done.value.code == 0 and "[training]" in capsys.readouterr().out


def test_a_resumed_log_drops_what_came_after_its_checkpoint(tmp_path):
    with Logbook(tmp_path) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": float(step)})
    with Logbook(tmp_path, from_step=2) as log:
        log.write(3, {"loss": 9.0, "accuracy": 0.5})
    found = rows(tmp_path)
    assert [(row["step"], row["loss"], row["accuracy"]) for row in found] == [
        ("1", "1.0", ""),
        ("2", "2.0", ""),
        ("3", "9.0", "0.5"),
    ]


def test_a_log_is_left_alone_before_the_first_figures_and_loses_a_line_cut_off(tmp_path):
    text = "step,loss\n1,5.0\n2,4.0\n3,2.0\n"
    path = tmp_path / "metrics.csv"
    path.write_text(text + "4")
    with Logbook(tmp_path):
        pass
    assert path.read_text() == text + "4"
    with Logbook(tmp_path, from_step=40) as log:
        log.write(41, {"loss": 1.0})
    assert path.read_text().split() == [*text.split(), "41,1.0"]


def test_a_second_signal_is_not_held_back():
    # A process that was started in the background of a shell ignores Ctrl-C from the start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with until_signalled() as stop:
            assert not stop()
            signal.raise_signal(signal.SIGINT)
            assert stop()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("step,loss\n10,1.0\n20,0.5\n30,0.4\n40,0.", False),
        ("step,loss\n10,1.0\n20,0.5\n30,0.4\n", False),
        ("step,loss\n10,1.0\n\x00\x00,0.5\n30,0.4\n40,0.3\n", True),
        ("step,loss\n10,1.0\n2", True),
    ],
)
def test_rows_that_damage_cost_are_told_from_those_of_a_kill(
    tmp_path: Path, text: str, lost: bool
) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    with warnings.catch_warnings(record=True) as caught, Logbook(tmp_path, from_step=30) as log:
        warnings.simplefilter("always")
        log.write(40, {"loss": 0.25})
    told = [str(w.message) for w in caught if "metrics.csv was damaged" in str(w.message)]
    assert len(told) == lost
    kept = (tmp_path / "metrics.csv").read_text().splitlines()
    assert kept[0] == "step,loss" and kept[1] == "10,1.0" and kept[-1] == "40,0.25"
