"""Looks through a built site for what a reader must not meet: pages that fetch from elsewhere.

    python docs/tools/check_site.py site

Exits 1, and names the pages, where a script, a style, a font, an image or a frame comes from
another host, or a notebook shows no figure.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|link\b(?=[^>]*\b(?:stylesheet|preload|preconnect)))\b"
    r"[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|@import\s+[\"'(]*((?:https?:)?//[^\"')\s]+)"
    r"|url\([\"']?((?:https?:)?//[^\"')]+)"
    r"|\bimport\s*\(?\s*[\"'](https?://[^\"']+)",
    re.IGNORECASE,
)


def fetched(text: str) -> list[str]:
    """Addresses on other hosts that a page, a style or a script loads by itself."""
    return [next(filter(None, found)) for found in _FETCHED.findall(text)]


def problems(site: Path) -> list[str]:
    """One line a fault."""
    found = []
    for path in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        text = path.read_text(encoding="utf-8")
        found += [f"{path.relative_to(site)} fetches {address}" for address in fetched(text)]
    for path in sorted((site / "tutorials").glob("*.html")):
        if "data:image/png" not in path.read_text(encoding="utf-8"):
            found.append(f"{path.relative_to(site)} shows no figure: was it executed?")
    if not (site / "index.html").exists():
        found.append("there is no index.html")
    return found


def main() -> int:
    """Prints what is wrong; 0 if nothing is."""
    found = problems(Path(sys.argv[1]))
    sys.stderr.write("".join(f"{line}\n" for line in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
