"""A Circuit with refreshes and many small tasks, and a run of it."""

from __future__ import annotations

import numpy as np
import pytest

from he_backend.processes.folders import Folders
from he_backend.processes.session import Job


@pytest.fixture
def work(draft, rng):
    """A Circuit with refreshes and many small tasks; inputs, operands, outputs."""
    x, y = rng.uniform(-1, 1, (2, draft.slots))
    w = rng.uniform(-1, 1, draft.slots)
    a, b = draft.input(x), draft.input(y)
    outputs, values = [], []
    for k in range(12):
        draft.op = k % 2
        c = draft.rescale(draft.relinearize(draft.dot((1, a, b), (1, b, b))))
        c = draft.rotate(draft.rescale(draft.dot_plain((c, w))), 1 + k % 2)
        d = draft.refresh(c, 1)
        outputs.append(draft.rescale(draft.dot_plain((d, 0.5 + k))))
        values.append((0.5 + k) * np.roll((x * y + y * y) * w, -(1 + k % 2)))
    return draft.circuit(*outputs), [x, y], draft.operands, outputs, values


@pytest.fixture
def job(work, tmp_path):
    """It waits for `progress` after every task, so that a test can end it where it wants to."""
    circuit, inputs, operands, outputs, _ = work
    folders = Folders.of(tmp_path / "run")
    return Job(circuit, outputs, inputs, operands, folders, ahead=1, task_seconds=2e-4)
