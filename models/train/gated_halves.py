"""Where the halves of a gated up-projection lie: one behind the other, as stored, or on an axis of
their own, as tensor parallelism needs them.

A gate and its value meet on one device only if the columns of each half are cut into equal parts
(Shoeybi et al. 2020, section 3, of the columns of an activation's input); a contiguous cut of
[values | gates] gives half of the devices values and the others gates, and the compiler sends
weights around in every step. With the halves on an axis of their own both are cut alike, and the
numbers and their order are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from hesim.errors import ParameterError

__all__ = ["names_of", "stored", "with_halves"]

Tree = TypeVar("Tree")

_PATIENCE = 60
"""Seconds that a host waits for the others before the parts of all are put together."""

Names = tuple[str, ...]


def names_of(path: Sequence[Any]) -> Names:
    """The names along a path of a tree: keys, fields, places."""
    return tuple(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", "")))) for p in path)


def with_halves(tree: Tree, parts: int) -> Tree:
    """Kernels (hidden, ffn) of gated up-projections as (hidden, 2, ffn / 2), biases (ffn,) as (2,
    ffn / 2), in a tree of parameters or in a state that repeats it; the rest as it is.

    parts: into which each half will be cut; halves that do not divide stay joined. A gated
    up-projection is known by a down-projection beside it of half as many inputs.
    """
    shapes = {names_of(p): leaf.shape for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}

    def change(path: Names, leaf: Any) -> Any:
        owner, name = path[:-1], path[-1]
        up = shapes.get((*owner, "kernel"), ())
        down = shapes.get((*owner[:-1], "down", "kernel"), ())
        if len(up) != 2 or len(down) != 2 or up[1] != 2 * down[0] or down[0] % parts:
            return leaf
        columns = leaf.ndim == 2 if name == "kernel" else name == "bias"
        return leaf.reshape(*leaf.shape[:-1], 2, down[0]) if columns else leaf

    return _each_up(tree, change)


def stored(tree: Tree) -> Tree:
    """The tree with joined halves, spread over the same devices; across several hosts, which must
    all call this, every one gets all of it as NumPy arrays. Keys must be unwrapped. ParameterError
    if a host does not come in time: what is put together here would then never arrive.
    """

    def join(path: Names, leaf: Any) -> Any:
        split = 3 if path[-1] == "kernel" else 2
        if path[-1] not in ("kernel", "bias") or leaf.ndim != split:
            return leaf
        whole = leaf.reshape(*leaf.shape[:-2], -1)
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding):
            return whole
        *before, _, last = (*sharding.spec, *[None] * (leaf.ndim - len(sharding.spec)))
        return jax.device_put(whole, NamedSharding(sharding.mesh, PartitionSpec(*before, last)))

    if jax.process_count() > 1:
        _wait_for_hosts()
        tree = jax.tree.map(_gathered, tree)
    return _each_up(tree, join)


def _wait_for_hosts() -> None:
    """Return when all hosts are here."""
    from orbax.checkpoint import multihost

    hosts = set(range(jax.process_count()))
    try:
        multihost.sync_global_processes("hesim.stored", timeout=_PATIENCE, processes=hosts)
    except Exception as error:  # of the coordination service, which has no class of its own
        raise ParameterError(
            "the other hosts are not at this step: they ended, or this one was stopped alone; "
            "start the same command again on all, which goes on from the newest checkpoint"
        ) from error


def _gathered(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def _each_up(tree: Tree, change: Callable[[Names, Any], Any]) -> Tree:
    """The tree with the leaves of up-projections changed; no leaf is copied otherwise."""

    def visit(path: Any, leaf: Any) -> Any:
        names = names_of(path)
        return change(names, leaf) if names[-2:-1] == ("up",) else leaf

    return jax.tree_util.tree_map_with_path(visit, tree)
