"""Removes a folder once the process that started this one has ended, however it ended.

Run as a script, with the folder as its argument; it imports nothing of ours, so that it is there
at once. Neither signals to a terminal's processes nor requests to end concern it: it ends by
itself when the folder is gone. The client's part goes first, since it holds the secret key.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time

_PATIENCE_SECONDS = 120.0
"""Processes of the run may write into the folder until they notice that nobody waits for them."""


def main() -> None:
    """Entry: wait for the end of standard input, or of the parent, then remove the folder."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    folder, parent = sys.argv[1], int(sys.argv[2])
    watched: list[int] = [0]
    with contextlib.suppress(OSError, AttributeError):  # kernels and Pythons that have no pidfd
        watched.append(os.pidfd_open(parent))
    if os.getppid() == parent:
        select.select(watched, (), ())
    end = time.monotonic() + _PATIENCE_SECONDS
    while os.path.exists(folder) and time.monotonic() < end:
        shutil.rmtree(os.path.join(folder, "run.client"), ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


if __name__ == "__main__":
    main()
