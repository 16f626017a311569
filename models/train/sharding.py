"""One training step on many devices: rows of a batch over the axis `data`, heads and feed-forward
features over the axis `tensor`.

    mesh = make_mesh(data=4, tensor=2)
    state = place_state(state, mesh)
    state, metrics = step(state, place_batch(batch, mesh))      # the step of one device

The step is the same program: its arrays say where they lie, and the compiler adds what has to be
exchanged (Xu et al. 2021). The query, key and value matrices are cut along their outputs, which are
the heads; the matrix behind the heads along its inputs; the up- and down-projection likewise
(Shoeybi et al. 2020, section 3), of a gated up-projection each half for itself (`layout`); the word
embedding along the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hesim.errors import ParameterError
from models.config import EncoderConfig
from models.nn.lora import Params
from models.train.gated_halves import names_of, with_halves
from models.train.step import SpreadState, TrainState

__all__ = [
    "DATA",
    "TENSOR",
    "agreed",
    "check_config",
    "check_hosts",
    "check_rows",
    "from_first_host",
    "make_mesh",
    "place_batch",
    "place_frozen",
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

_HALVES: Mapping[tuple[str, ...], PartitionSpec] = {
    ("up", "kernel"): PartitionSpec(None, None, TENSOR),
    ("up", "bias"): PartitionSpec(None, TENSOR),
}
"""The same for a gated up-projection whose halves are on an axis of their own."""


def start_hosts(
    coordinator: str | None = None, hosts: int | None = None, number: int | None = None
) -> int:
    """Join the processes of several hosts into one JAX, before anything else uses it; returns how
    many devices there are in all.

    coordinator: address and port of host 0. On a cluster that JAX knows (Slurm, Cloud TPU, ...)
    nothing needs to be said. Hosts that are joined already stay so. Raises ParameterError if only
    some of the three are given, or if the hosts do not find each other.
    """
    given = [value is not None for value in (coordinator, hosts, number)]
    if any(given) and not all(given):
        raise ParameterError("name the coordinator, the number of hosts and this host's, or none")
    if hosts == 1 or (jax.distributed.is_initialized() and hosts in (None, jax.process_count())):
        return jax.device_count()
    try:
        jax.distributed.initialize(coordinator, hosts, number)
    except (RuntimeError, ValueError) as error:
        raise ParameterError(f"the hosts cannot be joined: {error}") from error
    return jax.device_count()


def check_hosts(hosts: int, *, seconds: float, save_seconds: float) -> None:
    """ParameterError unless a training on so many hosts follows its steps and no host's clock:
    seconds: of its budget; save_seconds: between two checkpoints.
    """
    if hosts == 1:
        return
    if seconds:
        raise ParameterError(
            "a budget in seconds ends at another step on each host: set steps, and seconds = 0"
        )
    if save_seconds:
        raise ParameterError(
            f"checkpoints every {save_seconds:g} seconds fall on other steps on each host: set "
            "save_seconds = 0, which saves whenever the training looks at the clock"
        )


def agreed(stop: Callable[[], bool]) -> Callable[[], bool]:
    """A question that is answered alike on all hosts, which must all ask it: yes if it is on one.
    On one host the question itself.
    """
    if jax.process_count() == 1:
        return stop
    return lambda: bool(multihost_utils.process_allgather(np.asarray(stop())).any())


def make_mesh(
    data: int | None = None, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """data x tensor devices (all of them by default, those of all hosts included).

    Raises ParameterError if there are not as many, or if a host of several would have none.
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
    chosen = found[: rows * tensor]
    idle = {d.process_index for d in found} - {d.process_index for d in chosen}
    if idle:
        raise ParameterError(
            f"data={rows} times tensor={tensor} leaves hosts without a device: there are "
            f"{_counted(len(found), 'device')} on all hosts together"
        )
    return Mesh(np.asarray(chosen).reshape(rows, tensor), (DATA, TENSOR))


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
    names = names_of(path)[-2:]
    for rules in (_RULES, _HALVES):
        spec = rules.get(names, PartitionSpec())
        if len(spec) == len(shape) and all(
            axis is None or size % mesh.shape[axis] == 0
            for axis, size in zip(spec, shape, strict=True)
        ):
            return spec
    return PartitionSpec()


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """The sharding of every array of a `TrainState` or of any tree of parameters."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_of(path, leaf.shape, mesh)), state
    )


def place_state(state: Tree, mesh: Mesh) -> Tree:
    """A `TrainState`, or any tree of parameters, spread over the mesh. Of several hosts, which all
    call this, the first one's state counts, since others may round otherwise.

    Of a tree of parameters every array keeps its shape. A state that has gated up-projections to
    cut, or lies on several hosts, becomes a `SpreadState`. ParameterError for a tree of parameters
    on several hosts, where it could not be read back.
    """
    if jax.process_count() > 1:
        if not isinstance(state, TrainState) and jax.tree.leaves(state):
            raise ParameterError(
                "parameters that are not trained cannot be spread over several hosts here: train "
                'all of them (method = "full"), or use the devices of one host'
            )
        state = from_first_host(state)
    if isinstance(state, TrainState):
        laid = with_halves(state, mesh.shape[TENSOR]) if mesh.shape[TENSOR] > 1 else state
        shapes = [[leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (laid, state)]
        if shapes[0] != shapes[1] or jax.process_count() > 1:
            return cast(Tree, SpreadState(*_placed(laid, mesh)))
    return _placed(state, mesh)


def place_frozen(params: Params, mesh: Mesh, *, halves: bool = True) -> Params:
    """Parameters that a step uses and does not change, spread over the mesh, the halves of gated
    up-projections cut each (`layout.with_halves`) unless the step wants them as they are: for steps
    and forward passes, not to be saved. Of several hosts all pass the same.
    """
    return _placed(with_halves(params, mesh.shape[TENSOR]) if halves else params, mesh)


def from_first_host(tree: Tree) -> Tree:
    """The first host's arrays on every host, to the bit, as NumPy arrays; all hosts pass trees of
    the same shapes and types.
    """

    def send(leaf: Any) -> np.ndarray:
        data = np.asarray(leaf)
        raw = np.frombuffer(data.tobytes(), np.uint8)
        sent = np.asarray(multihost_utils.broadcast_one_to_all(raw))
        return np.frombuffer(sent.tobytes(), data.dtype).reshape(data.shape)

    def send_any(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return send(leaf)
        data = jnp.asarray(send(jax.random.key_data(leaf)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))

    return jax.tree.map(send_any, tree)


def _placed(tree: Tree, mesh: Mesh) -> Tree:
    return jax.tree.map(_place, tree, state_shardings(tree, mesh))


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
