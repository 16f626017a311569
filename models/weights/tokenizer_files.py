"""Tokenizers of others: `tokenizer.json`, or `vocab.txt` with what is added to it.

The numbers are those that the `tokenizers` library gives: its own object does the work, with the
file's normalizer, its splitting and its added tokens. What is ours is the frame, `[CLS] pieces
[SEP]`, and the padding, so a file that frames or pads otherwise is refused, and so is one that
keeps upper case.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from models.data.tokenizer import SPECIAL_TOKENS, Tokenizer, read_text
from models.errors import DataError

__all__ = ["read_tokenizer_folder"]

_PROBES = ("a", "A b, c.", "the old sea", "")
_NAMES = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_tokenizer_folder(folder: Path) -> Tokenizer | None:
    """The folder's WordPiece tokenizer, of `tokenizer.json` or else `vocab.txt`; None without both.

    Raises:
      DataError: a file cannot be read, or asks for what there is not here; it says what.
    """
    notes = _read_json(folder / "tokenizer_config.json") or {}
    _check_notes(notes, folder)
    path = folder / "tokenizer.json"
    raw = _read_json(path)
    if raw is None and not (folder / "vocab.txt").exists():
        return None
    try:
        if raw is None:
            path = folder / "vocab.txt"
            found = Tokenizer.from_vocabulary_file(path)
            added = list(_added(folder, notes, found))
            found = _with_added(found, added) if added else found
        else:
            found = _of_json(raw)
    except DataError as error:
        named = str(error).startswith(str(path))
        raise error if named else DataError(f"{path}: {error}") from error
    _check_uncased(found.vocabulary, path)
    return found


# --- tokenizer.json -----------------------------------------------------------------------------


def _of_json(raw: Mapping[str, Any]) -> Tokenizer:
    model = raw.get("model") or {}
    if model.get("type") != "WordPiece" or not isinstance(model.get("vocab"), dict):
        raise DataError(f"it is of type {model.get('type')!r}: only WordPiece is known")
    if model.get("unk_token", "[UNK]") != "[UNK]":
        raise DataError(
            f"its unknown token is {model['unk_token']!r}: only [UNK] is known; rename it in "
            "model.unk_token and model.vocab"
        )
    truncation, padding = raw.get("truncation"), raw.get("padding")
    _check_truncation(truncation)
    whole = _backend(raw)
    _check_padding(padding, whole)
    if whole.normalizer is None or _keeps_case(whole.normalizer):
        raise DataError("it does not lower case: only uncased vocabularies are known")
    pieces = _unframed(raw, whole)
    found = Tokenizer.of_json(pieces)
    if raw.get("post_processor") is not None:
        _check_frame(whole, found)
    return found if truncation is None else Tokenizer.of_json(pieces, truncation["max_length"])


def _backend(raw: Mapping[str, Any]) -> Any:
    """The library's object for the file, which cuts and pads nothing."""
    try:
        return tokenizers.Tokenizer.from_str(
            json.dumps({**raw, "truncation": None, "padding": None})
        )
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"it is no tokenizer ({error})") from error


def _keeps_case(normalizer: Any) -> bool:
    lowered = str(normalizer.normalize_str("ABCXYZ")).strip()
    return lowered != lowered.lower()


def _unframed(raw: Mapping[str, Any], whole: Any) -> dict[str, Any]:
    """The file without frame, cutting and padding. Names of the five special tokens inside a text
    are text here, so they are words of the vocabulary and not looked for.
    """
    numbers = whole.get_vocab(with_added_tokens=True)
    model = dict(raw["model"])
    model["vocab"] = dict(model["vocab"])
    added = []
    for entry in raw.get("added_tokens") or []:
        if entry["content"] in SPECIAL_TOKENS:
            model["vocab"][entry["content"]] = numbers[entry["content"]]
        else:
            added.append(entry)
    nothing = {"post_processor": None, "truncation": None, "padding": None, "decoder": None}
    return {**raw, **nothing, "added_tokens": added, "model": model}


def _check_truncation(settings: Mapping[str, Any] | None) -> None:
    """DataError where texts are not cut as here: at their end, of a pair the longer one first."""
    if settings is None:
        return
    for name, ours in (("direction", "Right"), ("strategy", "LongestFirst")):
        if settings.get(name, ours) != ours:
            raise DataError(
                f"it cuts long texts with {name} {settings[name]!r}: only {ours!r} is known; set "
                f"truncation.{name} to it, or truncation to null"
            )


def _check_padding(settings: Mapping[str, Any] | None, whole: Any) -> None:
    if settings is None:
        return
    if settings.get("direction", "Right") != "Right":
        raise DataError("it pads at the left: only padding at the right is known; set it to null")
    if settings.get("pad_id") != whole.token_to_id("[PAD]"):
        raise DataError(
            f"it pads with {settings.get('pad_token')!r} ({settings.get('pad_id')}): only [PAD] is "
            "known; set padding to null"
        )


def _check_frame(whole: Any, found: Tokenizer) -> None:
    """DataError where the file's post-processor sets other tokens about the pieces than we do."""
    for first in _PROBES:
        for second in (None, *_PROBES):
            if second is not None and not (first and second):
                continue
            theirs = whole.encode(first, second)
            length = len(theirs.ids) + 5
            ours = found.encode([first], length=length, pairs=None if second is None else [second])
            count = int(ours.mask[0].sum())
            if (ours.ids[0, :count].tolist(), ours.types[0, :count].tolist()) != (
                theirs.ids,
                theirs.type_ids,
            ):
                frame = " ".join(whole.encode("a", None if second is None else "a").tokens)
                raise DataError(
                    f"its post-processor makes {frame!r} of a text: only [CLS] pieces [SEP], with "
                    "pieces [SEP] of the second text after it, is known"
                )


# --- vocab.txt, and what lies beside it ---------------------------------------------------------


def _added(
    folder: Path, notes: Mapping[str, Any], found: Tokenizer
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, token) of what `added_tokens.json` and `tokenizer_config.json` add."""
    listed = dict(_read_json(folder / "added_tokens.json") or {})
    decoder = notes.get("added_tokens_decoder") or {}
    flags = {str(entry.get("content")): entry for entry in decoder.values()}
    try:
        listed |= {str(entry["content"]): int(number) for number, entry in decoder.items()}
        numbers = {str(token): int(number) for token, number in listed.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"its added tokens cannot be read ({error!r})") from error
    for token, number in sorted(numbers.items(), key=lambda item: item[1]):
        if token in SPECIAL_TOKENS and found.vocabulary.get(token) == number:
            continue
        yield number, {"content": token, **flags.get(token, {})}


def _with_added(found: Tokenizer, added: list[tuple[int, dict[str, Any]]]) -> Tokenizer:
    raw = json.loads(found.to_json())
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    raw["added_tokens"] = [
        {**usual, "special": False, **entry, "id": number} for number, entry in added
    ]
    made = Tokenizer.of_json(raw)
    for number, entry in added:
        if made.vocabulary[entry["content"]] != number:
            raise DataError(
                f"its added token {entry['content']!r} has the number {number}, which leaves a gap "
                f"behind {found.size} tokens, or is another one's"
            )
    return made


def _check_notes(said: Mapping[str, Any], source: Path) -> None:
    """DataError where `tokenizer_config.json` asks for other characters, or other special tokens,
    than ours keeps.
    """
    if said.get("do_lower_case") is False:
        raise DataError(f"{source} has a cased vocabulary: only uncased ones are supported")
    if said.get("strip_accents") is False:  # None: as the case is treated
        raise DataError(
            f"{source} keeps accents (strip_accents is false): only tokenizers that drop them are "
            "supported"
        )
    if said.get("tokenize_chinese_chars") is False:
        raise DataError(
            f"{source} leaves CJK characters together (tokenize_chinese_chars is false): only "
            "tokenizers that part them are supported"
        )
    for name, ours in zip(_NAMES, ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"), strict=True):
        entry = said.get(name)
        named = entry.get("content") if isinstance(entry, dict) else entry
        if named is not None and named != ours:
            raise DataError(f"{source} has {named!r} as its {name}: only {ours} is known")
    if said.get("do_basic_tokenize") is False or said.get("never_split"):
        raise DataError(
            f"{source} does not split at punctuation as usual (do_basic_tokenize or never_split): "
            "only BERT's usual splitting is known beside a vocab.txt"
        )
    for side in ("padding_side", "truncation_side"):
        if said.get(side, "right") != "right":
            raise DataError(f"{source} has {side} {said[side]!r}: only 'right' is known")


def _check_uncased(vocabulary: Mapping[str, int], source: Path) -> None:
    """DataError for a vocabulary with capitals, to which no lower-cased word leads; a few may be
    names of special tokens.
    """
    cased = [token for token in vocabulary if token != token.lower() and token[:1] not in "[<"]
    if 100 * len(cased) > len(vocabulary):
        raise DataError(
            f"{source} has a cased vocabulary ({len(cased):,} tokens with capitals, such as "
            f"{cased[0]!r}): only uncased ones are supported"
        )


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, None if there is no file."""
    if not path.exists():
        return None
    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no object")
    return found
