"""Words to numbers: a lower-cased WordPiece vocabulary, trained on the training split or read.

    tokenizer = Tokenizer.train(dataset.train.texts, size=8192)
    batch = tokenizer.encode(dataset.test.texts, length=32)
    batch.ids, batch.mask           # int32 and 0/1 float32, both [sentences, 32]

A sentence becomes `[CLS] pieces [SEP]`, a pair `[CLS] pieces [SEP] pieces [SEP]`, padded to a
fixed length, because a ciphertext's layout cannot depend on how long a sentence is. A mask that is
handed to a server in the clear tells it the length of every sentence.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, WordPiece

from hesim.files import write_whole
from models.errors import DataError

__all__ = ["SPECIAL_TOKENS", "Encoded", "Tokenizer"]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CONTINUES = "##"
_CUT = {"direction": "Right", "strategy": "LongestFirst", "stride": 0}
_MAX_WORD = 100  # characters: a longer word is one [UNK], as in BERT


class Encoded(NamedTuple):
    """A batch of encoded sentences, all of shape [sentences, length] but the last.

    Attributes:
      ids: int32 vocabulary numbers, padded with [PAD].
      mask: float32, 1 where there is a token ([CLS] and [SEP] included), 0 where there is padding.
      types: int32, 0 in the first sentence with its [CLS] and [SEP], 1 in the second with its own.
      truncated: bool [sentences], whether pieces were cut off to fit the length.
    """

    ids: np.ndarray
    mask: np.ndarray
    types: np.ndarray
    truncated: np.ndarray


class Tokenizer:
    """A trained or loaded WordPiece tokenizer; immutable, the same for the same training texts.

    Defined behaviour at the edges: upper case, accents and control characters are removed;
    punctuation marks and CJK characters are words of their own; a word with a character that the
    training texts did not hold, or of more than 100 characters, becomes one [UNK]; an empty text
    becomes [CLS] [SEP]; an over-long one loses pieces at its end (of a pair, the longer sentence
    loses first) and keeps its [CLS] and [SEP]; names of special tokens inside a text are text.
    A tokenizer of others (`models.load_bert`) splits, cuts and adds tokens as its own file says.

    Args:
      vocabulary: from token to number, 0, 1, 2, ...; `train` learns one.

    Raises:
      DataError: a special token is missing, or the numbers have gaps.

    Examples:
      >>> from models import Tokenizer
      >>> tokenizer = Tokenizer.train(["a fine film", "a dull film"] * 20, size=64)
      >>> batch = tokenizer.encode(["A fine film"], length=8)
      >>> batch.ids.shape, int(batch.mask.sum()) >= 5  # [CLS] and [SEP] included
      ((1, 8), True)
    """

    def __init__(self, vocabulary: Mapping[str, int]):
        """From token to number. Use `train`, `load` or `from_vocabulary_file`.

        Raises:
          DataError: a special token is missing, or the numbers are not 0, 1, 2, ...
        """
        self._set(_plain(vocabulary), None)

    def _set(self, backend: tokenizers.Tokenizer, longest: int | None) -> None:
        """Takes the library's tokenizer; DataError where its numbers are not fit for a model."""
        numbers = backend.get_vocab(with_added_tokens=True)
        vocabulary = dict(sorted(numbers.items(), key=lambda item: item[1]))
        missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
        if missing:
            raise DataError(f"The vocabulary has no {', '.join(missing)}.")
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise DataError("The vocabulary's numbers are not 0, 1, 2, ... without gaps.")
        self._vocabulary, self._backend, self._longest = vocabulary, backend, longest

    @classmethod
    def of_json(cls, raw: Mapping[str, Any], longest: int | None = None) -> Tokenizer:
        """From the JSON of the `tokenizers` library, without frame, cutting and padding.

        Args:
          raw: a WordPiece tokenizer; its normalizer, splitting and added tokens are kept.
          longest: tokens a row, special ones included, at which every row is cut.

        Raises:
          DataError: it is no tokenizer, lacks a special token, or its numbers have gaps.
        """
        prefix = (raw.get("model") or {}).get("continuing_subword_prefix", _CONTINUES)
        try:
            backend = tokenizers.Tokenizer.from_str(json.dumps(dict(raw)))
            backend.decoder = decoders.WordPiece(prefix=prefix)
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"no tokenizer ({error})") from error
        made = cls.__new__(cls)
        made._set(backend, longest)
        return made

    @classmethod
    def train(cls, texts: Iterable[str], *, size: int = 8192, min_count: int = 2) -> Tokenizer:
        """Learn a vocabulary of at most `size` tokens, the five special ones included.

        Pieces are merged in order of frequency until `size` is reached or no pair occurs
        `min_count` times. The characters of the texts come first, the most frequent ones if they
        would fill more than half of the vocabulary. The same texts in any order give the same
        vocabulary on every machine: the library's own WordPiece trainer numbers continuing
        characters in the random order of a hash table, so the merges are learned by its
        byte-pair trainer on words whose characters are renamed by whether they begin a word.

        Raises:
          DataError: no text holds a word, or `size` is too small for the special tokens and one
            character.
        """
        words = _count_words(texts)
        if not words:
            raise DataError("No vocabulary can be trained: none of the texts holds a word.")
        if size < len(SPECIAL_TOKENS) + 1:
            raise DataError(f"A vocabulary of {size} has no room beside the special tokens.")
        room = max(1, min(size - len(SPECIAL_TOKENS), size // 2))
        forms: Counter[str] = Counter()
        for word, count in words.items():
            for form in _forms(word):
                forms[form] += count
        alphabet = sorted(forms, key=lambda form: (-forms[form], form))[:room]
        # One private character a form, in the order of the alphabet.
        private = {form: chr(0x10000 + place) for place, form in enumerate(alphabet)}
        public = {character: form for form, character in private.items()}
        renamed = []
        for word, count in sorted(words.items()):
            word_forms = _forms(word)
            if all(form in private for form in word_forms):
                renamed += ["".join(private[form] for form in word_forms)] * count
        merger = tokenizers.Tokenizer(BPE())
        merger.train_from_iterator(
            renamed,
            trainers.BpeTrainer(
                vocab_size=size - len(SPECIAL_TOKENS),
                min_frequency=min_count,
                initial_alphabet=list(public),
                show_progress=False,
            ),
        )
        learned = merger.get_vocab()
        pieces = [_piece(piece, public) for piece in sorted(learned, key=learned.__getitem__)]
        return cls({token: number for number, token in enumerate((*SPECIAL_TOKENS, *pieces))})

    @classmethod
    def from_vocabulary_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """A vocabulary of one token a line, as published with uncased BERT (`vocab.txt`).

        A token's number is that of its line, from 0. Spaces behind a token are not part of it;
        blank lines count, but for those at the end.

        Raises:
          DataError: the file cannot be read, repeats a token, or lacks a special token.
        """
        lines = read_text(path).removesuffix("\n").split("\n")
        while lines and not lines[-1].strip():
            lines.pop()
        try:
            return cls(_numbered([line.rstrip("\r") for line in lines]))
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokenizer as the JSON of the `tokenizers` library, wholly or not at all."""
        write_whole(path, self.to_json().encode())

    def to_json(self) -> str:
        """The tokenizer as the JSON of the `tokenizers` library."""
        content = self._backend.to_str(pretty=True)
        if self._longest is None:
            return content
        cut = {"max_length": self._longest, **_CUT}
        return json.dumps({**json.loads(content), "truncation": cut}, indent=2, ensure_ascii=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read what `save` wrote.

        Raises:
          DataError: the file cannot be read or is no WordPiece tokenizer of this kind.
        """
        content = read_text(path)
        try:
            backend = tokenizers.Tokenizer.from_str(content)
            raw = json.loads(content)
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{path} is not a tokenizer: {error}.") from error
        try:
            cut = raw.get("truncation")
            longest = None if cut is None else cut["max_length"]
            loaded = cls.of_json({**raw, "truncation": None}, longest)
        except (DataError, KeyError, TypeError) as error:
            raise DataError(f"{path}: {error}") from error
        backend.no_truncation()
        written = {**json.loads(loaded.to_json()), "truncation": None}
        lowered = loaded._backend.normalizer is not None and loaded._lowers()
        if not lowered or written != json.loads(backend.to_str()):
            raise DataError(f"{path} is a tokenizer of another kind than `save` writes.")
        return loaded

    def _lowers(self) -> bool:
        lowered = self._backend.normalizer.normalize_str("ABCXYZ")
        return lowered == lowered.lower()

    def __eq__(self, other: object) -> bool:
        """Whether both give every text the same numbers: one vocabulary under the same rules."""
        return isinstance(other, Tokenizer) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    @property
    def longest(self) -> int | None:
        """Tokens a row, special ones included, at which its file cuts every row; None if it
        does not.
        """
        return self._longest

    @property
    def plain(self) -> bool:
        """Whether it is made of a vocabulary alone, under the rules of uncased BERT."""
        return self == Tokenizer(self._vocabulary)

    @property
    def size(self) -> int:
        """The number of tokens: rows of an embedding table."""
        return len(self._vocabulary)

    @property
    def vocabulary(self) -> dict[str, int]:
        """From token to number (a copy)."""
        return dict(self._vocabulary)

    @property
    def pad_id(self) -> int:
        return self._vocabulary["[PAD]"]

    @property
    def unk_id(self) -> int:
        return self._vocabulary["[UNK]"]

    @property
    def cls_id(self) -> int:
        return self._vocabulary["[CLS]"]

    @property
    def sep_id(self) -> int:
        return self._vocabulary["[SEP]"]

    @property
    def mask_id(self) -> int:
        return self._vocabulary["[MASK]"]

    def encode(
        self, texts: Sequence[str], *, length: int, pairs: Sequence[str] | None = None
    ) -> Encoded:
        """Encode sentences, or pairs of sentences, to a fixed length.

        Args:
          texts: the sentences.
          length: tokens a row, the special ones included: at least 3, for pairs at least 5. A
            tokenizer whose file cuts rows (``longest``) uses no more than that.
          pairs: the second sentences, as many as `texts`.

        Raises:
          DataError: no sentence, a length too small, or unequal numbers of sentences.
        """
        if isinstance(texts, str):
            raise DataError("encode wants a sequence of sentences, not one string.")
        if len(texts) == 0:
            raise DataError("encode wants at least one sentence.")
        if pairs is not None and len(pairs) != len(texts):
            raise DataError(f"{len(texts)} first sentences but {len(pairs)} second ones.")
        special = 2 if pairs is None else 3
        shortest = special + (1 if pairs is None else 2)
        if min(length, self._longest or length) < shortest:
            raise DataError(
                f"A length of {min(length, self._longest or length)} has no room for words: at "
                f"least {shortest}."
            )
        firsts = self.pieces(texts)
        seconds = [[] for _ in firsts] if pairs is None else self.pieces(pairs)
        ids = np.full((len(firsts), length), self.pad_id, np.int32)
        mask = np.zeros((len(firsts), length), np.float32)
        types = np.zeros((len(firsts), length), np.int32)
        truncated = np.zeros(len(firsts), bool)
        for row, (first, second) in enumerate(zip(firsts, seconds, strict=True)):
            room = min(length, self._longest or length) - special
            truncated[row] = len(first) + len(second) > room
            extra = self._longest is None or len(first) > len(second)  # who gets an odd place
            half = (room + 1) // 2 if extra else room // 2
            kept = min(len(first), max(room - len(second), half))
            tokens = [self.cls_id, *first[:kept], self.sep_id]
            start = len(tokens)
            if pairs is not None:
                tokens += [*second[: room - kept], self.sep_id]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
            types[row, start : len(tokens)] = 1
        return Encoded(ids, mask, types, truncated)

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Vocabulary numbers of each text, nothing added and nothing cut off."""
        batch = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in batch]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of one row of ids, without special tokens: lower-cased, spaces approximate."""
        special = {self._vocabulary[name] for name in SPECIAL_TOKENS} - {self.unk_id}
        return self._backend.decode([int(number) for number in ids if int(number) not in special])


def _plain(vocabulary: Mapping[str, int]) -> tokenizers.Tokenizer:
    """The library's tokenizer for a vocabulary under the rules of uncased BERT."""
    model = WordPiece(
        vocab=dict(vocabulary),
        unk_token="[UNK]",
        continuing_subword_prefix=_CONTINUES,
        max_input_chars_per_word=_MAX_WORD,
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = _normalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=_CONTINUES)
    return backend


def _numbered(lines: Sequence[str]) -> dict[str, int]:
    """From token to the number of its line. A blank line gets a name that no text leads to."""
    exact = set(lines)
    vocabulary: dict[str, int] = {}
    for number, line in enumerate(lines):
        token = line.rstrip()
        if not token:
            token = f"[blank {number}]"
        elif token != line and token in exact:  # two tokens that differ by a space
            token = line
        if token in vocabulary:
            raise DataError(
                f"it holds a token twice: {token!r}, in lines {vocabulary[token] + 1} and "
                f"{number + 1}; give one of them another name"
            )
        vocabulary[token] = number
    return vocabulary


def _normalizer() -> normalizers.BertNormalizer:
    return normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True
    )


def _count_words(texts: Iterable[str]) -> Counter[str]:
    normalizer, splitter = _normalizer(), pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    return words


def _forms(word: str) -> list[str]:
    """The characters of a word, all but the first marked as continuing it."""
    return [word[0], *(_CONTINUES + character for character in word[1:])]


def _piece(piece: str, public: dict[str, str]) -> str:
    """A learned piece in WordPiece spelling: one mark at its front if it continues a word."""
    first, *rest = (public[character] for character in piece)
    return first + "".join(form.removeprefix(_CONTINUES) for form in rest)


def read_text(path: str | os.PathLike[str]) -> str:
    """A file's text, a byte-order mark left out; DataError where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}.") from error
