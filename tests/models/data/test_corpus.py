"""Corpora: what is read, what is held out, how rows are packed, what a second reading reuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.data.corpus import SECTION, Corpus, clean, encode_stream, is_held_out, read_sections
from models.data.tokenizer import Tokenizer
from models.errors import DataError

SENTENCE = "the old sea captain looked at a small boat and said nothing more of it"


def write_texts(folder: Path, files: int = 3, paragraphs: int = 200) -> Path:
    rng = np.random.default_rng(0)
    for number in range(files):
        lines = [" ".join(rng.choice(SENTENCE.split(), 12)) for _ in range(paragraphs)]
        (folder / f"part{number}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_wikitext_spellings_become_text():
    assert clean(" a role @-@ playing game of 1 @,@ 000 metres @.@ \n") == (
        "a role-playing game of 1,000 metres @.@"
    )
    assert clean(" = = Reception = = ") == ""
    assert clean("a = b") == "a = b"


def test_sections_are_consecutive_paragraphs_of_one_file(tmp_path):
    write_texts(tmp_path)
    (tmp_path / "notes.md").write_text("not read")
    sections = list(read_sections(tmp_path))
    assert [s.name for s in sections][:2] == ["part0.txt#0", "part0.txt#1"]
    assert all(len(s.paragraphs) == SECTION for s in sections)
    assert len(sections) == 3 * 200 // SECTION


def test_held_out_text_is_in_no_training_row(tmp_path):
    corpus = Corpus.read(write_texts(tmp_path), length=16, vocabulary=120, held_out=0.3)
    sections = list(read_sections(tmp_path))
    held = [s for s in sections if is_held_out(s.name, 0.3)]
    assert 0 < len(held) < len(sections)
    expected = encode_stream(corpus.tokenizer, [p for s in held for p in s.paragraphs])
    np.testing.assert_array_equal(corpus.held_out.tokens, expected)
    total = sum(len(encode_stream(corpus.tokenizer, s.paragraphs)) for s in sections)
    assert len(corpus.train.tokens) + len(corpus.held_out.tokens) == total


def test_rows_are_the_running_text_behind_cls(tmp_path):
    corpus = Corpus.read(write_texts(tmp_path), length=16, vocabulary=120, held_out=0.3)
    rows = corpus.train.take([0, 2])
    assert rows.shape == (2, 16) and rows.dtype == np.int32
    assert (rows[:, 0] == corpus.tokenizer.cls_id).all()
    np.testing.assert_array_equal(rows[1, 1:], corpus.train.tokens[30:45])
    assert corpus.train.rows == len(corpus.train.tokens) // 15
    assert not (corpus.train.tokens == corpus.tokenizer.pad_id).any()


def test_left_out_words_are_unknown():
    tokenizer = Tokenizer.train([SENTENCE], size=100, min_count=1)
    stream = encode_stream(tokenizer, ["the <unk> sea", "a boat"])
    assert list(stream).count(tokenizer.unk_id) == 1
    assert list(stream).count(tokenizer.sep_id) == 2
    assert stream.dtype == np.uint16


def cached(folder) -> tuple[Path, dict[str, Any]]:
    """A folder of texts, and the options to read it with a cache."""
    texts = folder / "texts"
    texts.mkdir()
    write_texts(texts)
    return texts, {
        "length": 16,
        "vocabulary": 120,
        "held_out": 0.3,
        "cache": folder / "cache",
    }


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_a_damaged_cache_is_made_anew(tmp_path, damage: bytes | None):
    texts, options = cached(tmp_path)
    said: list[str] = []
    first = Corpus.read(texts, **options)
    (file,) = (tmp_path / "cache").rglob("tokens.npz")
    file.write_bytes(file.read_bytes()[:-40] if damage is None else damage)
    again = Corpus.read(texts, report=said.append, **options)
    assert any("damaged" in text for text in said)
    assert (again.train.tokens == first.train.tokens).all() and again.digest == first.digest


def test_a_second_reading_uses_the_cache(tmp_path):
    texts, options = cached(tmp_path)
    said: list[str] = []
    first = Corpus.read(texts, report=said.append, **options)
    count = len(said)
    second = Corpus.read(texts, report=said.append, **options)
    assert len(said) == count + 1 and "found" in said[-1]
    np.testing.assert_array_equal(first.train.tokens, second.train.tokens)
    assert first.digest == second.digest
    assert first.tokenizer.vocabulary == second.tokenizer.vocabulary
    (texts / "part0.txt").write_text("\n".join([SENTENCE] * 100))
    assert Corpus.read(texts, **options).digest != first.digest


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: folder / "absent", "no folder"),
        (lambda folder: folder, r"no \.txt"),
        (lambda folder: (folder / "a.txt").write_text("one line") and folder, "too little"),
        (lambda folder: (folder / "a.txt").write_bytes(b"\xff\xfe\xfa") and folder, "UTF-8"),
    ],
)
def test_a_folder_that_cannot_serve_is_refused(tmp_path, prepare, message: str):
    with pytest.raises(DataError, match=message):
        Corpus.read(prepare(tmp_path), vocabulary=50)


def test_bad_lengths_and_shares_are_refused(tmp_path):
    write_texts(tmp_path)
    with pytest.raises(DataError, match="at least 8"):
        Corpus.read(tmp_path, length=4)
    with pytest.raises(DataError, match="share"):
        Corpus.read(tmp_path, held_out=1.0)


def few(folder, paragraphs, words=30):
    rng = np.random.default_rng(0)
    known = ["sea", "old", "boat", "wind", "shore", "light"]
    text = "\n\n".join(f"{k} " + " ".join(rng.choice(known, words)) for k in range(paragraphs))
    (folder / "a.txt").write_text(text)


def test_a_small_file_holds_out_paragraphs(tmp_path):
    """400 paragraphs are 10 sections, of which a hundredth is none."""
    few(tmp_path, 400)
    said: list[str] = []
    cache = tmp_path / "cache"
    corpus = Corpus.read(tmp_path, length=32, vocabulary=120, cache=cache, report=said.append)
    assert corpus.held_out.rows >= 1 and corpus.train.rows > 300
    assert any("by paragraphs" in line for line in said)
    again = Corpus.read(tmp_path, length=32, vocabulary=120, cache=cache)
    np.testing.assert_array_equal(again.held_out.tokens, corpus.held_out.tokens)
    train, held = (
        {tuple(part) for part in np.split(s.tokens, np.flatnonzero(s.tokens == 3) + 1)[:-1]}
        for s in (corpus.train, corpus.held_out)
    )
    assert corpus.tokenizer.sep_id == 3 and not train & held
    longer = Corpus.read(tmp_path, length=200, vocabulary=120, cache=cache)
    assert longer.held_out.rows >= 1


def test_two_paragraphs_are_enough_and_one_says_what_to_change(tmp_path):
    few(tmp_path, 2)
    corpus = Corpus.read(tmp_path, length=16, vocabulary=60)
    assert corpus.train.rows and corpus.held_out.rows
    few(tmp_path, 1)
    with pytest.raises(DataError, match=r"too little.*Add text.*length.*held_out, now 0\.01"):
        Corpus.read(tmp_path, length=16, vocabulary=60)
