"""The reference of the command line, out of the commands themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import typer

_TYPES = {str: "TEXT", int: "NUMBER", float: "NUMBER", Path: "PATH"}


def markdown() -> str:
    """A section a command: what it does, how it is called, its arguments and options."""
    from experiments.cli.app import app

    root: Any = typer.main.get_command(app)
    return "\n".join(_commands(root, "hesim"))


def _commands(group: Any, name: str) -> Iterator[str]:
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{name} {word}")
        else:
            yield from _section(command, f"{name} {word}")


def _section(command: Any, name: str) -> Iterator[str]:
    yield f"## {name}\n"
    yield _plain(command.help or "") + "\n"
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    words = [p.name.upper() if p.required else f"[{p.name.upper()}]" for p in arguments]
    yield "```text\n" + " ".join([name, *words, "[OPTIONS]"]) + "\n```\n"
    for parameter in sorted(command.params, key=lambda p: p.param_type_name):
        if parameter.name != "help":
            yield _entry(parameter)


def _entry(parameter: Any) -> str:
    flag = getattr(parameter, "is_flag", False)
    if parameter.param_type_name == "argument":
        head = f"`{parameter.name.upper()}`"
    else:
        value = "" if flag else f" {_value(parameter)}"
        head = f"`{', '.join(parameter.opts)}{value}`"
    notes = ["required"] if parameter.required else []
    if not flag and parameter.default is not None and not callable(parameter.default):
        notes.append(f"default: `{_default(parameter.default)}`")
    note = f" ({', '.join(notes)})" if notes else ""
    return f"{head}\n:   {_plain(parameter.help or '')}{note}\n"


def _default(value: Any) -> str:
    value = getattr(value, "value", value)
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _value(parameter: Any) -> str:
    """What an option takes: its choices, or its type, as many times as it is given."""
    given = parameter.type_descriptor.annotation
    if isinstance(given, type) and issubclass(given, Enum):
        return "|".join(str(choice.value) for choice in given)
    types = get_args(given) or (given,)
    return " ".join(
        _TYPES.get(kind, getattr(kind, "__name__", str(kind)).upper()) for kind in types
    )


def _plain(text: str) -> str:
    """One paragraph; what looks like a tag or a link is shown as it is."""
    return re.sub(r"([<\[])", r"\\\1", " ".join(text.split()))
