"""Tokenizers of others: the numbers are those of the `tokenizers` library, or a refusal."""

import copy
import json

import pytest
import tokenizers

from models.data.corpus import Corpus
from models.data.tokenizer import Tokenizer
from models.errors import CheckpointError
from models.weights.bert import read_tokenizer

WORDS = """
    [PAD] [UNK] [CLS] [SEP] [MASK] the old sea ##s pay now bad ##ly cafe ##e ##́ café . , 日 本
    日本 ##本 num ] [ a b c straße ss i ß 1 2 ##2 ' don t
"""
VOCABULARY = {word: number for number, word in enumerate(WORDS.split())}
NEXT = len(VOCABULARY)
TEXTS = (
    "The old SEAS.",
    "pay [NUM] now, badly",
    "Café, cafe\u0301 CAFÉ",
    "日本 a日本b",
    "a\tb\x00c\u200bnow\u00a0sea\u2028old",
    "don't 12 straße İ",
    "x" * 150 + " sea " + "sea" * 33,
    "pay[NUM]now badly numb [num] NUM",
    "",
    "the the the the the the the the the the the the",
)
PLAIN = json.loads(Tokenizer(VOCABULARY).to_json())
FRAME = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ],
    "pair": [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 1}},
    ],
    "special_tokens": {
        name: {"id": name, "ids": [VOCABULARY[name]], "tokens": [name]}
        for name in ("[CLS]", "[SEP]")
    },
}
CUT = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}


def token(content, number=NEXT, special=False, **flags):
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special}
    return {"id": number, "content": content, "special": special, **usual, **flags}


def normalizers(*parts):
    return {
        "type": "Sequence",
        "normalizers": [{"type": p} if isinstance(p, str) else p for p in parts],
    }


BERT = PLAIN["normalizer"]
FOLLOWED = {
    "as published": {"post_processor": FRAME},
    "older frame": {
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
    },
    "added": {"added_tokens": [token("[NUM]")]},
    "added, special": {"added_tokens": [token("[NUM]", special=True)]},
    "added word": {"added_tokens": [token("badly", single_word=True)]},
    "added inside": {"added_tokens": [token("old", VOCABULARY["old"])]},
    "added, stripping": {"added_tokens": [token("[NUM]", lstrip=True, rstrip=True)]},
    "added twice": {"added_tokens": [token("[NUM]"), token("numb", NEXT + 1)]},
    "quick start": {
        "normalizer": normalizers("NFD", "Lowercase", "StripAccents"),
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": FRAME,
    },
    "one of one": {"normalizer": normalizers(BERT)},
    "accents kept": {"normalizer": {**BERT, "strip_accents": False}},
    "CJK kept": {"normalizer": {**BERT, "handle_chinese_chars": False}},
    "control kept": {"normalizer": {**BERT, "clean_text": False}},
    "accents as case": {"normalizer": {**BERT, "strip_accents": None}},
    "replaced": {
        "normalizer": normalizers(
            BERT, {"type": "Replace", "pattern": {"String": "sea"}, "content": "old"}
        )
    },
    "at spaces": {"pre_tokenizer": {"type": "WhitespaceSplit"}},
    "digits": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "BertPreTokenizer"},
                {"type": "Digits", "individual_digits": True},
            ],
        }
    },
    "unsplit": {"pre_tokenizer": None},
    "short words": {"model": {**PLAIN["model"], "max_input_chars_per_word": 2}},
    "long words": {"model": {**PLAIN["model"], "max_input_chars_per_word": 200}},
    "other prefix": {"model": {**PLAIN["model"], "continuing_subword_prefix": "s"}},
    "cut": {"truncation": CUT, "post_processor": FRAME},
    "cut at an even number": {"truncation": {**CUT, "max_length": 10}, "post_processor": FRAME},
    "padded": {
        "post_processor": FRAME,
        "padding": {
            "strategy": {"Fixed": 20},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
    },
}


def write(folder, changes):
    raw = copy.deepcopy(PLAIN) | changes
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    return tokenizers.Tokenizer.from_str(json.dumps(raw))


def same(ours, theirs, framed):
    theirs.no_padding()
    length = 80
    for text in TEXTS:
        wanted = theirs.encode(text).ids
        if framed:
            row = ours.encode([text], length=length)
            assert row.ids[0, : int(row.mask.sum())].tolist() == wanted, text
        else:
            assert ours.pieces([text]) == [wanted], text
    if framed:
        pairs = [(" the" * first, " old" * second) for first in (1, 4, 9) for second in (1, 4, 9)]
        for first, second in [("The sea, ", "old"), *pairs]:
            row, wanted = (
                ours.encode([first], pairs=[second], length=80),
                theirs.encode(first, second),
            )
            count = int(row.mask.sum())
            assert row.ids[0, :count].tolist() == wanted.ids
            assert row.types[0, :count].tolist() == wanted.type_ids


@pytest.mark.parametrize("name", FOLLOWED)
def test_the_numbers_are_those_of_the_library(tmp_path, name):
    theirs = write(tmp_path, FOLLOWED[name])
    ours = read_tokenizer(tmp_path)
    assert ours is not None
    framed = "post_processor" in FOLLOWED[name]
    same(ours, theirs, framed)
    assert ours.size == theirs.get_vocab_size(with_added_tokens=True)
    ours.save(tmp_path / "kept.json")
    kept = Tokenizer.load(tmp_path / "kept.json")
    assert kept == ours and hash(kept) == hash(ours)
    same(kept, theirs, framed)


REFUSED = {
    "cased": ({"normalizer": {**BERT, "lowercase": False}}, "lower case"),
    "never lowered": ({"normalizer": normalizers("NFD", "StripAccents")}, "lower case"),
    "no normalizer": ({"normalizer": None}, "lower case"),
    "unknown word": (
        {"model": {**PLAIN["model"], "unk_token": "[MASK]"}},
        r"unknown token is '\[MASK\]'",
    ),
    "byte pairs": ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "only WordPiece"),
    "cut at the left": ({"truncation": {**CUT, "direction": "Left"}}, "direction 'Left'"),
    "cut at one": ({"truncation": {**CUT, "strategy": "OnlyFirst"}}, "strategy 'OnlyFirst'"),
    "padded at the left": (
        {"padding": {**FOLLOWED["padded"]["padding"], "direction": "Left"}},
        "pads at the left",
    ),
    "padded with another": (
        {"padding": {**FOLLOWED["padded"]["padding"], "pad_id": 5, "pad_token": "the"}},
        r"pads with 'the' \(5\)",
    ),
    "another frame": (
        {
            "post_processor": {
                "type": "RobertaProcessing",
                "sep": ["[SEP]", 3],
                "cls": ["[CLS]", 2],
                "trim_offsets": True,
                "add_prefix_space": False,
            }
        },
        "post-processor makes",
    ),
    "half a frame": (
        {"post_processor": {**FRAME, "single": FRAME["single"][:2]}},
        "post-processor",
    ),
    "a gap": ({"model": {**PLAIN["model"], "vocab": {**VOCABULARY, "far": 99}}}, "without gaps"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_followed_is_refused(tmp_path, name):
    changes, words = REFUSED[name]
    (tmp_path / "tokenizer.json").write_text(json.dumps(PLAIN | changes))
    with pytest.raises(CheckpointError, match=words) as caught:
        read_tokenizer(tmp_path)
    assert "tokenizer.json" in str(caught.value)


def test_special_tokens_may_be_outside_of_the_vocabulary(tmp_path):
    vocabulary = {word: n for word, n in VOCABULARY.items() if word != "[MASK]"}
    numbers = {word: n for n, word in enumerate(vocabulary)}
    model = {**PLAIN["model"], "vocab": numbers}
    write(tmp_path, {"model": model, "added_tokens": [token("[MASK]", len(numbers), special=True)]})
    found = read_tokenizer(tmp_path)
    assert found is not None
    assert found.mask_id == len(numbers)
    assert found.mask_id not in found.pieces(["a [MASK] b"])[0]  # a name in a text is text


def lines(folder, text, **files):
    (folder / "vocab.txt").write_text(text)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return read_tokenizer(folder)


SPECIAL = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n", "\n \n\n"])
def test_numbers_are_those_of_the_lines(tmp_path, end):
    """Blank lines count, spaces behind a token do not, nor do blank lines at the end."""
    text = SPECIAL + "the\n\nsea\t \n\n  \n##s" + end
    found = lines(tmp_path, text)
    assert found is not None and found.size == 11
    assert found.pieces(["The seas"]) == [[5, 7, 10]]
    (tmp_path / "plain.txt").write_text(text)
    numbers = tokenizers.models.WordPiece.read_file(str(tmp_path / "plain.txt"))
    assert all(found.vocabulary[word] == n for word, n in numbers.items() if word)


def test_a_token_twice_is_named_with_its_lines(tmp_path):
    with pytest.raises(CheckpointError, match=r"vocab\.txt.*'sea', in lines 6 and 8"):
        lines(tmp_path, SPECIAL + "sea\nold\nsea\n")


def test_tokens_added_beside_a_vocabulary_are_followed(tmp_path):
    found = lines(tmp_path, SPECIAL + "pay\nnow\n", added_tokens={"[NUM]": 7})
    assert found is not None
    assert (found.size, found.pieces(["pay [NUM] now"])) == (8, [[5, 7, 6]])
    decoder = {"4": token("[MASK]", special=True), "7": token("[NUM]", special=True)}
    found = lines(
        tmp_path, SPECIAL + "pay\nnow\n", tokenizer_config={"added_tokens_decoder": decoder}
    )
    assert found is not None
    assert found.pieces(["pay [NUM] [MASK]"]) == [[5, 7, 1, 1, 1]]
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match="number 70, which leaves a gap"):
        lines(tmp_path, SPECIAL, added_tokens={"[NUM]": 70})


@pytest.mark.parametrize(
    ("notes", "words"),
    [
        ({"unk_token": "<unk>"}, "'<unk>' as its unk_token"),
        ({"mask_token": {"content": "<mask>"}}, "'<mask>' as its mask_token"),
        ({"do_basic_tokenize": False}, "punctuation"),
        ({"never_split": ["sea"]}, "never_split"),
        ({"truncation_side": "left"}, "truncation_side 'left'"),
        ({"padding_side": "left"}, "padding_side 'left'"),
    ],
)
def test_notes_that_change_numbers_are_refused(tmp_path, notes, words):
    with pytest.raises(CheckpointError, match=words):
        lines(tmp_path, SPECIAL + "pay\n", tokenizer_config=notes)


def test_a_corpus_is_encoded_anew_for_other_rules(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for k in range(40):
        (text / f"{k}.txt").write_text(f" = Sea {k} = \n\n the old sea, badly {k}\n")
    write(tmp_path, {"pre_tokenizer": {"type": "WhitespaceSplit"}})
    other = read_tokenizer(tmp_path)
    assert other is not None
    plain = Tokenizer(VOCABULARY)
    assert other.vocabulary == plain.vocabulary and other != plain
    digests = {
        Corpus.read(text, vocabulary=t, length=8, held_out=0.3).digest for t in (plain, other)
    }
    assert len(digests) == 2
