"""Nested dicts, lists and tuples as plain JSON data, whose leaves are numbered.

A leaf is its number, None is null, and a container one entry: {"tuple": [...]}, {"list": [...]} or
{"dict": [[key, what], ...]}, whose keys are text or whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hesim.errors import BundleError

__all__ = [
    "Structure",
    "checked",
    "filled",
    "leaves_of",
    "names",
    "numbers",
    "pruned",
    "renumbered",
]

Structure = Any
"""int, None, or a dict of one entry, as JSON has it."""

_SEQUENCES: Mapping[str, Callable[[list], Any]] = {"tuple": tuple, "list": list}
_DEEPEST = 100


def numbers(structure: Structure) -> Iterator[int]:
    """The leaves of a structure, in its order."""
    if isinstance(structure, int):
        yield structure
    elif structure is not None:
        for _, child in _children(structure):
            yield from numbers(child)


def names(structure: Structure, alone: str) -> dict[int, str]:
    """A name for each leaf: its keys and places, with dots between; `alone` if it has none."""
    if isinstance(structure, int):
        return {structure: alone}
    found = {}
    for key, child in () if structure is None else _children(structure):
        inner = names(child, "")
        found |= {leaf: f"{key}.{name}" if name else str(key) for leaf, name in inner.items()}
    return found


def filled(structure: Structure, leaves: Sequence[Any] | Mapping[int, Any]) -> Any:
    """The nested value whose leaf k is `leaves[k]`."""
    if structure is None:
        return None
    if isinstance(structure, int):
        return leaves[structure]
    children = [(key, filled(child, leaves)) for key, child in _children(structure)]
    make = _SEQUENCES.get(next(iter(structure)))
    return dict(children) if make is None else make([child for _, child in children])


def leaves_of(structure: Structure, value: Any, name: str) -> dict[int, Any]:
    """The leaves of a nested value by their numbers.

    Args:
      structure: that it must have; lists and tuples pass for each other.
      value: nested dicts, lists and tuples of arrays. name: what messages call it.

    Raises:
      BundleError: it has another structure; names the place.
    """
    if structure is None:
        if value is not None:
            raise BundleError(f"{name} is a {type(value).__name__} where None belongs")
        return {}
    if isinstance(structure, int):
        return {structure: value}
    kind = next(iter(structure))
    wanted = [key for key, _ in _children(structure)]
    if kind == "dict":
        given = list(value) if isinstance(value, Mapping) else None
        if given is None or set(given) != set(wanted):
            raise BundleError(
                f"{name} must be a dict with the keys {wanted}, not {_told(value, given)}"
            )
    elif not isinstance(value, list | tuple) or len(value) != len(wanted):
        raise BundleError(f"{name} must be a {kind} of {len(wanted)}, not {_told(value, None)}")
    found: dict[int, Any] = {}
    for key, child in _children(structure):
        found |= leaves_of(child, value[key], f"{name}[{key!r}]")
    return found


def pruned(structure: Structure, keep: Callable[[int], bool]) -> Structure:
    """What is left of a structure with some of its leaves: dicts lose the other entries, sequences
    have None in their places. None if nothing is left.
    """
    if structure is None or isinstance(structure, int):
        return structure if isinstance(structure, int) and keep(structure) else None
    kind = next(iter(structure))
    children = [(key, pruned(child, keep)) for key, child in _children(structure)]
    if all(child is None for _, child in children):
        return None
    if kind == "dict":
        return {kind: [[key, child] for key, child in children if child is not None]}
    return {kind: [child for _, child in children]}


def renumbered(structure: Structure, number: Mapping[int, int]) -> Structure:
    """The same structure with other numbers for its leaves."""
    if structure is None:
        return None
    if isinstance(structure, int):
        return number[structure]
    kind = next(iter(structure))
    children = [(key, renumbered(child, number)) for key, child in _children(structure)]
    if kind == "dict":
        return {kind: [[key, child] for key, child in children]}
    return {kind: [child for _, child in children]}


def checked(structure: Any, leaves: int, depth: int = 0) -> Structure:
    """A structure as it was read from a file.

    Raises:
      BundleError: it is none, or has leaves of other numbers than those below `leaves`.
    """
    if structure is None or (type(structure) is int and 0 <= structure < leaves):
        return structure
    if not isinstance(structure, dict) or len(structure) != 1 or depth > _DEEPEST:
        raise BundleError("the structure of its arguments or its result is damaged")
    kind, children = next(iter(structure.items()))
    if not isinstance(children, list) or kind not in ("dict", *_SEQUENCES):
        raise BundleError("the structure of its arguments or its result is damaged")
    for child in children:
        if kind == "dict":
            whole = isinstance(child, list) and len(child) == 2 and type(child[0]) in (str, int)
            if not whole:
                raise BundleError("the structure of its arguments or its result is damaged")
        checked(child[1] if kind == "dict" else child, leaves, depth + 1)
    return structure


def _children(structure: dict[str, list]) -> list[tuple[Any, Structure]]:
    kind, children = next(iter(structure.items()))
    if kind == "dict":
        return [(key, child) for key, child in children]
    return list(enumerate(children))


def _told(value: Any, keys: list | None) -> str:
    if keys is not None:
        return f"one with {keys}"
    size = f" of {len(value)}" if isinstance(value, list | tuple) else ""
    return f"a {type(value).__name__}{size}"
