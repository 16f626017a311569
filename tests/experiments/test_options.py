"""Settings files: a template that reads back as the defaults, and mistakes that are named."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from experiments.errors import ExperimentError
from experiments.training.options import Option, options_of, read_options, template
from experiments.training.pretrain import OPTIONS, read_job, settings_template
from models.config import PRESETS, Activation, Attention, EncoderConfig
from models.recipes.pretrain import Pretraining
from models.sites.sites import function_of, site_names

EXAMPLE = (
    Option("a", "count", 3, "How many."),
    Option("a", "share", 0.5, "Which part."),
    Option("a", "on", True, "Whether."),
    Option("b", "pair", (1.0, 2.0), "From and to."),
    Option("b", "name", "x", "What it is called.", optional=True),
)


def write(folder, text: str):
    path = folder / "s.toml"
    path.write_text(text)
    return path


def test_a_template_reads_back_as_the_defaults(tmp_path):
    path = write(tmp_path, template(EXAMPLE, "An example."))
    assert read_options(path, EXAMPLE) == read_options(None, EXAMPLE)
    assert "# name =" in path.read_text() and "# How many." in path.read_text()


def test_values_of_the_file_win(tmp_path):
    path = write(tmp_path, 'a.share = 1\na.on = false\nb.pair = [3, 4]\nb.name = "y"')
    found = read_options(path, EXAMPLE)
    assert found["a"] == {"count": 3, "share": 1.0, "on": False}
    assert found["b"] == {"pair": (3, 4), "name": "y"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.cuont = 2", "did you mean 'count'"),
        ("c.count = 2", r"\[c\]"),
        ("count = 2", r"'count' outside any section: it belongs under \[a\]"),
        ("A.count = 2", "did you mean 'a'"),
        ("a = 3", r"\[a\]"),
        ("a.count = 2.5", "should be like 3"),
        ("a.count = true", "should be like 3"),
        ("a.on = 1", "should be like true"),
        ("a.count = ", "not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path, text: str, message: str):
    with pytest.raises(ExperimentError, match=message):
        read_options(write(tmp_path, text), EXAMPLE)


def test_a_missing_file_and_an_unknown_field():
    with pytest.raises(ExperimentError, match="cannot read"):
        read_options("absent.toml", EXAMPLE)
    with pytest.raises(ValueError, match="no field"):
        options_of(Pretraining(), "training", {"no_such": ""})


def test_every_setting_of_a_pre_training_is_documented():
    names = {option.name for option in OPTIONS}
    settings = {field.name for field in dataclasses.fields(Pretraining)}
    assert settings - names == {"config", "budget", "targets"}
    given_elsewhere = {"sequence", "classes", "padding_id", "lm_head", "pairs"}  # by text, task
    config = {f.name for f in dataclasses.fields(EncoderConfig) if not f.name.startswith("lora_")}
    assert config - names == given_elsewhere


def test_every_option_has_a_sentence_of_its_own():
    docs = [option.doc for option in OPTIONS]
    assert len(set(docs)) == len(docs)
    assert all(len(doc.split()) >= 2 and doc.rstrip()[-1] == "." for doc in docs)
    named = [o.doc.lower() for o in OPTIONS if o.section == "model" and o.name != "preset"]
    assert not [doc for doc in named if "encoderconfig" in doc], "explains nothing to a user"


@pytest.mark.parametrize("settings", [EncoderConfig, Pretraining])
def test_every_value_of_a_choice_is_named(settings: type):
    docs = {option.name: option.doc for option in OPTIONS}
    kinds = {name: kind for name, kind in get_type_hints(settings).items() if name in docs}
    found = 0
    for name, kind in kinds.items():
        parts = (kind,) if get_origin(kind) is Literal else get_args(kind)
        for choice in (c for part in parts if get_origin(part) is Literal for c in get_args(part)):
            assert re.search(rf"(?<!\w){choice}(?!\w)", docs[name]), f"{name}: {choice}"
            found += 1
    assert found >= (20 if settings is EncoderConfig else 4)


@pytest.mark.parametrize("attention", get_args(Attention))
def test_every_function_that_pre_training_meets_has_a_range(tmp_path, attention: str):
    for activation in get_args(Activation):
        text = f'model.attention = "{attention}"\nmodel.activation = "{activation}"'
        settings = read_job(write(tmp_path, text)).settings
        met = {function_of(name) for name in site_names(settings.config)} - {"tanh"}  # the pooler's
        assert dict(settings.targets).keys() == met


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_file_that_names_a_preset_alone_is_a_job(tmp_path, name: str):
    settings = read_job(write(tmp_path, f'model.preset = "{name}"')).settings
    sinusoidal = settings.config.positions == "sinusoidal"
    assert settings.starts_from() == ("corpus" if sinusoidal else "random")


def test_the_template_of_a_pre_training_is_its_defaults(tmp_path):
    assert read_job(write(tmp_path, settings_template())) == read_job(None)


def test_a_job_takes_its_model_from_the_file(tmp_path):
    path = write(
        tmp_path,
        """
        [model]
        preset = "demo"
        attention = "softmax"
        pooler = [8]
        [text]
        length = 24
        [penalty]
        penalty = 0.5
        relu = [-2.0, 2.0]
        """,
    )
    job = read_job(path)
    config = job.settings.config
    assert (config.attention, config.pooler, config.sequence) == ("softmax", (8,), 24)
    assert config.lm_head == "tied" and config.lora_rank == 0
    assert dict(job.settings.targets)["relu"] == (-2.0, 2.0)
    assert "exp" not in dict(job.settings.targets), "softmax has no such site"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('model.preset = "huge"', "no preset"),
        ("model.heads = 3", "multiple"),
        ("penalty.relu = [2.0, -2.0]", "range of relu"),
        ("training.steps = 0", "steps"),
        ('model.preset = "bert"\ntraining.initial = "corpus"', "'learned'.*sinusoidal"),
        ('training.initial = "texts"', "corpus or random"),
    ],
)
def test_jobs_that_cannot_work_are_refused_by_file(tmp_path, text: str, message: str):
    with pytest.raises(ExperimentError, match=message):
        read_job(write(tmp_path, text))
