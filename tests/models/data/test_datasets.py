"""Data sets: the splits, the fetched reviews and the quirks of GLUE's files."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data import datasets
from models.data.datasets import Split, load, load_glue, load_reviews, split_of
from models.data.tasks import prepare_task
from models.data.tokenizer import Tokenizer
from models.errors import DataError

# ------------------------------------------------------------------ splits


@given(st.text())
def test_a_split_is_a_function_of_the_id(identifier: str) -> None:
    assert split_of(identifier) == split_of(identifier)
    assert split_of(identifier, test=1.0) == "test"
    assert split_of(identifier, test=0.0, validation=0.0) == "train"


def test_splits_have_the_sizes_asked_for() -> None:
    places = [split_of(str(number)) for number in range(10_000)]
    assert abs(places.count("test") - 1500) < 110  # three standard deviations
    assert abs(places.count("validation") - 1000) < 90


# ------------------------------------------------------------------ reviews

SNIPPETS = [
    ("1", "2.5", "A ''quoted\" one, with a tab's worth of caf\u00e9."),
    ("2", "-0.5", "  Dull \u2028 and long. "),
    ("3", "0.0", "Neither."),
    *((str(number), str(number % 7 - 3 + 0.5), f"Film {number}.") for number in range(4, 200)),
]


def _tar(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A source distribution of the published layout with our snippets, and its checksums."""
    content = "\r\n".join("\t".join(row) for row in SNIPPETS).encode()
    packed = _tar(datasets._REVIEWS_INNER, _tar(datasets._REVIEWS_MEMBER, content))
    monkeypatch.setattr(datasets, "_REVIEWS_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(datasets, "_REVIEWS_ARCHIVE_SHA256", hashlib.sha256(packed).hexdigest())
    return packed


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands in for a pip without a network; keeps the commands that it was given."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no route to the index")

    monkeypatch.setattr(datasets.subprocess, "run", run)
    return commands


def _put(archive: bytes, cache: Path) -> None:
    (cache / "reviews").mkdir(parents=True)
    (cache / "reviews" / datasets._REVIEWS_ARCHIVE).write_bytes(archive)


def test_reviews_come_from_an_archive_put_by_hand(
    tmp_path: Path, archive: bytes, pip: list[list[str]]
) -> None:
    _put(archive, tmp_path)
    ratings = load_reviews("regression", cache=tmp_path)
    signs = load_reviews(cache=tmp_path)
    splits = (ratings.train, ratings.validation, ratings.test)
    ids = [identifier for split in splits for identifier in split.ids]
    assert sorted(ids) == sorted(row[0] for row in SNIPPETS)
    assert len(set(ids)) == len(ids)
    by_id = {
        identifier: (text, float(label))
        for split in splits
        for identifier, text, label in zip(split.ids, split.texts, split.labels)
    }
    assert by_id["1"] == (SNIPPETS[0][2], 2.5)
    assert by_id["2"] == ("Dull \u2028 and long.", -0.5)
    assert ratings.train.labels.dtype == np.float32
    assert signs.train.labels.dtype == np.int32
    assert signs.train.ids == ratings.train.ids
    np.testing.assert_array_equal(signs.train.labels, ratings.train.labels > 0)
    assert all(split_of(identifier) == "test" for identifier in signs.test.ids)
    assert not pip


def test_a_second_call_reads_the_cache_only(
    tmp_path: Path, archive: bytes, pip: list[list[str]]
) -> None:
    _put(archive, tmp_path)
    load_reviews(cache=tmp_path)
    (tmp_path / "reviews" / datasets._REVIEWS_ARCHIVE).unlink()
    assert len(load_reviews(cache=tmp_path).train) > 0
    assert [path.name for path in (tmp_path / "reviews").iterdir()] == [
        "movieReviewSnippets_GroundTruth.txt"
    ]
    assert not pip


def test_an_altered_cache_is_not_trusted(
    tmp_path: Path, archive: bytes, pip: list[list[str]]
) -> None:
    _put(archive, tmp_path)
    load_reviews(cache=tmp_path)
    snippets = tmp_path / "reviews" / "movieReviewSnippets_GroundTruth.txt"
    whole = snippets.read_bytes()
    snippets.write_bytes(whole[: len(whole) // 2])
    load_reviews(cache=tmp_path)
    assert snippets.read_bytes() == whole


def test_an_altered_archive_is_refused(tmp_path: Path, archive: bytes) -> None:
    _put(archive[:-1] + b"?", tmp_path)
    with pytest.raises(DataError, match="is not the published"):
        load_reviews(cache=tmp_path)


@pytest.mark.parametrize("missing", ["_REVIEWS_INNER", "_REVIEWS_MEMBER"])
def test_an_archive_of_another_layout_is_refused(
    tmp_path: Path, archive: bytes, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _put(archive, tmp_path)
    monkeypatch.setattr(datasets, missing, "elsewhere.txt")
    with pytest.raises(DataError, match="does not hold elsewhere.txt"):
        load_reviews(cache=tmp_path)


def test_offline_says_what_to_do(tmp_path: Path, pip: list[list[str]]) -> None:
    with pytest.raises(DataError) as caught:
        load_reviews(cache=tmp_path)
    told = str(caught.value)
    assert "no route to the index" in told
    assert str(tmp_path / "reviews" / "vaderSentiment-3.3.2.tar.gz") in told
    assert "--data glue/" in told
    assert all({"--require-hashes", "--no-deps"} < set(command) for command in pip)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, archive: bytes) -> None:
    _put(archive, tmp_path)
    blocked = tmp_path / "reviews" / "movieReviewSnippets_GroundTruth.txt"
    blocked.mkdir()
    with pytest.raises(DataError, match="HESIM_CACHE"):
        load_reviews(cache=tmp_path)


def test_the_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HESIM_CACHE", str(tmp_path / "here"))
    assert datasets.cache_dir() == tmp_path / "here"
    monkeypatch.delenv("HESIM_CACHE")
    assert datasets.cache_dir().name == "hesim"


# ------------------------------------------------------------------ GLUE

HEADERS = {
    "CoLA": None,
    "MRPC": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "RTE": "index\tsentence1\tsentence2\tlabel",
    "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\t"
    "sentence1\tsentence2\tscore",
    "SST-2": "sentence\tlabel",
    "QNLI": "index\tquestion\tsentence\tlabel",
}
LINES: dict[str, Callable[[int], str]] = {
    "CoLA": lambda n: f'gj04\t{n % 2}\t{"" if n % 2 else "*"}\tThe "sailors {n} rode.',
    "MRPC": lambda n: f'{n % 2}\t{n}\t{n + 1}\tHe said " no {n} .\tShe said yes {n} .',
    "RTE": lambda n: f"{n}\tA {n}\tB {n}\t{'not_entailment' if n % 2 else 'entailment'}",
    "STS-B": lambda n: f"{n}\tg\tf\t2012\t{n}\tnone\tnone\tA {n}\tB {n}\t{n % 5}.200",
    "SST-2": lambda n: f"it 's {n} charming . \t{n % 2}",
    "QNLI": lambda n: f"{n}\tWho {n}?\t\ufeffIt was {n}.\tentailment",
}


def _write_glue(folder: Path, task: str, *, train: int = 60, dev: int = 20) -> Path:
    (folder / task).mkdir(parents=True)
    for name, count in (("train", train), ("dev", dev)):
        header = HEADERS[task]
        lines = ([] if header is None else [header]) + [LINES[task](n) for n in range(count)]
        if count:
            # The published CoLA dev file ends without a newline; the others with one.
            end = "" if task == "CoLA" else "\n"
            (folder / task / f"{name}.tsv").write_bytes(("\n".join(lines) + end).encode())
    return folder


@pytest.mark.parametrize("task", list(datasets.GLUE))
def test_glue_tasks_load_with_their_quirks(tmp_path: Path, task: str) -> None:
    dataset = load_glue(task, _write_glue(tmp_path, task))
    assert len(dataset.train) + len(dataset.validation) == 60
    assert len(dataset.validation) > 0
    assert len(dataset.test) == 20
    ids = [*dataset.train.ids, *dataset.validation.ids, *dataset.test.ids]
    assert len(set(ids)) == 80
    first = {
        "CoLA": ('The "sailors 0 rode.', None, 0),
        "MRPC": ('He said " no 0 .', "She said yes 0 .", 0),
        "RTE": ("A 0", "B 0", 0),
        "STS-B": ("A 0", "B 0", 0.2),
        "SST-2": ("it 's 0 charming .", None, 0),
        "QNLI": ("Who 0?", "\ufeffIt was 0.", 0),
    }[task]
    test = dataset.test
    assert (test.texts[0], test.pairs and test.pairs[0]) == first[:2]
    np.testing.assert_allclose(test.labels[0], first[2], rtol=1e-6)
    assert test.labels.dtype == (np.float32 if dataset.task == "regression" else np.int32)
    assert dataset.task == ("regression" if task == "STS-B" else "classification")


def test_pairs_become_one_row_with_token_types_or_two_rows(tmp_path: Path) -> None:
    glue = str(_write_glue(tmp_path, "RTE"))
    _write_glue(tmp_path, "SST-2")
    tokenizer = Tokenizer.train(["A B 0 1 2 3 4 5 6 7 8 9"] * 2, size=64)
    joint = prepare_task("glue/RTE", tokenizer, 8, data_dir=glue, token_types=2).test
    second = joint.types[0].nonzero()[0]
    assert joint.tokens.shape == joint.types.shape == (20, 8)
    assert joint.tokens[0, second[0] - 1] == joint.tokens[0, second[-1]] == tokenizer.sep_id
    assert prepare_task("glue/RTE", tokenizer, 8, data_dir=glue).test.types is None
    assert prepare_task("glue/SST-2", tokenizer, 8, data_dir=glue, token_types=2).test.types is None
    apart = prepare_task(
        "glue/RTE", tokenizer, 8, data_dir=glue, token_types=2, pairs="bi-encoder"
    ).test
    assert apart.tokens.shape == apart.mask.shape == (20, 2, 8) and apart.types is None
    ends = [tokenizer.encode([text], length=8).ids[0] for text in ("A 0", "B 0")]
    np.testing.assert_array_equal(apart.tokens[0], ends)
    wrong: Any = "separate"
    with pytest.raises(DataError, match="one of cross-encoder, bi-encoder"):
        prepare_task("glue/RTE", tokenizer, 8, data_dir=glue, pairs=wrong)
    with pytest.raises(DataError, match="single sentences"):
        prepare_task("glue/SST-2", tokenizer, 8, data_dir=glue, pairs="bi-encoder")


def test_labels_are_numbered_in_the_order_of_the_classes(tmp_path: Path) -> None:
    dataset = load_glue("rte", _write_glue(tmp_path, "RTE"))
    assert dataset.classes == ("entailment", "not_entailment")
    np.testing.assert_array_equal(dataset.test.labels, np.arange(20) % 2)


def test_specs_reach_glue_by_argument_or_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_glue(tmp_path / "glue", "SST-2")
    monkeypatch.delenv("HESIM_GLUE_DIR", raising=False)
    with pytest.raises(DataError, match="--data-dir"):
        load("glue/SST-2")
    assert load("glue/sst2", tmp_path / "glue").name == "glue/SST-2"
    assert load("glue/SST-2", tmp_path).name == "glue/SST-2"
    monkeypatch.setenv("HESIM_GLUE_DIR", str(tmp_path))
    assert len(load("GLUE/sst-2").test) == 20


def test_a_missing_train_file_divides_dev_and_warns(tmp_path: Path) -> None:
    _write_glue(tmp_path, "QNLI", train=0, dev=300)
    with pytest.warns(UserWarning, match="do not compare"):
        dataset = load_glue("QNLI", tmp_path)
    sizes = len(dataset.train), len(dataset.validation), len(dataset.test)
    assert sum(sizes) == 300
    assert min(sizes) > 0
    assert "divided" in dataset.description


@pytest.mark.parametrize(
    ("task", "content", "told"),
    [
        ("SST-2", "sentence\tlabel\ngood\t1\nbad\t2\n", r"train.tsv:3: label '2'"),
        ("SST-2", "sentence\tlabel\ngood\n", r"train.tsv:2: 1 columns instead of 2"),
        ("SST-2", "phrase\tlabel\ngood\t1\n", r"no column 'sentence'"),
        ("SST-2", "", r"is empty"),
        ("SST-2", "sentence\tlabel\n", r"holds no examples"),
        ("CoLA", "gj04\t1\tGood.\n", r"train.tsv:1: 3 columns instead of 4"),
        ("STS-B", f"{HEADERS['STS-B']}\n" + "\t".join("x" * 9) + "\tnan\n", r":2: 'nan' is not"),
        (
            "STS-B",
            f"{HEADERS['STS-B']}\n" + "\t".join("x" * 9) + "\t7.5\n",
            r":2: .*7.5 is not from 0 to 5",
        ),
    ],
)
def test_malformed_files_are_named_with_their_line(
    tmp_path: Path, task: str, content: str, told: str
) -> None:
    _write_glue(tmp_path, task)
    (tmp_path / task / "train.tsv").write_text(content)
    with pytest.raises(DataError, match=told):
        load_glue(task, tmp_path)


def test_text_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    _write_glue(tmp_path, "SST-2")
    (tmp_path / "SST-2" / "dev.tsv").write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    with pytest.raises(DataError, match=r"Cannot read .*dev\.tsv"):
        load_glue("SST-2", tmp_path)


def test_missing_folders_and_names_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder RTE"):
        load_glue("RTE", tmp_path)
    (tmp_path / "RTE").mkdir()
    with pytest.raises(DataError, match="dev.tsv is missing"):
        load_glue("RTE", tmp_path)
    with pytest.raises(DataError, match="Known: CoLA"):
        load_glue("WNLI", tmp_path)
    with pytest.raises(DataError, match="reviews-regression"):
        load("imdb")


def test_take_keeps_rows_together(tmp_path: Path) -> None:
    test = load_glue("MRPC", _write_glue(tmp_path, "MRPC")).test
    few = test.take(3)
    assert len(few) == 3 and test.pairs is not None and few.pairs is not None
    whole = list(zip(test.ids, test.texts, test.pairs, test.labels.tolist(), strict=True))
    assert set(zip(few.ids, few.texts, few.pairs, few.labels.tolist(), strict=True)) < set(whole)
    assert len(test.take(99)) == 20


def test_a_sample_of_sorted_rows_has_every_class() -> None:
    names = tuple(map(str, range(1000)))
    rows = Split(names, names, None, np.repeat(np.arange(2, dtype=np.int32), 500))
    few = rows.take(100)
    assert 0.35 < few.labels.mean() < 0.65
    assert few.ids == rows.take(100).ids != rows.take(100, seed=1).ids
    assert list(map(int, few.ids)) == sorted(map(int, few.ids))
    with pytest.raises(DataError, match="-5"):
        rows.take(-5)


# ------------------------------------------------------------------ the real data


@pytest.mark.slow
def test_the_published_reviews() -> None:
    signs, ratings = load("reviews"), load("reviews-regression")
    sizes = [len(split) for split in (signs.train, signs.validation, signs.test)]
    assert sum(sizes) == 10_605
    assert sizes[2] == 1_618
    labels = np.concatenate([signs.train.labels, signs.validation.labels, signs.test.labels])
    assert 0.49 < labels.mean() < 0.51
    assert np.abs(ratings.train.labels).max() <= 4.0


@pytest.mark.slow
@pytest.mark.skipif("HESIM_GLUE_DIR" not in os.environ, reason="HESIM_GLUE_DIR names no folder")
@pytest.mark.filterwarnings("ignore:.*do not compare")
@pytest.mark.parametrize(
    ("task", "train", "dev"),
    [
        ("CoLA", 8551, 1043),
        ("MRPC", 3668, 408),
        ("RTE", 2490, 277),
        ("STS-B", 5749, 1500),
        ("SST-2", 67349, 872),
        ("QNLI", 0, 5463),
    ],
)
def test_the_published_glue_files(task: str, train: int, dev: int) -> None:
    dataset = load(f"glue/{task}")
    sizes = [len(split) for split in (dataset.train, dataset.validation, dataset.test)]
    assert sum(sizes) == train + dev
    if train:
        assert sizes[2] == dev


@pytest.mark.parametrize("name", ["rte", "RTE", "glue/RTE", "glue/rte", "GLUE/Rte"])
def test_a_task_has_one_name_however_it_is_written(name: str) -> None:
    assert datasets.task_spec(name) == "glue/RTE"
    assert datasets.task_spec("sst2") == datasets.task_spec("glue/sst_2") == "glue/SST-2"
    assert datasets.task_spec("reviews") == "reviews"
    with pytest.raises(DataError, match=r"glue/RTE is read from a folder|no folder RTE"):
        load(name, data_dir="/nowhere" if name == "rte" else None)
