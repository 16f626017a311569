"""Checkpoints of a training run by orbax: the state to the bit, the configuration, the sites.

A checkpoint is complete or absent: orbax writes into a temporary folder and renames it. A digest of
the state lies beside it, since its files have no checksum of their numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from models.errors import CheckpointError
from models.sites.sites import Sites
from models.train.fingerprint import described, differing
from models.train.gated_halves import stored
from models.train.sharding import from_first_host
from models.train.step import SpreadState, TrainState

_DIGEST = "digest of the state"
"""Name in a checkpoint's notes that is no caller's."""


def sites_to_json(sites: Sites) -> str:
    """The approximations of all sites, coefficients to the last bit; CheckpointError for a function
    that is none of `approx`'s.
    """
    try:
        return sites.to_json()
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def sites_from_json(text: str) -> Sites:
    """What `sites_to_json` wrote."""
    return Sites.from_json(text)


def digest_of(tree: Any) -> str:
    """16 hexadecimal digits of SHA-256 over the arrays of a tree, which tell one content from
    another.
    """
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        array = np.ascontiguousarray(leaf)
        total.update(f"{array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()[:16]


class Checkpoints:
    """A folder of checkpoints by step number; use it as a context manager.

    A tree saved here is any pytree of arrays, `jax.random.key` arrays included. `notes` is JSON
    data (the configuration, the phase, a history) that is written beside it.

    Of several hosts, which must all ask and save alike, the first writes into its folder and reads
    there; the others get from it what it found, its errors too, and leave their own folder alone.

    Args:
      folder: made if absent.
      keep: the newest so many are kept.

    Raises:
      CheckpointError: the folder holds checkpoints that are damaged, or of another training.

    Examples:
      >>> import tempfile
      >>> import numpy as np
      >>> from models import Checkpoints
      >>> with Checkpoints(tempfile.mkdtemp()) as store:
      ...     store.save(7, {"w": np.arange(3.0)}, {"phase": "exact"})
      ...     state, notes = store.resume({"w": np.zeros(3)}, {})
      >>> state["w"], notes["phase"]
      (array([0., 1., 2.]), 'exact')
    """

    def __init__(self, folder: str | Path, *, keep: int = 2) -> None:
        self.folder = Path(folder).absolute()
        alone = ocp.options.MultiprocessingOptions()
        if jax.process_count() > 1:
            alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=False,
            create=False,
            multiprocessing_options=alone,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._open: ocp.CheckpointManager | None = None
        if jax.process_index():
            return
        self._open = ocp.CheckpointManager(
            self.folder,
            options=options,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(multiprocessing_options=alone),
                "notes": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
            },
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._open is not None:
            self._open.close()

    @property
    def _manager(self) -> ocp.CheckpointManager:
        assert self._open is not None, "only the first host reads and writes"
        return self._open

    @property
    def latest(self) -> int | None:
        """The newest step saved, None if there is none."""
        return _from_first(lambda: self._manager.latest_step())

    def save(self, step: int, tree: Any, notes: dict[str, Any] | None = None) -> None:
        """Write a checkpoint and wait until it is on the disk; a step already there is replaced.

        CheckpointError where it cannot be written, such as on a full disk; earlier ones remain.
        """
        plain = _as_stored(tree)
        _from_first(lambda: self._write(step, plain, described(notes or {})))

    def _write(self, step: int, plain: Any, notes: dict[str, Any]) -> None:
        try:
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(plain),
                    notes=ocp.args.JsonSave(notes | {_DIGEST: _digest(plain)}),
                ),
            )
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            said = str(error).rpartition("Failed ")[2]
            raise CheckpointError(
                f"the checkpoint of step {step} cannot be written to {self.folder}: {said}; once "
                "there is room, the same command goes on from the one before"
            ) from error

    def notes(self, step: int | None = None) -> dict[str, Any]:
        """The JSON data of a checkpoint (the newest by default)."""

        def read() -> dict[str, Any]:
            found = self._read_notes(self._existing(step))
            return {name: value for name, value in found.items() if name != _DIGEST}

        return _from_first(read)

    def _read_notes(self, number: int) -> dict[str, Any]:
        with self._readable(number):
            return self._manager.restore(
                number, args=ocp.args.Composite(notes=ocp.args.JsonRestore())
            )["notes"]

    def resume(
        self, like: Any, identity: Mapping[str, Any], kind: str = "training"
    ) -> tuple[Any, dict[str, Any]]:
        """The newest tree and its notes; `like` and no notes where the folder is new.

        Raises CheckpointError unless the notes agree with `identity`, which says whose the
        checkpoints are, in digests and dataclasses of settings; it names what differs, of
        settings field by field. A setting that is new since then has to be at its default.
        Likewise where several hosts have not the same identity.
        """
        if jax.process_count() > 1:
            first = _from_first(lambda: described(identity))
            listed = [
                w for name, value in identity.items() for w in _differing(name, first[name], value)
            ]
            if any(multihost_utils.process_allgather(np.asarray(bool(listed))).ravel()):
                said = ", ".join(listed[:6]) or "another host says which"
                raise CheckpointError(
                    f"the hosts have been given different things to do ({said}): give all of them "
                    "the same settings and the same text or data"
                )
        if self.latest is None:
            return like, {}
        notes = self.notes()
        differing = [
            what
            for name, value in identity.items()
            for what in _differing(name, notes.get(name), value)
        ]
        if differing:
            listed = ", ".join(differing[:6]) + (" and more" if len(differing) > 6 else "")
            raise CheckpointError(
                f"{self.folder} holds another {kind} ({listed}): go on with that one, or choose "
                "another folder"
            )
        return self.restore(like), notes

    def restore(self, like: Any, step: int | None = None) -> Any:
        """The tree of a checkpoint, shaped and typed as `like` (values do not matter).

        Raises CheckpointError if there is none, if it is damaged, or if its arrays have other names
        or shapes.
        """
        plain = _unwrap_keys(like)
        if jax.process_count() == 1:
            return _wrap_keys(self._read(plain, step), like)
        found: list[Any] = []
        _from_first(lambda: found.append(self._read(plain, step)))
        return _wrap_keys(from_first_host(found[0] if found else plain), like)

    def _read(self, plain: Any, step: int | None) -> Any:
        number = self._existing(step)
        with self._readable(number):
            found = self._manager.item_metadata(number)["state"]
            if found is None or not _leaves(found):
                raise CheckpointError("it has no list of its arrays")
        expected = {_name(path): tuple(leaf.shape) for path, leaf in _leaves(plain)}
        stored = {_name(path): tuple(leaf.shape) for path, leaf in _leaves(found)}
        if expected != stored:
            wrong = sorted(
                name
                for name in expected.keys() | stored.keys()
                if expected.get(name) != stored.get(name)
            )
            raise CheckpointError(
                f"{self.folder}, step {number}, is of another model: "
                + "; ".join(
                    f"{name} is {stored.get(name, 'absent')}, wanted {expected.get(name, 'absent')}"
                    for name in wrong[:5]
                )
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, plain)
        digest = self._read_notes(number).get(_DIGEST)  # None: by an older version
        with self._readable(number):
            tree = self._manager.restore(
                number, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )["state"]
            if digest not in (None, _digest(tree)):
                raise CheckpointError("its numbers are not those that were saved")
        return tree

    @contextlib.contextmanager
    def _readable(self, step: int) -> Iterator[None]:
        """CheckpointError in place of what a damaged file raises."""
        try:
            yield
        except Exception as error:  # orbax raises a bare one for arrays that it cannot read
            raise CheckpointError(
                f"{self.folder / str(step)} is damaged ({str(error)[:200]}): remove it, and the "
                "same command goes on from the checkpoint before, or from the start"
            ) from error

    def _existing(self, step: int | None) -> int:
        number = self._manager.latest_step() if step is None else step
        if number is None or number not in self._manager.all_steps():
            raise CheckpointError(
                f"{self.folder} holds no checkpoint" + (f" of step {step}" if step else "")
            )
        return number


def _from_first(work: Callable[[], Any]) -> Any:
    """What the work gives, which is JSON data; of several hosts the first does it, and all get its
    result or its CheckpointError.
    """
    if jax.process_count() == 1:
        return work()
    told: dict[str, Any] = {}
    if not jax.process_index():
        try:
            told = {"result": work()}
        except CheckpointError as error:
            told = {"error": str(error)}
    size = multihost_utils.broadcast_one_to_all(np.asarray(len(json.dumps(told)), np.int32))
    text = np.frombuffer(json.dumps(told).encode().ljust(int(size))[: int(size)], np.uint8)
    told = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes())
    if "error" in told:
        raise CheckpointError(told["error"])
    return told["result"]


def _differing(name: str, stored: Any, given: Any) -> list[str]:
    """What differs, by name; the digits of a digest say nothing."""
    if isinstance(given, str):
        return [] if stored == given else [f"other {name}"]
    if isinstance(stored, str):  # settings as a text, by an older version
        with contextlib.suppress(ValueError):
            stored = json.loads(stored)
    return differing(stored, given, name)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _unwrap_keys(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def _as_stored(tree: Any) -> Any:
    """The tree as it would be on one device, so that a run may go on with another mesh."""
    plain = stored(_unwrap_keys(tree))
    return TrainState(*plain) if isinstance(plain, SpreadState) else plain


def _wrap_keys(tree: Any, like: Any) -> Any:
    return jax.tree.map(
        lambda leaf, old: (
            jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(old)) if _is_key(old) else leaf
        ),
        tree,
        like,
    )


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))[0]


def _digest(tree: Any) -> str:
    """`digest_of` the arrays in the order of their names, whatever holds them."""
    named = {_name(path): leaf for path, leaf in _leaves(tree)}
    return digest_of([named[name] for name in sorted(named)])


def _name(path: Any) -> str:
    parts = [getattr(p, "key", getattr(p, "name", getattr(p, "idx", None))) for p in path]
    return ".".join(str(part) for part in parts)
