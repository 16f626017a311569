"""What mkdocs does not do by itself: the command line's page, formulas without a script, links.

Formulas of the notebooks become plain HTML, since a script that draws them would be fetched from
another host.
"""

from __future__ import annotations

import html
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent
_SCRIPT = re.compile(r"<script\b[^>]*>.*?</script>", re.DOTALL)
_VERBATIM = re.compile(r"(<(pre|code|style|script|svg)\b.*?</\2>|<[^>]*>)", re.DOTALL)
_FORMULA = re.compile(r"\$([^$\n]+)\$")
_ENTRY = re.compile(r"^::: (\w+)\.(\w+)$", re.MULTILINE)
_SYMBOLS = {r"\approx": "≈", r"\le": "≤", r"\leftarrow": "←", r"\Delta": "Δ", r"\cdot": "·"}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Fills in the generated page."""
    sys.path[:0] = [str(TOOLS), str(TOOLS.parents[1])]
    if page.file.src_uri == "command-line.md":
        import command_line

        return markdown.replace("<!-- commands -->", command_line.markdown())
    if page.file.src_uri.startswith("api/"):
        markdown = _ENTRY.sub(_entry, markdown)
    # Files of the top folder name pages as they are seen from there.
    return re.sub(r"\]\(docs/", "](", markdown)


def _entry(line: re.Match[str]) -> str:
    """A public name by its home, since a module of its name would be taken for it otherwise."""
    package, name = line.groups()
    found = importlib.import_module(package)
    table = getattr(found, "_HOMES", None) or found._HOME
    home = table[name] if table[name].startswith(f"{package}.") else f"{package}.{table[name]}"
    title = f"heading: {package}.{name}\n      toc_label: {name}"
    anchor = f"[](){{ #{package}.{name} }}"
    return f"{anchor}\n\n::: {home}.{name}\n    options:\n      {title}"


def on_page_content(content: str, *, page: Any, **_: Any) -> str:
    """Notebooks: formulas as plain HTML instead of a script of another host."""
    if not page.file.src_uri.endswith(".ipynb"):
        return content
    content = _SCRIPT.sub(_local, content)
    return _outside_code(content, lambda text: _FORMULA.sub(_drawn, text))


def _local(script: re.Match[str]) -> str:
    """A script that fetches nothing stays."""
    return "" if "://" in script.group() else script.group()


def _outside_code(content: str, change: Callable[[str], str]) -> str:
    """Changes the text of a page, and neither its tags nor its code."""
    found, last = [], 0
    for tag in _VERBATIM.finditer(content):
        found += [change(content[last : tag.start()]), tag.group()]
        last = tag.end()
    return "".join([*found, change(content[last:])])


def _drawn(formula: re.Match[str]) -> str:
    return f'<span class="formula">{_html(html.unescape(formula.group(1)))}</span>'


def _html(tex: str) -> str:
    """The few things that our formulas are made of: letters, powers, indices, and some symbols.

    Raises:
      ValueError: something else; add it to the table, or say it in words.
    """
    found, rest = [], tex
    while rest:
        mark, part, rest = rest[0], *_first(rest[1:] if rest[0] in "^_" else rest)
        inner = _html(part[1:-1]) if part[0] == "{" else _symbol(part)
        tag = {"^": "sup", "_": "sub"}.get(mark)
        found.append(f"<{tag}>{inner}</{tag}>" if tag else inner)
    return "".join(found)


def _first(tex: str) -> tuple[str, str]:
    """The first letter, command or group in braces, and the rest."""
    if command := re.match(r"\\[a-zA-Z]+", tex):
        return command.group(), tex[command.end() :]
    end, depth = 1, int(tex[0] == "{")
    while depth:
        depth += {"{": 1, "}": -1}.get(tex[end], 0)
        end += 1
    return tex[:end], tex[end:]


def _symbol(part: str) -> str:
    if part[0] != "\\":
        return f"<i>{part}</i>" if part.isalpha() else html.escape(part.replace("-", "−"))
    if part not in _SYMBOLS:
        raise ValueError(f"the formula's {part} is none of {', '.join(_SYMBOLS)}")
    return _SYMBOLS[part]
