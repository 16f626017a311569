"""A folder of plain text as packed rows of token numbers for language-model pre-training.

    corpus = Corpus.read("texts", length=128, vocabulary=8192, cache="runs/cache")
    corpus.train.rows            # how many rows of 128 tokens
    corpus.train.take([0, 1])    # int32 (2, 128): [CLS], then the running text

Text is cut into sections of some consecutive paragraphs; a hash of its place says whether a section
is held out, so the split depends on no seed. Paragraphs are joined by [SEP] into one stream, and a
row is [CLS] and the next `length - 1` tokens of it: nothing is padded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hesim.files import replacing
from models.data.tokenizer import Tokenizer
from models.errors import DataError

__all__ = ["SUFFIXES", "Corpus", "Section", "Stream", "clean", "read_sections"]

SUFFIXES = (".txt", ".tokens")
"""Files of a corpus folder that are read, in its subfolders too."""

SECTION = 40
"""Paragraphs of a section: long enough that held-out text is not the middle of a training page."""

_UNKNOWN = "<unk>"
_HEADING = re.compile(r"^=( =)* .* =( =)*$")
_WIKI = ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."))
_ENCODED = 512  # paragraphs handed to the tokenizer at a time


class Section(NamedTuple):
    """Consecutive paragraphs of one file; `name` is its path in the folder and its number there."""

    name: str
    paragraphs: tuple[str, ...]


def clean(line: str) -> str:
    """A paragraph as written, without WikiText's ` @-@ ` spelling of hyphens and without headings
    (then empty). Words that WikiText left out stay `<unk>`.
    """
    text = line.strip()
    if _HEADING.match(text):
        return ""
    for spelled, meant in _WIKI:
        text = text.replace(spelled, meant)
    return text


def text_files(folder: str | Path) -> list[Path]:
    """The files of a corpus folder in the order of their paths; DataError if there are none."""
    top = Path(folder)
    if not top.is_dir():
        raise DataError(f"{top} is no folder: name one that holds {' or '.join(SUFFIXES)} files.")
    found = sorted(p for p in top.rglob("*") if p.suffix in SUFFIXES and p.is_file())
    if not found:
        raise DataError(f"{top} holds no {' or '.join(SUFFIXES)} file, in subfolders neither.")
    return found


def read_sections(folder: str | Path) -> Iterator[Section]:
    """All sections of a folder's files, file by file; empty lines only separate.

    Raises:
      DataError: no such folder, no file in it, or a file that is not UTF-8 text.
    """
    top = Path(folder)
    for path in text_files(top):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text: {error}.") from error
        paragraphs = [text for text in map(clean, lines) if text]
        for number, start in enumerate(range(0, len(paragraphs), SECTION)):
            name = f"{path.relative_to(top).as_posix()}#{number}"
            yield Section(name, tuple(paragraphs[start : start + SECTION]))


def is_held_out(name: str, share: float) -> bool:
    """Whether the section of this name is held out: its SHA-256 as a number in [0, 1)."""
    return _place(name) < share


def _place(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """Running text as token numbers (uint16 or int32), seen as rows of `length` tokens."""

    tokens: np.ndarray
    length: int
    cls_id: int

    @property
    def rows(self) -> int:
        """Whole rows; what is left of the text at its end is in none."""
        return len(self.tokens) // (self.length - 1)

    def take(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows by number: int32 (len(rows), length), each beginning with [CLS]."""
        width = self.length - 1
        places = np.asarray(rows)[:, None] * width + np.arange(width)
        out = np.full((len(places), self.length), self.cls_id, np.int32)
        out[:, 1:] = self.tokens[places]
        return out


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    r"""Training and held-out text of a folder, its tokenizer, and what it was made of.

    Attributes:
      train: tokens to train on.
      held_out: tokens to evaluate on.
      tokenizer: made from the training text.
      digest: SHA-256 over the files, the vocabulary and the split, in hexadecimal.
      files: names of the files read.

    Raises:
      DataError: from `Corpus.read`: no text, or too little of it.

    Examples:
      >>> import pathlib, tempfile
      >>> from models import Corpus
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> for k in range(40):
      ...     _ = (folder / f"{k}.txt").write_text("a fine film and a dull film\n" * 20)
      >>> corpus = Corpus.read(folder, length=16, vocabulary=64, held_out=0.2)
      >>> corpus.train.rows > corpus.held_out.rows > 0, len(corpus.files)
      (True, 40)
    """

    train: Stream
    held_out: Stream
    tokenizer: Tokenizer
    digest: str
    files: tuple[str, ...]

    @classmethod
    def read(
        cls,
        folder: str | Path,
        *,
        length: int = 128,
        vocabulary: int | Tokenizer = 8192,
        held_out: float = 0.01,
        cache: str | Path | None = None,
        report: Callable[[str], None] | None = None,
    ) -> Corpus:
        """Read, learn a vocabulary on the training sections (or use a tokenizer), encode and pack.

        Args:
          length: tokens of a row, [CLS] included; at least 8.
          held_out: share of the sections that no step and no vocabulary sees.
          cache: folder for the vocabulary and the encoded text; the same files are not encoded
            twice, unless what was kept is damaged.

        Raises:
          DataError: a folder or file that cannot be read, or text too short for one row of each.
        """
        if length < 8:
            raise DataError(f"Rows of {length} tokens are too short to mask: at least 8.")
        if not 0 < held_out < 1:
            raise DataError(f"held_out={held_out} is a share between 0 and 1.")
        say = report if report is not None else lambda text: None
        files = text_files(folder)
        names = tuple(p.relative_to(folder).as_posix() for p in files)
        for paragraphs in (False, True):
            if paragraphs:
                say("few sections of text: what is held out is picked by paragraphs")
            digest = _digest(files, vocabulary, held_out, length if paragraphs else 0)
            store = None if cache is None else Path(cache) / f"corpus-{digest[:16]}"
            found = None if store is None else _load(store, say)
            if found is None:
                split = split_paragraphs if paragraphs else split_sections
                parted = split(list(read_sections(folder)), held_out, length)
                tokenizer, parts = _encode_all(parted, vocabulary, say)
                if store is not None:
                    _save(store, tokenizer, parts)
            else:
                say(f"encoded text found in {store}")
                tokenizer, parts = found
            train, held = (Stream(part, length, tokenizer.cls_id) for part in parts)
            if train.rows and held.rows:
                return cls(train, held, tokenizer, digest, names)
        raise DataError(
            f"{folder} holds {len(train.tokens):,} training and {len(held.tokens):,} held-out "
            f"tokens: too little text for one row of {length} tokens of each. Add text, in "
            f"paragraphs of a line each, shorten the rows (length), or hold out more (held_out, "
            f"now {held_out:g})."
        )


def _digest(
    files: Sequence[Path], vocabulary: int | Tokenizer, held_out: float, length: int
) -> str:
    """Of the text and its split; length: of the rows where paragraphs are split, else 0."""
    by = f"paragraphs {length}" if length else f"{SECTION}"
    total = hashlib.sha256(f"{by} {held_out}".encode())
    if isinstance(vocabulary, Tokenizer):
        total.update(repr(sorted(vocabulary.vocabulary.items())).encode())
        if not vocabulary.plain:
            total.update(vocabulary.to_json().encode())
    else:
        total.update(str(vocabulary).encode())
    for path in files:
        total.update(f"{path.name} {path.stat().st_size}\n".encode())
        total.update(path.read_bytes())
    return total.hexdigest()


_Parted = tuple[list[str], list[str]]  # paragraphs to train on, and held out


def split_sections(sections: Sequence[Section], share: float, length: int) -> _Parted:
    """Whole sections, each by its name."""
    del length
    parts: _Parted = ([], [])
    for section in sections:
        parts[is_held_out(section.name, share)].extend(section.paragraphs)
    return parts


def split_paragraphs(sections: Sequence[Section], share: float, length: int) -> _Parted:
    """Single paragraphs by their names: the share of them, and of those next to it as many as one
    row of this many tokens takes; never the last one that could be trained on.
    """
    named = [(f"{s.name}.{k}", text) for s in sections for k, text in enumerate(s.paragraphs)]
    ranked = sorted(range(len(named)), key=lambda k: _place(named[k][0]))
    held: set[int] = set()
    words = 0  # with the [SEP] behind each paragraph, of which a row takes length - 1
    for k in ranked[:-1]:
        if words >= length - 1 and _place(named[k][0]) >= share:
            break
        held.add(k)
        words += len(named[k][1].split()) + 1
    parts: _Parted = ([], [])
    for k, (_, text) in enumerate(named):
        parts[k in held].append(text)
    return parts


def _encode_all(
    parted: _Parted, vocabulary: int | Tokenizer, say: Callable[[str], None]
) -> tuple[Tokenizer, tuple[np.ndarray, np.ndarray]]:
    if isinstance(vocabulary, Tokenizer):
        tokenizer = vocabulary
    else:
        say(f"learning a vocabulary of {vocabulary:,} on {len(parted[0]):,} paragraphs")
        tokenizer = Tokenizer.train(
            (text.replace(_UNKNOWN, " ") for text in parted[0]), size=vocabulary
        )
    say(f"encoding {sum(map(len, parted)):,} paragraphs")
    train, held = (encode_stream(tokenizer, part) for part in parted)
    return tokenizer, (train, held)


def encode_stream(tokenizer: Tokenizer, paragraphs: Sequence[str]) -> np.ndarray:
    """Paragraphs one after the other, [SEP] after each: (tokens,) of uint16, or int32 where the
    vocabulary is larger. `<unk>` becomes [UNK].
    """
    kind = np.uint16 if tokenizer.size <= 1 << 16 else np.int32
    out: list[np.ndarray] = []
    for start in range(0, len(paragraphs), _ENCODED):
        chunk = paragraphs[start : start + _ENCODED]
        pieces = [paragraph.split(_UNKNOWN) for paragraph in chunk]
        flat = iter(tokenizer.pieces([piece for parts in pieces for piece in parts]))
        ids: list[int] = []
        for parts in pieces:
            for place in range(len(parts)):
                ids += ([tokenizer.unk_id] if place else []) + next(flat)
            ids.append(tokenizer.sep_id)
        out.append(np.asarray(ids, kind))
    return np.concatenate(out) if out else np.zeros(0, kind)


def _save(store: Path, tokenizer: Tokenizer, parts: tuple[np.ndarray, np.ndarray]) -> None:
    """Vocabulary first, then the text, each complete or absent."""
    store.mkdir(parents=True, exist_ok=True)
    tokenizer.save(store / "vocabulary.json")
    with replacing(store / "tokens.npz") as file:
        np.savez(file, train=parts[0], held_out=parts[1])


def _load(
    store: Path, say: Callable[[str], None]
) -> tuple[Tokenizer, tuple[np.ndarray, np.ndarray]] | None:
    """What `_save` wrote, None if it did not or if a file is damaged (the format has checksums)."""
    path = store / "tokens.npz"
    if not path.exists():
        return None
    try:
        with np.load(path) as found:
            parts = (found["train"], found["held_out"])
        return Tokenizer.load(store / "vocabulary.json"), parts
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, DataError) as error:
        say(f"encoded text in {store} is damaged ({error}): the files are encoded again")
        return None
