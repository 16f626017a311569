"""Circuit: a flat list of ciphertext instructions as data. Imports no JAX."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from hesim.circuit import plain_rows
from hesim.circuit.costs.spending import Ledger, Spending
from hesim.circuit.plain_rows import PlaintextFamily
from hesim.circuit.refresher import KEY_HOLDER, Refresher
from hesim.display import html_block
from hesim.errors import ParameterError, reading
from hesim.files import replacing
from hesim.noise.bootstrap import in_slots
from hesim.params import CKKSParams

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float64, Int8, Int16, Int32, Int64, UInt8

__all__ = ["KINDS", "Circuit", "Kind", "PlaintextFamily", "TensorLocation"]

KINDS = (
    "input",
    "add",
    "dot",
    "dot_plain",
    "add_plain",
    "rotate",
    "relinearize",
    "rescale",
    "drop",
    "refresh",
)
"""Instruction kinds, in the order of their numbers.

input        a fresh encryption by the key holder of row `param` of the inputs
add          sum of factor * arg, all at one level and scale, of 2 or 3 components
dot          sum of factor * arg * arg2: 3 components, scale the product of the scales
dot_plain    sum of arg * plaintext[arg2]
add_plain    arg + plaintext[arg2]
rotate       cyclic left rotation of the effective slots by `param`: out[s] = in[s + param]
relinearize  3 components to 2
rescale      divides by the last prime: one level and log2 of that prime of scale fewer
drop         forgets primes down to level `param`; the scale stays
refresh      round trip to the key holder (or a bootstrap) to level `param`, canonical scale
"""


class Kind:
    """Numbers of the instruction kinds."""

    INPUT, ADD, DOT, DOT_PLAIN, ADD_PLAIN, ROTATE, RELINEARIZE, RESCALE, DROP, REFRESH = range(10)


@dataclass(frozen=True, eq=False, init=False)
class TensorLocation:
    """Where the elements of one encrypted tensor lie.

    Attributes:
      op: index into the program's ops, -1 for an input or a public value.
      shape: shape of the tensor in the traced function.
      batch_axis: axis that lies along the width of a column, -1 if there is none.
      cipher: int32, ciphertext of each element (C order, batch axis removed); -1: exactly zero;
        -2: not computed, since no result depends on it.
      column: int32, column of each element.
      gain: the tensor's value is gain * slot value.
      batch, width: as in PlaintextFamily.

    In the place of `cipher` there may be a function without arguments that returns it and `column`,
    which is then None: it is called when either is asked for, of most tensors never.
    """

    op: int
    shape: tuple[int, ...]
    batch_axis: int
    cipher: Int32[np.ndarray, " elements"]
    column: Int32[np.ndarray, " elements"]
    gain: float
    batch: int
    width: int

    def __init__(
        self,
        op: int,
        shape: tuple[int, ...],
        batch_axis: int,
        cipher: Int32[np.ndarray, " elements"]
        | Callable[[], tuple[Int32[np.ndarray, " elements"], Int32[np.ndarray, " elements"]]],
        column: Int32[np.ndarray, " elements"] | None,
        gain: float,
        batch: int,
        width: int,
    ):
        held = {"op": op, "shape": shape, "batch_axis": batch_axis}
        held |= {"gain": gain, "batch": batch, "width": width}
        if isinstance(cipher, np.ndarray):
            held |= {"cipher": cipher, "column": column}
        else:
            held["_places"] = cipher
        for name, value in held.items():
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in ("cipher", "column") or "_places" not in self.__dict__:
            raise AttributeError(name)
        cipher, column = self.__dict__["_places"]()
        object.__setattr__(self, "cipher", cipher)
        object.__setattr__(self, "column", column)
        del self.__dict__["_places"]
        return self.__dict__[name]

    @cached_property
    def ciphers(self) -> Int32[np.ndarray, " ciphers"]:
        """Ciphertexts that hold the tensor, each once, sorted."""
        found = np.unique(self.cipher)
        return found[found >= 0]

    def read(
        self, vectors: Mapping[int, Float[np.ndarray, " slots"]]
    ) -> Float64[np.ndarray, "*shape"]:
        """The tensor out of decrypted slot vectors (float64, effective slots each).

        Args:
          vectors: slot values by ciphertext; elements of absent ciphertexts, and those that are not
            computed, come back as NaN.
        """
        rest = self.cipher.size
        members = self.batch if self.batch_axis >= 0 else 1
        out = np.full((rest, members), np.nan)
        out[self.cipher == -1] = 0.0
        for cipher in self.ciphers:
            if int(cipher) not in vectors:
                continue
            where = np.flatnonzero(self.cipher == cipher)
            grid = np.asarray(vectors[int(cipher)]).reshape(-1, self.width)
            out[where] = grid[self.column[where], :members] * self.gain
        if self.batch_axis < 0:
            return out[:, 0].reshape(self.shape)
        inner = [d for i, d in enumerate(self.shape) if i != self.batch_axis]
        return np.moveaxis(out.reshape(*inner, members), -1, self.batch_axis)


_ARRAYS = (
    *("kind", "level", "scale", "arg_ptr", "arg", "arg2", "factor", "param", "source"),
    *("plain_pack", "plain_row", "plain_level", "plain_scale"),
)


_FORMAT = 3
"""Of files: 3 says what is carried to the next run; 2 names what gives plaintexts their rows; 1 has
tables only. Earlier ones are read as well.
"""


@dataclass(frozen=True, eq=False, repr=False)
class Circuit:
    """Instructions over numbered ciphertexts; instruction i makes ciphertext i.

    Attributes:
      params: the CKKS parameters it was compiled for.
      slots: effective slots (a power of two that divides params.slots): every slot vector is
        repeated params.slots / slots times, so rotations are cyclic modulo `slots`.
      kind: uint8 (I,), see KINDS.
      level: int16 (I,), scale: float64 (I,), of the results.
      arg_ptr: int64 (I + 1,): operands of instruction i are arg[arg_ptr[i]:arg_ptr[i + 1]].
      arg: int32, ciphertexts.
      arg2: int32, second ciphertext (dot) or plaintext (dot_plain, add_plain), else -1.
      factor: int32, whole factors (add, dot).
      param: int32 (I,): rotation step, target level, or input row.
      source: int32 (I,): index into op_names, -1 for inputs.
      plain_pack, plain_row: int32 (P,): which vector a plaintext encodes.
      plain_level: int16, plain_scale: float64: how.
      packs: the families of public vectors.
      inputs: families of encrypted inputs; row r of instruction `input` counts through them in
        order.
      operand_count: public operands that `vector` needs.
      op_names, op_sources: name and source text per program operation.
      outputs: one Tap per result leaf, None where the leaf is public.
      taps: one Tap per operation of which anything is computed as a tensor.
      input_labels: name of each encrypted leaf.
      refresher: who serves its refreshes.
      memory: bytes that evaluating it may take, by one process; None for what there is.
      carried: (ciphertext, input instruction): what this run makes is that input at the next one,
        at the same level and scale.
      carries: (argument, result) of the function, by number, as `compile` was asked to carry them.
      ledger: what it spends.
      program: what it was compiled from; None once loaded.
      publics: what evaluates its public operands; None once loaded.
      origin: of a loaded one, by what `hesim.circuit.publics.bound` knows its Program.

    Examples:
      >>> import hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> circuit = hesim.compile(hesim.trace(lambda x: x.sum(), np.ones(8)), params)
      >>> circuit.rotation_steps, len(circuit) > 3, circuit.ledger.depth
      ((1, 2, 4), True, 0)
    """

    params: CKKSParams
    slots: int
    kind: UInt8[np.ndarray, " instructions"]
    level: Int16[np.ndarray, " instructions"]
    scale: Float64[np.ndarray, " instructions"]
    arg_ptr: Int64[np.ndarray, " instructions+1"]
    arg: Int32[np.ndarray, " terms"]
    arg2: Int32[np.ndarray, " terms"]
    factor: Int32[np.ndarray, " terms"]
    param: Int32[np.ndarray, " instructions"]
    source: Int32[np.ndarray, " instructions"]
    plain_pack: Int32[np.ndarray, " plaintexts"]
    plain_row: Int32[np.ndarray, " plaintexts"]
    plain_level: Int16[np.ndarray, " plaintexts"]
    plain_scale: Float64[np.ndarray, " plaintexts"]
    packs: tuple[PlaintextFamily, ...]
    inputs: tuple[PlaintextFamily, ...]
    operand_count: int
    op_names: tuple[str, ...]
    op_sources: tuple[str, ...]
    outputs: tuple[TensorLocation | None, ...]
    taps: tuple[TensorLocation, ...]
    input_labels: tuple[str, ...]
    ledger: Ledger
    refresher: Refresher = KEY_HOLDER
    memory: int | None = None
    carried: tuple[tuple[int, int], ...] = ()
    carries: tuple[tuple[int, int], ...] = ()
    program: Any = field(default=None, repr=False)
    publics: Any = field(default=None, repr=False)
    origin: Mapping[str, Any] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.kind)

    def __repr__(self) -> str:
        p = self.params
        return (
            f"Circuit of {len(self.op_names)} operations, {len(self):,} instructions on "
            f"ciphertexts of {self.slots:,} slots in use{self._side_by_side()}: "
            f"N = 2^{p.log_n}, {p.levels} levels, "
            f"{self.ledger.refreshes:,} refreshes in {self.ledger.refresh_rounds:,} rounds, "
            f"{len(self.rotation_steps):,} rotation keys"
        )

    @property
    def batch(self) -> int:
        """Members of the batch that lie side by side in the slots, 1 if there is none."""
        return max([family.batch for family in self.inputs], default=1)

    @property
    def full_batch(self) -> int:
        """Members that would fill the slots of these ciphertexts, at the same price."""
        columns = max([family.columns for family in self.inputs], default=1)
        return self.params.slots // columns if self.batch > 1 else 1

    def _side_by_side(self) -> str:
        if self.batch == 1:
            return ""
        more = f" (room for {self.full_batch:,})" if self.full_batch > self.batch else ""
        return f", {self.batch:,} members of the batch side by side{more}"

    def __str__(self) -> str:
        return f"{self!r}\n{self.ledger.table()}"

    def _repr_html_(self) -> str:
        return html_block(repr(self), inner=self.ledger._repr_html_())

    @property
    def spare_bytes(self) -> int | None:
        """Of `memory`, what is left for plaintexts that are kept encoded; None without a limit."""
        return None if self.memory is None else max(self.memory - self.ledger.peak_bytes, 0)

    @cached_property
    def rotation_steps(self) -> tuple[int, ...]:
        """Left rotation steps that need a key, in effective slots, ascending."""
        return tuple(int(s) for s in np.unique(self.param[self.kind == Kind.ROTATE]))

    @cached_property
    def input_rows(self) -> tuple[tuple[int, int], ...]:
        """(pack, row) of each input row number."""
        return tuple((k, r) for k, pack in enumerate(self.inputs) for r in range(len(pack)))

    @cached_property
    def scalars(self) -> Bool[np.ndarray, " plaintexts"]:
        """Which plaintexts are one number in all slots."""
        families = np.array([family.scalar for family in self.packs], dtype=bool)
        return families[self.plain_pack] if len(families) else np.zeros(0, bool)

    @cached_property
    def last_uses(self) -> Int64[np.ndarray, " instructions"]:
        """The last instruction that reads each ciphertext, -1 if none does."""
        last = np.full(len(self.kind), -1)
        consumer = np.repeat(np.arange(len(self.kind)), np.diff(self.arg_ptr))
        dots = np.repeat(self.kind == Kind.DOT, np.diff(self.arg_ptr))
        np.maximum.at(last, self.arg, consumer)
        np.maximum.at(last, self.arg2[dots], consumer[dots])
        return last

    @cached_property
    def of_key_holder(self) -> Bool[np.ndarray, " instructions"]:
        """Whether the key holder serves an instruction: inputs, and refreshes if they are its."""
        served = self.kind == Kind.INPUT
        return served | (self.kind == Kind.REFRESH) if self.refresher.interactive else served

    @property
    def error_law(self) -> str | None:
        """Name of the law by which refreshes err, for the slots that are in use; None for the error
        of a fresh encryption, or that of the noise profile's own bootstrap.
        """
        return in_slots(self.refresher.error, self.slots)

    @cached_property
    def bootstrap(self) -> Refresher | None:
        """What refreshes on the server, for the slots of this Circuit; None where nothing does."""
        if self.refresher.interactive or not np.any(self.kind == Kind.REFRESH):
            return None
        return self.refresher.in_slots(self.slots)

    @cached_property
    def most_alive(self) -> int:
        """Ciphertexts at a time, at most, that are still to be read."""
        change = np.zeros(len(self.kind) + 1, np.int64)
        change[:-1] += 1
        ends = np.maximum(self.last_uses, np.arange(len(self.kind)))
        np.add.at(change, ends + 1, -1)
        return int(np.cumsum(change).max(initial=0))

    def args(self, i: int) -> slice:
        """Range of `arg`, `arg2` and `factor` that belongs to instruction i."""
        return slice(int(self.arg_ptr[i]), int(self.arg_ptr[i + 1]))

    def operands(self, i: int) -> list[int]:
        """Ciphertexts that instruction i reads, each once, ascending."""
        part = self.args(i)
        used = set(self.arg[part].tolist())
        if self.kind[i] == Kind.DOT:
            used.update(self.arg2[part].tolist())
        return sorted(used)

    @cached_property
    def components(self) -> Int8[np.ndarray, " instructions"]:
        """Polynomials of each result, 2 or 3."""
        found = np.full(len(self.kind), 2, np.int8)
        found[self.kind == Kind.DOT] = 3
        inherit = (Kind.ADD, Kind.DOT_PLAIN, Kind.ADD_PLAIN, Kind.RESCALE, Kind.DROP)
        for i in np.flatnonzero(np.isin(self.kind, inherit)):
            found[i] = found[self.arg[self.args(int(i))]].max()
        return found

    def describe(self, i: int) -> str:
        """Operation name and source line behind instruction i."""
        op = int(self.source[i])
        if op < 0:
            return "input"
        return f"{self.op_names[op]} at {self.op_sources[op]}"

    def save(self, path: str | Path | BinaryIO) -> None:
        """Writes the Circuit to one .npz file (no pickle), whole or not at all.

        The Program is not part of it, but the file says which one it was: `he_backend.run` and
        `hesim.certify` take the loaded Circuit with another trace of the same function.
        """
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        meta: dict[str, Any] = {
            "format": _FORMAT,
            "params": self.params.fields,
            "slots": self.slots,
            "operand_count": self.operand_count,
            "op_names": self.op_names,
            "op_sources": self.op_sources,
            "input_labels": self.input_labels,
            "ledger": dataclasses.asdict(self.ledger),
            "refresher": dataclasses.asdict(self.refresher),
            "memory": self.memory,
            "origin": self._origin(),
            "carried": self.carried,
            "carries": self.carries,
        }
        for group in ("packs", "inputs"):
            entries = []
            for k, pack in enumerate(getattr(self, group)):
                own = pack.rows.arrays()
                arrays.update({f"{group}{k}_{name}": array for name, array in own.items()})
                if pack.literal is not None:
                    arrays[f"{group}{k}_literal"] = pack.literal
                sizes = [pack.stride, pack.batch, pack.width, pack.columns, pack.weight]
                entries.append([pack.operand, *sizes, pack.rows.kind, list(own)])
            meta[group] = entries
        for group in ("outputs", "taps"):
            entries = []
            for k, tap in enumerate(getattr(self, group)):
                if tap is None:
                    entries.append(None)
                    continue
                arrays[f"{group}{k}_cipher"] = tap.cipher
                arrays[f"{group}{k}_column"] = tap.column
                entries.append([tap.op, tap.shape, tap.batch_axis, tap.gain, tap.batch, tap.width])
            meta[group] = entries
        arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
        with contextlib.ExitStack() as held:
            named = isinstance(path, str | Path)
            np.savez(held.enter_context(replacing(path)) if named else path, **arrays)

    def _origin(self) -> Mapping[str, Any] | None:
        return self.origin if self.publics is None else self.publics.origin()

    @classmethod
    def load(cls, path: str | Path | BinaryIO) -> Circuit:
        """Reads what `save` wrote; ParameterError if it is something else or damaged."""
        with reading(path, "Circuit"), np.load(path, allow_pickle=False) as data:
            meta = json.loads(data["meta"].tobytes().decode())
            if meta.get("format", 1) > _FORMAT:
                raise ParameterError("a later version wrote it: update to read it")
            groups: dict[str, Any] = {}
            for group in ("packs", "inputs"):
                groups[group] = tuple(
                    PlaintextFamily(
                        operand=entry[0],
                        rows=_rows(data, f"{group}{k}", entry),
                        stride=entry[1],
                        batch=entry[2],
                        width=entry[3],
                        columns=entry[4],
                        weight=entry[5],
                        literal=data.get(f"{group}{k}_literal"),
                    )
                    for k, entry in enumerate(meta[group])
                )
            for group in ("outputs", "taps"):
                groups[group] = tuple(
                    None
                    if entry is None
                    else TensorLocation(
                        op=entry[0],
                        shape=tuple(entry[1]),
                        batch_axis=entry[2],
                        cipher=data[f"{group}{k}_cipher"],
                        column=data[f"{group}{k}_column"],
                        gain=entry[3],
                        batch=entry[4],
                        width=entry[5],
                    )
                    for k, entry in enumerate(meta[group])
                )
            return cls(
                params=CKKSParams(**meta["params"]),
                slots=meta["slots"],
                operand_count=meta["operand_count"],
                op_names=tuple(meta["op_names"]),
                op_sources=tuple(meta["op_sources"]),
                input_labels=tuple(meta["input_labels"]),
                refresher=Refresher(**meta.get("refresher", dataclasses.asdict(KEY_HOLDER))),
                memory=meta.get("memory"),
                origin=meta.get("origin"),
                carried=tuple((c, i) for c, i in meta.get("carried", ())),
                carries=tuple((a, r) for a, r in meta.get("carries", ())),
                ledger=_ledger(meta["ledger"]),
                **{name: data[name] for name in _ARRAYS},
                **groups,
            )


def _rows(data: Mapping[str, np.ndarray], name: str, entry: list[Any]) -> plain_rows.Rows:
    if len(entry) < 7:  # format 1
        return plain_rows.rows_of(data[name])
    kind, own = entry[6:]
    return plain_rows.from_arrays(kind, {array: data[f"{name}_{array}"] for array in own})


def _ledger(entry: dict[str, Any]) -> Ledger:
    operations = tuple(Spending(**op) for op in entry["operations"])
    return Ledger(**{**entry, "operations": operations})
