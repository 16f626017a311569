"""States of a training in its run folder: what a step hands on, in the clear, at the client."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.errors import ExperimentError
from experiments.validation.folder import RunFolder
from models.recipes.encrypted_training import State

__all__ = ["figures_of", "latest", "load_state", "save_state", "saved_steps", "worth_keeping"]

_LAST = 5
"""Steps before the end whose states a rehearsal keeps, too: an encrypted run may begin there."""


def worth_keeping(step: int, steps: int, every: int) -> bool:
    """Whether the state after so many steps is kept: every so many, and near the end."""
    return step == steps or (every > 0 and step % every == 0) or steps - _LAST <= step


def save_state(
    folder: RunFolder, kind: str, step: int, state: State, figures: Mapping[str, Any]
) -> None:
    """Keep the state after `step` steps, with its figures."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    own = _own(folder)
    own.path.mkdir(exist_ok=True)
    own.save(f"{kind}-{step}", figures, {str(k): leaf for k, leaf in enumerate(leaves)})


def figures_of(folder: RunFolder, kind: str, step: int) -> dict[str, Any]:
    """The figures of a state that is kept."""
    return _own(folder).figures(f"{kind}-{step}")


def load_state(folder: RunFolder, kind: str, step: int, like: State) -> State:
    """The state that was kept after `step` steps, of the structure of `like`. ExperimentError if
    there is none, or it is damaged; names those that there are.
    """
    own = _own(folder)
    if not own.done(f"{kind}-{step}"):
        there = saved_steps(folder, kind)
        listed = ", ".join(f"{k:,}" for k in there) or "none"
        raise ExperimentError(
            f"{folder.path} holds no state after step {step:,} of a rehearsal; there are: {listed}."
            " Rehearse first (--rehearse), or begin at one of these"
        )
    arrays = own.arrays(f"{kind}-{step}")
    leaves, tree = jax.tree.flatten(like)
    found = [arrays.get(str(k)) for k in range(len(leaves))]
    for leaf, array in zip(leaves, found, strict=True):
        if array is None or array.shape != np.shape(leaf):
            raise ExperimentError(
                f"{own.path / f'{kind}-{step}.npz'} is of another model: choose another --out"
            )
    return tree.unflatten(found)


def _own(folder: RunFolder) -> RunFolder:
    """The folder of states, of the same owner."""
    return RunFolder(folder.path / "states", folder.settings)


def saved_steps(folder: RunFolder, kind: str) -> list[int]:
    """Numbers of steps after which states are kept, ascending."""
    name = re.compile(rf"{re.escape(kind)}-(\d+)\.json")
    found = (name.fullmatch(path.name) for path in _own(folder).path.glob(f"{kind}-*.json"))
    return sorted(int(match[1]) for match in found if match)


def latest(folder: RunFolder, kind: str) -> int:
    """The last step whose state is kept, 0 if none is."""
    return max(saved_steps(folder, kind), default=0)
