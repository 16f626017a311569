"""Settings in a TOML file: every option with its default and a sentence, read with checked names
and types.

    options = options_of(Recipe, "training", {"batch": "sentences of a step", ...})
    template(options)                       # a commented file with all defaults
    values = read_options("run.toml", options)
    values["training"]["batch"]
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.errors import ExperimentError
from hesim.errors import ArgumentError

__all__ = ["Option", "options_of", "read_options", "template", "with_defaults"]

_WIDTH = 96


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a file: `[section] name = default`, with what it means.

    optional: without it in the file there is no value at all; the default is then an example.
    """

    section: str
    name: str
    default: Any
    doc: str
    optional: bool = False


def options_of(settings: Any, section: str, docs: Mapping[str, str]) -> tuple[Option, ...]:
    """An option for each documented field of a dataclass instance, its value being the default."""
    names = {field.name for field in dataclasses.fields(settings)}
    missing = sorted(set(docs) - names)
    if missing:
        raise ArgumentError(f"{type(settings).__name__} has no field {', '.join(missing)}")
    return tuple(Option(section, name, getattr(settings, name), doc) for name, doc in docs.items())


def with_defaults(
    options: Sequence[Option], values: Mapping[str, Mapping[str, Any]]
) -> tuple[Option, ...]:
    """The options with what another file says as their defaults (`read_options` has read it)."""
    return tuple(
        dataclasses.replace(o, default=values[o.section][o.name], optional=False)
        if o.name in values.get(o.section, {})
        else o
        for o in options
    )


def template(options: Sequence[Option], title: str = "") -> str:
    """A TOML file that states every option at its default, each under a comment that explains it;
    optional ones are commented out.
    """
    lines = [f"# {line}" for line in textwrap.wrap(title, _WIDTH)]
    section = None
    for option in options:
        if option.section != section:
            section = option.section
            lines += ["", f"[{section}]"]
        lines += [f"# {line}" for line in textwrap.wrap(option.doc, _WIDTH)]
        mark = "# " if option.optional else ""
        lines.append(f"{mark}{option.name} = {_toml(option.default)}")
    return "\n".join(lines).strip() + "\n"


def read_options(path: str | Path | None, options: Sequence[Option]) -> dict[str, dict[str, Any]]:
    """From section to option to value, defaults where the file says nothing (all of them for None);
    optional options are there only if the file has them.

    Raises ExperimentError naming the file and the option: unreadable or no TOML, an unknown section
    or option (with the nearest name), or a value of another type than the default's.
    """
    values: dict[str, dict[str, Any]] = {}
    known: dict[str, dict[str, Any]] = {}
    for option in options:
        known.setdefault(option.section, {})[option.name] = option.default
        section = values.setdefault(option.section, {})
        if not option.optional:
            section[option.name] = option.default
    if path is None:
        return values
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise ExperimentError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path} is not TOML: {error}") from error
    for section, entries in found.items():
        homes = [home for home, names in known.items() if section in names]
        if homes and not isinstance(entries, dict):
            raise ExperimentError(
                f"{path} has {section!r} outside any section: it belongs under [{homes[0]}]"
            )
        if section not in known or not isinstance(entries, dict):
            raise ExperimentError(f"{path} has [{section}]{_nearest(section, known)}")
        for name, value in entries.items():
            if name not in known[section]:
                hint = _nearest(name, known[section])
                raise ExperimentError(f"{path} has {name!r} in [{section}]{hint}")
            values[section][name] = _typed(path, section, name, value, known[section][name])
    return values


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    by_lower = {word.lower(): word for word in known}
    close = difflib.get_close_matches(name.lower(), by_lower, 1)
    meant = f": did you mean {by_lower[close[0]]!r}?" if close else ""
    return f", which is no option; there are {', '.join(known)}{meant}"


def _typed(path: str | Path, section: str, name: str, value: Any, default: Any) -> Any:
    """The value as the default's type; whole numbers may stand for fractions."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, tuple) and isinstance(value, list):
        like = default[0] if default else value[0] if value else None
        return tuple(_typed(path, section, name, item, like) for item in value)
    if isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, type(default)):
        raise ExperimentError(
            f"{path}: {name} in [{section}] is {value!r}, but it should be like {_toml(default)}"
        )
    return value


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, float | int):
        return repr(value)
    return json.dumps(value)
