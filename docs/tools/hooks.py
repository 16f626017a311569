"""What mkdocs does not do by itself: the command line's page, formulas without a script, links.

Formulas of the notebooks become MathML, which browsers draw themselves, so that no page fetches
anything from another host.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent
_SCRIPT = re.compile(r"<script\b[^>]*>.*?</script>", re.DOTALL)
_VERBATIM = re.compile(r"(<(pre|code|style|script|svg)\b.*?</\2>|<[^>]*>)", re.DOTALL)
_FORMULA = re.compile(r"\$([^$\n]+)\$")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Fills in the generated page."""
    if page.file.src_uri == "command-line.md":
        sys.path.insert(0, str(TOOLS))
        import command_line

        return markdown.replace("<!-- commands -->", command_line.markdown())
    # Files of the top folder name pages as they are seen from there.
    return re.sub(r"\]\(docs/", "](", markdown)


def on_page_content(content: str, *, page: Any, **_: Any) -> str:
    """Notebooks: formulas as MathML instead of a script of another host."""
    if not page.file.src_uri.endswith(".ipynb"):
        return content
    content = _SCRIPT.sub(_local, content)
    return _outside_code(content, lambda text: _FORMULA.sub(_mathml, text))


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


def _mathml(formula: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    return convert(html.unescape(formula.group(1)))
