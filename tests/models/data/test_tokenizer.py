"""Tokenization: a repeatable vocabulary and defined behaviour at every edge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from models.errors import DataError

CORPUS = [
    "A gripping, gorgeous film.",
    "A dull and gripping failure of a film!",
    "Gorgeous caf\u00e9 scenes; a film of scenes.",
    "The films are dull, the scenes duller.",
] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CORPUS, size=120)


def _words(tokenizer: Tokenizer, row: np.ndarray) -> list[str]:
    names = {number: token for token, number in tokenizer.vocabulary.items()}
    return [names[int(number)] for number in row]


def test_special_tokens_come_first(tokenizer: Tokenizer) -> None:
    assert [tokenizer.vocabulary[token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id) == (0, 1, 2)
    assert (tokenizer.sep_id, tokenizer.mask_id) == (3, 4)


def test_frequent_words_are_one_token_and_case_is_lost(tokenizer: Tokenizer) -> None:
    batch = tokenizer.encode(["A FILM of Scenes"], length=8)
    assert _words(tokenizer, batch.ids[0]) == [
        "[CLS]", "a", "film", "of", "scenes", "[SEP]", "[PAD]", "[PAD]",
    ]  # fmt: skip
    np.testing.assert_array_equal(batch.mask, [[1, 1, 1, 1, 1, 1, 0, 0]])
    assert (batch.ids.dtype, batch.mask.dtype, batch.types.dtype) == (
        np.int32,
        np.float32,
        np.int32,
    )


def test_rare_words_are_spelled_with_marked_pieces(tokenizer: Tokenizer) -> None:
    words = _words(tokenizer, tokenizer.encode(["filming"], length=12).ids[0])
    pieces = words[1 : words.index("[SEP]")]
    assert len(pieces) > 1
    assert all(piece.startswith("##") for piece in pieces[1:])
    assert "".join(piece.removeprefix("##") for piece in pieces) == "filming"


def test_the_order_of_the_texts_does_not_matter() -> None:
    assert Tokenizer.train(CORPUS[::-1], size=90).vocabulary == (
        Tokenizer.train(CORPUS, size=90).vocabulary
    )


def test_training_repeats_in_another_process(tmp_path: Path) -> None:
    # The library's hash tables are seeded per process, so one process would not show a difference.
    program = (
        "import json, sys\n"
        "from models.data.tokenizer import Tokenizer\n"
        "texts = json.loads(sys.argv[1])\n"
        "print(json.dumps(Tokenizer.train(texts, size=90).vocabulary))\n"
    )
    command = [sys.executable, "-c", program, json.dumps(CORPUS)]
    runs = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert json.loads(runs[0]) == Tokenizer.train(CORPUS, size=90).vocabulary


@pytest.mark.parametrize("size", [6, 20, 60, 1000])
def test_the_vocabulary_never_exceeds_the_size(size: int) -> None:
    trained = Tokenizer.train(CORPUS, size=size)
    assert trained.size <= size
    assert len(set(trained.vocabulary.values())) == trained.size


def test_an_empty_text_is_cls_sep(tokenizer: Tokenizer) -> None:
    for text in ("", "   \n", "\u0000"):
        batch = tokenizer.encode([text], length=4)
        np.testing.assert_array_equal(batch.ids, [[2, 3, 0, 0]])
        assert not batch.truncated[0]


def test_unknown_characters_make_their_word_unknown(tokenizer: Tokenizer) -> None:
    words = _words(tokenizer, tokenizer.encode(["a \u03b6film \u5f71 film"], length=8).ids[0])
    assert words[:6] == ["[CLS]", "a", "[UNK]", "[UNK]", "film", "[SEP]"]
    too_long = tokenizer.encode(["a" * 101, "a" * 100], length=200)
    assert _words(tokenizer, too_long.ids[0])[:3] == ["[CLS]", "[UNK]", "[SEP]"]
    assert tokenizer.unk_id not in too_long.ids[1]


def test_accents_are_removed(tokenizer: Tokenizer) -> None:
    with_accent, without = tokenizer.encode(["caf\u00e9", "cafe"], length=8).ids
    np.testing.assert_array_equal(with_accent, without)


def test_names_of_special_tokens_in_a_text_are_text(tokenizer: Tokenizer) -> None:
    row = tokenizer.encode(["[SEP] [MASK] film"], length=24).ids[0]
    assert np.count_nonzero(row == tokenizer.sep_id) == 1
    assert tokenizer.mask_id not in row


def test_long_texts_are_cut_and_keep_their_ends(tokenizer: Tokenizer) -> None:
    batch = tokenizer.encode(["film " * 50, "film " * 6, "film"], length=8)
    np.testing.assert_array_equal(batch.truncated, [True, False, False])
    np.testing.assert_array_equal(batch.ids[0], batch.ids[1])
    assert _words(tokenizer, batch.ids[0]) == ["[CLS]", *["film"] * 6, "[SEP]"]


def test_pairs_are_separated_and_typed(tokenizer: Tokenizer) -> None:
    batch = tokenizer.encode(["a film"], pairs=["of scenes"], length=9)
    assert _words(tokenizer, batch.ids[0]) == [
        "[CLS]", "a", "film", "[SEP]", "of", "scenes", "[SEP]", "[PAD]", "[PAD]",
    ]  # fmt: skip
    np.testing.assert_array_equal(batch.types, [[0, 0, 0, 0, 1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(batch.mask, [[1, 1, 1, 1, 1, 1, 1, 0, 0]])


@given(st.integers(0, 12), st.integers(0, 12), st.integers(5, 20))
def test_of_a_pair_the_longer_sentence_loses_first(first: int, second: int, length: int) -> None:
    tokenizer = Tokenizer.train(CORPUS, size=120)
    batch = tokenizer.encode(["film " * first], pairs=["scenes " * second], length=length)
    kept = [
        np.count_nonzero(batch.ids[0] == tokenizer.vocabulary[word]) for word in ("film", "scenes")
    ]
    room = length - 3
    assert sum(kept) == min(first + second, room)
    assert bool(batch.truncated[0]) == (first + second > room)
    if kept[0] < first and kept[1] < second:
        assert abs(kept[0] - kept[1]) <= 1
    elif kept[0] < first:
        assert kept[0] >= kept[1]
    elif kept[1] < second:
        assert kept[1] >= kept[0] - 1
    assert np.count_nonzero(batch.ids[0] == tokenizer.sep_id) == 2


@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_any_text_encodes_to_valid_rows(texts: list[str]) -> None:
    tokenizer = Tokenizer.train(CORPUS, size=60)
    batch = tokenizer.encode(texts, length=16)
    assert batch.ids.shape == batch.mask.shape == batch.types.shape == (len(texts), 16)
    assert batch.ids.min() >= 0
    assert batch.ids.max() < tokenizer.size
    np.testing.assert_array_equal(batch.mask == 0, batch.ids == tokenizer.pad_id)
    assert np.all(np.diff(batch.mask, axis=1) <= 0)  # padding comes last


def test_decoding_gives_the_words_back(tokenizer: Tokenizer) -> None:
    batch = tokenizer.encode(["A gripping film", ""], length=12)
    assert tokenizer.decode(batch.ids[0]) == "a gripping film"
    assert tokenizer.decode(batch.ids[1]) == ""


def test_saving_and_loading(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = Tokenizer.load(path)
    assert loaded.vocabulary == tokenizer.vocabulary
    texts = ["A film, filming.", "\u5f71"]
    np.testing.assert_array_equal(
        loaded.encode(texts, length=9).ids, tokenizer.encode(texts, length=9).ids
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokenizer.json"]


def test_a_published_vocabulary_file_keeps_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[unused0]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nfilm\n##s\n")
    tokenizer = Tokenizer.from_vocabulary_file(path)
    assert (tokenizer.unk_id, tokenizer.cls_id) == (2, 3)
    np.testing.assert_array_equal(tokenizer.encode(["Films x"], length=6).ids, [[3, 6, 7, 2, 4, 0]])


def test_files_that_are_no_tokenizer_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "file"
    with pytest.raises(DataError, match="Cannot read"):
        Tokenizer.load(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="is not a tokenizer"):
        Tokenizer.load(path)
    tokenizer.save(path)
    path.write_text(path.read_text().replace('"lowercase": true', '"lowercase": false'))
    with pytest.raises(DataError, match="another kind"):
        Tokenizer.load(path)
    path.write_text("film\nfilm\n")
    with pytest.raises(DataError, match="twice"):
        Tokenizer.from_vocabulary_file(path)
    path.write_text("film\n")
    with pytest.raises(DataError, match=r"\[PAD\]"):
        Tokenizer.from_vocabulary_file(path)


def test_impossible_requests_are_errors(tokenizer: Tokenizer) -> None:
    for empty in ([], ["", "  "]):
        with pytest.raises(DataError, match="none of the texts"):
            Tokenizer.train(empty)
    with pytest.raises(DataError, match="no room"):
        Tokenizer.train(CORPUS, size=5)
    with pytest.raises(DataError, match="at least 3"):
        tokenizer.encode(["film"], length=2)
    with pytest.raises(DataError, match="at least 5"):
        tokenizer.encode(["film"], pairs=["film"], length=4)
    with pytest.raises(DataError, match="1 first sentences but 2"):
        tokenizer.encode(["film"], pairs=["film", "film"], length=9)
    with pytest.raises(DataError, match="at least one sentence"):
        tokenizer.encode([], length=9)
    with pytest.raises(DataError, match="not one string"):
        tokenizer.encode("film", length=9)
    with pytest.raises(DataError, match="without gaps"):
        Tokenizer({token: 2 * number for number, token in enumerate(SPECIAL_TOKENS)})
