"""What processes hold and what files have, searched for secrets."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

_SKIPPED = ("[vvar]", "[vsyscall]", "[vdso]", "[vvar_vclock]")


def key_windows(path: Path) -> list[bytes]:
    """Pieces of 32 bytes out of the secret key's residues."""
    data = path.read_bytes()
    return [data[start : start + 32] for start in range(len(data) // 8, len(data), len(data) // 4)]


def regions(pid: int) -> Iterator[bytes]:
    """Readable memory of a process, region by region; nothing of one that has ended."""
    with contextlib.ExitStack() as opened:
        try:
            maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
            memory = opened.enter_context(open(f"/proc/{pid}/mem", "rb", buffering=0))
        except (FileNotFoundError, ProcessLookupError):
            return
        for line in maps:
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) (r\S+) \S+ \S+ (\d+)\s*(\S*)", line)
            if not match or match[5] in _SKIPPED:
                continue
            first, last = int(match[1], 16), int(match[2], 16)
            try:
                memory.seek(first)
                yield memory.read(last - first)
            except (OSError, ValueError):
                continue
