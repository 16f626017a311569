"""Whose work a folder holds: its settings as JSON data, and what differs from those of another.

Every field is stored, and compared by name, so that a field which is new since then asks nothing of
an old file as long as it is at its default, and a default that has changed is seen.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from models.config import FORMER, present

__all__ = ["described", "differing"]


def described(value: Any) -> Any:
    """A value as JSON data: dataclasses and mappings as objects, field by field, sequences as
    lists, numbers, texts and None as they are, all else as its `repr`.
    """
    if (items := _items(value)) is not None:
        return {name: described(item) for name, item in items.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [described(item) for item in value]
    return value if value is None or isinstance(value, str | int | float) else repr(value)


def differing(stored: Any, value: Any, name: str = "") -> list[str]:
    """What of `value` is not as `described` wrote it: names of fields with both values.

    A field of a dataclass that `stored` does not know differs only where it is not at its default.
    """
    items = _items(value)
    if items is not None and isinstance(stored, Mapping):
        defaults = _defaults(value)
        said = [
            f"{_within(name, field)} was {_shown(old)} and there is no such setting now"
            for field, old in stored.items()
            if field not in items
        ]
        for field, item in items.items():
            if field in stored:
                said += differing(stored[field], item, _within(name, field))
            elif field not in defaults or defaults[field] != item:
                said.append(f"{_within(name, field)} is new and {_shown(described(item))}")
        return said
    if isinstance(stored, list) and isinstance(value, Sequence) and not isinstance(value, str):
        if len(stored) == len(value):
            pairs = enumerate(zip(stored, value, strict=True))
            return [d for i, pair in pairs for d in differing(*pair, f"{name}[{i}]")]
    new, field = described(value), name.rpartition(".")[2]
    if field in FORMER and isinstance(stored, str):
        stored = present(field, stored)
    return [] if stored == new else [f"{name} is {_shown(stored)} there and {_shown(new)} here"]


def _items(value: Any) -> Mapping[str, Any] | None:
    """The fields of a dataclass, the items of a mapping; None for anything else."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return value if isinstance(value, Mapping) else None


def _defaults(value: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(value):
        return {}
    out = {}
    for field in dataclasses.fields(value):
        if field.default is not dataclasses.MISSING:
            out[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            out[field.name] = field.default_factory()
    return out


def _within(name: str, field: str) -> str:
    return f"{name}.{field}" if name else field


def _shown(data: Any) -> str:
    text = json.dumps(data)
    return text if len(text) <= 60 else text[:57] + "..."
