"""One training step on many devices: rows of a batch over the axis `data`, heads and feed-forward
features over the axis `tensor`.

    mesh = make_mesh(data=4, tensor=2)
    state = place_state(state, mesh)
    state, metrics = step(state, place_batch(batch, mesh))      # the step of one device

The step is the same program: its arrays say where they lie, and the compiler adds what has to be
exchanged (Xu et al. 2021). The query, key and value matrices are cut along their outputs, which are
the heads; the matrix behind the heads along its inputs; the up- and down-projection likewise
(Shoeybi et al. 2020, section 3); the word embedding along the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hesim.errors import ParameterError
from models.config import EncoderConfig

__all__ = [
    "DATA",
    "TENSOR",
    "check_config",
    "check_rows",
    "make_mesh",
    "place_batch",
    "place_state",
    "spec_of",
    "start_hosts",
]

DATA, TENSOR = "data", "tensor"
"""Names of a mesh's axes."""

Tree = TypeVar("Tree")

_COLUMNS = PartitionSpec(None, TENSOR)
_ROWS = PartitionSpec(TENSOR, None)
_RULES: Mapping[tuple[str, ...], PartitionSpec] = {
    ("query", "kernel"): _COLUMNS,
    ("key", "kernel"): _COLUMNS,
    ("value", "kernel"): _COLUMNS,
    ("output", "kernel"): _ROWS,
    ("query", "lora_b"): _COLUMNS,
    ("key", "lora_b"): _COLUMNS,
    ("value", "lora_b"): _COLUMNS,
    ("output", "lora_a"): _ROWS,
    ("up", "kernel"): _COLUMNS,
    ("down", "kernel"): _ROWS,
    ("embedding", "word"): _ROWS,
}
"""How a parameter lies, by the last two names of its path; everything else is on every device."""


def start_hosts(
    coordinator: str | None = None, hosts: int | None = None, number: int | None = None
) -> int:
    """Join the processes of several hosts into one JAX, before anything else uses it; returns how
    many devices there are in all.

    coordinator: address and port of host 0. On a cluster that JAX knows (Slurm, Cloud TPU, ...)
    nothing needs to be said. Raises ParameterError if only some of the three are given, or if the
    hosts do not find each other.
    """
    given = [value is not None for value in (coordinator, hosts, number)]
    if any(given) and not all(given):
        raise ParameterError("name the coordinator, the number of hosts and this host's, or none")
    if hosts == 1:
        return jax.device_count()
    try:
        jax.distributed.initialize(coordinator, hosts, number)
    except (RuntimeError, ValueError) as error:
        raise ParameterError(f"the hosts cannot be joined: {error}") from error
    return jax.device_count()


def make_mesh(
    data: int | None = None, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """data x tensor devices (all of them by default, those of all hosts included).

    Raises ParameterError if there are not as many.
    """
    found = list(jax.devices() if devices is None else devices)
    if tensor < 1 or (data is not None and data < 1):
        raise ParameterError(f"a mesh has at least one device an axis: data={data} tensor={tensor}")
    rows = len(found) // tensor if data is None else data
    if not rows or rows * tensor > len(found) or (data is None and rows * tensor != len(found)):
        raise ParameterError(
            f"{_counted(len(found), 'device')} here: no mesh of data={data or '?'} times "
            f"tensor={tensor} (for a trial, XLA_FLAGS=--xla_force_host_platform_device_count=8 in "
            "the environment makes eight of a CPU)"
        )
    return Mesh(np.asarray(found[: rows * tensor]).reshape(rows, tensor), (DATA, TENSOR))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def check_config(config: EncoderConfig, mesh: Mesh) -> None:
    """ParameterError unless heads and feed-forward features divide over the axis `tensor`."""
    parts = mesh.shape[TENSOR]
    inner = config.ffn // 2 if config.gated else config.ffn
    for name, size in (("heads", config.heads), ("feed-forward features", inner)):
        if size % parts:
            raise ParameterError(f"{size} {name} cannot be cut into {parts} equal parts")


def check_rows(rows: int, mesh: Mesh) -> None:
    """ParameterError unless so many rows divide over the axis `data`."""
    if rows % mesh.shape[DATA]:
        raise ParameterError(f"{rows} rows cannot be cut into {mesh.shape[DATA]} equal parts")


def spec_of(path: Sequence[Any], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """How the array at this path of a parameter tree (or of an optimizer's state, which repeats
    it) is cut: on every device whole where no rule names it or its size does not divide.
    """
    names = [str(getattr(part, "key", getattr(part, "name", ""))) for part in path]
    spec = _RULES.get(tuple(names[-2:]), PartitionSpec()) if len(names) > 1 else PartitionSpec()
    if len(spec) != len(shape):
        return PartitionSpec()
    for axis, size in zip(spec, shape, strict=True):
        if axis is not None and size % mesh.shape[axis]:
            return PartitionSpec()
    return spec


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """The sharding of every array of a `TrainState` or of any tree of parameters."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_of(path, leaf.shape, mesh)), state
    )


def place_state(state: Tree, mesh: Mesh) -> Tree:
    """A `TrainState`, or any tree of parameters, spread over the mesh; every host passes the same
    one.
    """
    return jax.tree.map(_place, state, state_shardings(state, mesh))


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """A batch with its rows spread over the axis `data`; every host passes the whole batch, as
    every host can make it, and keeps its own rows. ParameterError if they do not divide.
    """

    def place(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        if array.ndim:
            check_rows(array.shape[0], mesh)
        return _place(
            array, NamedSharding(mesh, PartitionSpec(DATA) if array.ndim else PartitionSpec())
        )

    return jax.tree.map(place, batch)


def _place(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every host holds whole, as one global array."""
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _place(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
