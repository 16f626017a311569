"""`hesim distil`: options, texts, going on after a stop, and the folder of the student."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.cli import main
from experiments.console import Display
from experiments.errors import ExperimentError
from experiments.training import distil
from experiments.training.distil import (
    distil_template,
    read_distilling,
    read_texts,
    run_distilling,
)
from models.config import preset
from models.data.tokenizer import Tokenizer
from models.errors import CheckpointError
from models.nn.encoder import Model
from models.train.step import StepOptions
from models.weights.folder import save_model
from models.weights.shipped import load_pretrained

pytestmark = pytest.mark.usefixtures("quick_compilation")

SETTINGS = """
[text]
length = 8
held_out = 0.3
held_out_rows = 16
[start]
rows = 32
[training]
steps = 20
batch = 8
rate = 3e-3
buckets = [8]
log_every = 5
evaluate_every = 10
[penalty]
penalty = 0.1
"""


@pytest.fixture(scope="module")
def models(glue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with softmax, a student with a Gaussian kernel, texts and settings."""
    top = tmp_path_factory.mktemp("models")
    random = np.random.default_rng(0)
    words = ["red", "green", "blue", "fox", "crow", "swan", "runs", "sleeps"]
    (top / "texts").mkdir()
    lines = [" ".join(random.choice(words, random.integers(2, 6))) for _ in range(600)]
    (top / "texts" / "a.txt").write_text("\n".join(lines))
    tokenizer = Tokenizer.train(lines, size=40)
    config = preset(
        "bert",
        layers=1,
        hidden=8,
        heads=2,
        ffn=8,
        sequence=8,
        pooler=(8,),
        vocabulary=tokenizer.size,
    )
    params = Model(config).init(jax.random.key(0))
    for name in ("query", "key", "value", "output"):
        params["blocks"][0]["attention"][name]["kernel"] *= 40
    save_model(top / "teacher", config, params, tokenizer, {"origin": "a test"})
    gaussian = config.replace(attention="gaussian", attention_mean=True)
    save_model(top / "student", gaussian, params, tokenizer, {"converted": "from a test"})
    (top / "settings.toml").write_text(SETTINGS)
    return top


def test_a_stopped_distillation_goes_on_and_leaves_a_model(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = read_distilling(models / "settings.toml")
    arguments = (job, models / "teacher", models / "student", tmp_path / "out", Display(quiet=True))
    whole = distil.distil

    def until_five(*args, **kwargs):
        calls = iter(range(1000))
        counted = {"stop": lambda: next(calls) > 7, "waiting": None}  # asked once a step
        return whole(*args, **{**kwargs, **counted})

    with monkeypatch.context() as patch:
        patch.setattr(distil, "distil", until_five)
        first = run_distilling(*arguments, text=models / "texts")
    assert not first.finished and not (tmp_path / "out" / "model").exists()
    done = run_distilling(*arguments, text=models / "texts")
    assert done.finished and done.step == 20
    figures = json.loads((tmp_path / "out" / "agreement.json").read_text())
    errors = {name: row["attention"][0] for name, row in figures["agreement"].items()}
    assert errors["as converted"] > errors["at the start"] > errors["distilled"]
    model, params, _, notes = load_pretrained(tmp_path / "out" / "model")
    assert model.config.attention == "gaussian" and notes["converted"] == "from a test"
    assert notes["distilled"]["texts"] == ["texts"]
    same = np.asarray(params["blocks"][0]["ffn"]["up"]["kernel"])
    np.testing.assert_array_equal(same, done.params["blocks"][0]["ffn"]["up"]["kernel"])
    assert (tmp_path / "out" / "metrics.csv").read_text().count("\n") == 5
    with pytest.raises(ExperimentError, match="finished already"):
        run_distilling(*arguments, text=models / "texts")


def test_sentences_come_alone_and_test_splits_not_at_all(models: Path, glue: Path):
    tokenizer = load_pretrained(models / "teacher").tokenizer
    options = read_distilling(models / "settings.toml").text
    found = read_texts(tokenizer, ["glue/SST-2"], str(glue), None, options, 0)
    data = found.datasets[0]
    assert len(found.train.tokens) == len(data.train)
    assert len(found.held_out.tokens) == min(16, len(data.validation))
    both = read_texts(tokenizer, ["glue/SST-2"], str(glue), models / "texts", options, 0)
    assert len(data.train) < len(both.train.tokens) < len(data.train) + 600
    with pytest.raises(ExperimentError, match="name texts"):
        read_texts(tokenizer, [], None, None, options, 0)


def test_models_that_do_not_go_together_are_refused(models: Path, tmp_path: Path):
    job = read_distilling(models / "settings.toml")
    other = load_pretrained(models / "student")
    words = Tokenizer.train(["other words altogether"], size=30)
    config = other.model.config.replace(vocabulary=words.size)
    save_model(tmp_path / "o", config, Model(config).init(jax.random.key(0)), words)
    with pytest.raises(CheckpointError, match="different vocabularies"):
        run_distilling(
            job,
            models / "teacher",
            tmp_path / "o",
            tmp_path / "out",
            Display(quiet=True),
            text=models / "texts",
        )


def test_a_model_that_reads_pairs_apart_is_named(models: Path, tmp_path: Path):
    other = load_pretrained(models / "student")
    config = other.model.config.replace(pairs="bi-encoder")
    save_model(tmp_path / "o", config, Model(config).init(jax.random.key(0)), other.tokenizer)
    job, show = read_distilling(models / "settings.toml"), Display(quiet=True)
    for pair in ((models / "teacher", tmp_path / "o"), (tmp_path / "o", models / "student")):
        with pytest.raises(CheckpointError, match=r"o reads the sentences of a pair apart"):
            run_distilling(job, *pair, tmp_path / "out", show, text=models / "texts")


def test_the_template_is_the_default_and_wrong_options_are_named(tmp_path: Path, capsys):
    path = tmp_path / "t.toml"
    path.write_text(distil_template())
    assert read_distilling(path) == read_distilling(None)
    path.write_text("[penalty]\nexp = [0.0, -1.0]")
    with pytest.raises(ExperimentError, match="range of exp"):
        read_distilling(path)
    path.write_text('[training]\naccumulate = 2\nprecision = "bfloat16"\nremat = true')
    how = read_distilling(path).settings
    assert (how.options(), how.remat) == (StepOptions(2, "bfloat16", donate=True), True)
    path.write_text('[training]\ntrained = "half"')
    with pytest.raises(ExperimentError, match="attention, blocks or all"):
        read_distilling(path)
    for text, said in (
        ("[text]\nrows = -5", r"rows in \[text\] is -5"),
        ("[text]\nheld_out_rows = -5", "held_out_rows"),
        ("[text]\nheld_out = 1.0", "held_out is 1.0"),
        ("[start]\nrows = -1", r"rows in \[start\]"),
        ("[loss]\nstates = nan", "states"),
        ("[training]\nseconds = inf", "seconds"),
        ("[penalty]\nexp = [-inf, 0.0]", "range of exp"),
    ):
        path.write_text(text)
        with pytest.raises(ExperimentError, match=said):
            read_distilling(path)
    with pytest.raises(SystemExit):
        main(["distil", "--template"])
    assert "temperature" in capsys.readouterr().out
