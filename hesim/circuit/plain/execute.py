"""Runs instructions of a Circuit on a machine. Imports no JAX.

A failing instruction raises its error with the name and source line of the Program operation that
it belongs to. What is executed is counted as it happens, so that a run can be held against the
Circuit's ledger.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hesim.circuit.circuit import Circuit, Kind
from hesim.circuit.plain.encoded import EncodedPlaintexts
from hesim.circuit.plain.errors import BackendError
from hesim.circuit.plain.machine import Bootstrapper, Evaluator
from hesim.circuit.scalar_groups import numbers, scalar_groups

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "Executor",
    "Spent",
    "instruction_counts",
    "with_source",
    "rows_of",
    "scalar_groups",
]


@dataclass
class Spent:
    """Operations and seconds of a run so far.

    Attributes:
      counts: operations by the ledger's names.
      seconds: CPU seconds by Program operation, -1 for inputs.
      encoded: plaintext vectors that were encoded on the way.
    """

    counts: Counter[str] = field(default_factory=Counter)
    seconds: Counter[int] = field(default_factory=Counter)
    encoded: int = 0

    def add(self, other: Spent) -> None:
        self.encoded += other.encoded
        self.counts.update(other.counts)
        for op, seconds in other.seconds.items():
            self.seconds[op] += seconds  # type: ignore[assignment]

    def to_message(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "encoded": self.encoded,
            "counts": dict(self.counts),
            "seconds": {str(op): seconds for op, seconds in self.seconds.items()},
        }

    @classmethod
    def from_message(cls, message: dict) -> Spent:
        seconds = {int(op): float(s) for op, s in message["seconds"].items()}
        encoded = int(message.get("encoded", 0))
        return cls(Counter(message["counts"]), Counter(seconds), encoded)  # type: ignore[arg-type]


class Executor:
    """Executes the server's instructions of one Circuit.

    Args:
      circuit: the instructions.
      machine: where they run.
      operands: public operands, float64 arrays, in the Circuit's order.
      plain_bytes: memory for encoded plaintexts that are used again; default: a quarter of what is
        free.
      repeated: whether the whole Circuit is run more than once: then plaintexts that have room stay
        encoded.
    """

    def __init__(
        self,
        circuit: Circuit,
        machine: Evaluator,
        operands: Sequence[Float[np.ndarray, "..."]],
        plain_bytes: int | None = None,
        *,
        repeated: bool = False,
    ):
        self.circuit = circuit
        self.machine = machine
        self.operands = operands
        self._encoded = EncodedPlaintexts(circuit, plain_bytes, repeated=repeated)
        # An operation that shares the cores takes the seconds of all of its threads.
        shared = getattr(machine, "threads", False)
        self._clock = time.process_time if shared else time.thread_time

    def run(
        self,
        instructions: Iterable[int],
        ciphers: MutableMapping[int, Any],
        keep: Callable[[int], bool] | None = None,
    ) -> Spent:
        """Execute `instructions`, in order, on `ciphers`, which must hold their operands.

        Args:
          instructions: instruction numbers, ascending; none that the key holder serves.
          ciphers: ciphertexts by number; results are added.
          keep: what to keep in `ciphers` beyond its last use here, operands made before included;
            default all.

        Returns:
          What was spent.
        """
        order = [int(i) for i in instructions]
        groups = scalar_groups(self.circuit, order)
        last = self._last_uses(order) if keep is not None else {}
        spent, before = Spent(), self._encoded.encoded
        done: set[int] = set()
        for i in order:
            started = self._clock()
            try:
                if i in groups:
                    group = groups[i]
                    if i == group[0]:
                        ciphers.update(self._dot_scalars(group, ciphers))
                else:
                    ciphers[i] = self._one(i, ciphers)
            except BackendError as error:
                raise with_source(error, self.circuit, i) from error
            except (RuntimeError, ValueError) as error:
                told = BackendError(f"{type(error).__name__}: {error}")
                raise with_source(told, self.circuit, i) from error
            spent.seconds[int(self.circuit.source[i])] += self._clock() - started  # type: ignore[assignment]
            spent.counts.update(self.counts(i))
            done.add(i)
            if keep is not None:
                for used in last.get(i, ()):
                    if not keep(used):
                        ciphers.pop(used, None)
        spent.encoded = self._encoded.encoded - before
        return spent

    def encode_ahead(
        self,
        instructions: Iterable[int],
        limit: int,
        stop: Callable[[], bool],
        *,
        stay: bool = False,
        without: Collection[int] = (),
    ) -> int:
        """Encode plaintexts of `instructions` before they run, the first ones first: up to `limit`
        bytes, or until `stop`, which is asked before each.

        stay: keep them for every later run, instead of until their first use.
        without: public operands whose plaintexts are left out.

        Returns:
          How many were encoded.
        """
        before, circuit = self._encoded.encoded, self.circuit
        kinds = (Kind.DOT_PLAIN, Kind.ADD_PLAIN)
        left = np.array([family.operand in without for family in circuit.packs], dtype=bool)
        parts = (circuit.args(i) for i in instructions if circuit.kind[i] in kinds)
        places: Iterable[int] = (place for part in parts for place in range(part.start, part.stop))
        if left.any():
            places = (p for p in places if not left[circuit.plain_pack[circuit.arg2[p]]])
        self._encoded.encode_ahead(places, limit, self._encode, stop, stay=stay)
        return self._encoded.encoded - before

    def replace_operands(self, operands: Sequence[Float[np.ndarray, "..."]]) -> None:
        """Go on with other values of the public operands, of the same shapes; what was encoded of
        those that are not the same objects is forgotten.
        """
        pairs = zip(operands, self.operands, strict=True)
        changed = np.array([new is not old for new, old in pairs] + [False])  # -1 is a literal
        self.operands = operands
        families = np.array([changed[family.operand] for family in self.circuit.packs], dtype=bool)
        if families.any():
            self._encoded.forget(families[self.circuit.plain_pack])

    def counts(self, i: int) -> dict[str, int]:
        """What instruction i spends, by the ledger's names."""
        return instruction_counts(self.circuit, i)

    # One rule a kind

    def _one(self, i: int, ciphers: MutableMapping[int, Any]) -> Any:
        rule = _RULES.get(int(self.circuit.kind[i]))
        if rule is None or self.circuit.of_key_holder[i]:
            raise BackendError("inputs and refreshes belong to the client")
        result = rule(self, i, ciphers)
        return self.machine.set_exact_scale(
            result, int(self.circuit.level[i]), float(self.circuit.scale[i])
        )

    def _add(self, i: int, ciphers: MutableMapping[int, Any]) -> Any:
        part = self.circuit.args(i)
        terms = [ciphers[int(a)] for a in self.circuit.arg[part]]
        return self.machine.add(terms, [int(f) for f in self.circuit.factor[part]])

    def _dot(self, i: int, ciphers: MutableMapping[int, Any]) -> Any:
        part = self.circuit.args(i)
        left = [ciphers[int(a)] for a in self.circuit.arg[part]]
        right = [ciphers[int(a)] for a in self.circuit.arg2[part]]
        return self.machine.dot(left, right, [int(f) for f in self.circuit.factor[part]])

    def _dot_plain(self, i: int, ciphers: MutableMapping[int, Any]) -> Any:
        part = self.circuit.args(i)
        terms = [ciphers[int(a)] for a in self.circuit.arg[part]]
        plains = (self._plain(k) for k in range(part.start, part.stop))
        return self.machine.dot_plain(terms, plains)

    def _add_plain(self, i: int, ciphers: MutableMapping[int, Any]) -> Any:
        part = self.circuit.args(i)
        plain = self._plain(part.start)
        return self.machine.add_plain(self._only(i, ciphers), plain)

    def _rotate(self, i: int, ciphers: MutableMapping[int, Any]) -> Any:
        return self.machine.rotate(self._only(i, ciphers), int(self.circuit.param[i]))

    def _relinearize(self, i: int, ciphers: MutableMapping[int, Any]) -> Any:
        return self.machine.relinearize(self._only(i, ciphers))

    def _rescale(self, i: int, ciphers: MutableMapping[int, Any]) -> Any:
        return self.machine.rescale(self._only(i, ciphers))

    def _drop(self, i: int, ciphers: MutableMapping[int, Any]) -> Any:
        return self.machine.drop(self._only(i, ciphers), int(self.circuit.level[i]))

    def _refresh(self, i: int, ciphers: MutableMapping[int, Any]) -> Any:
        if not isinstance(self.machine, Bootstrapper):
            raise BackendError(f"{self.machine.name} does not bootstrap")
        return self.machine.bootstrap(self._only(i, ciphers), int(self.circuit.level[i]))

    def _only(self, i: int, ciphers: MutableMapping[int, Any]) -> Any:
        return ciphers[self.circuit.operands(i)[0]]

    # Plaintexts

    def _plain(self, place: int) -> Any:
        return self._encoded.get(place, lambda: self._encode(int(self.circuit.arg2[place])))

    def _encode(self, plaintext: int) -> Any:
        family = self.circuit.packs[int(self.circuit.plain_pack[plaintext])]
        return self.machine.encode(
            family.vector(int(self.circuit.plain_row[plaintext]), self.operands),
            int(self.circuit.plain_level[plaintext]),
            float(self.circuit.plain_scale[plaintext]),
        )

    # Matrix products by scalars

    def _dot_scalars(self, group: list[int], ciphers: MutableMapping[int, Any]) -> dict[int, Any]:
        circuit = self.circuit
        parts = [circuit.args(i) for i in group]
        terms = [ciphers[int(a)] for a in circuit.arg[parts[0]]]
        rows = numbers(circuit, group, self.operands)
        scale = float(circuit.plain_scale[circuit.arg2[parts[0]][0]])
        results = self.machine.dot_scalars(terms, rows, scale)
        return {
            i: self.machine.set_exact_scale(result, int(circuit.level[i]), float(circuit.scale[i]))
            for i, result in zip(group, results, strict=True)
        }

    # Bookkeeping

    def _last_uses(self, order: Sequence[int]) -> dict[int, list[int]]:
        last: dict[int, int] = {}
        for i in order:
            last[i] = i
            for used in self.circuit.operands(i):
                last[used] = i
        uses: dict[int, list[int]] = {}
        for used, i in last.items():
            uses.setdefault(i, []).append(used)
        return uses


_RULES: dict[int, Callable[[Executor, int, MutableMapping[int, Any]], Any]] = {
    Kind.ADD: Executor._add,
    Kind.DOT: Executor._dot,
    Kind.DOT_PLAIN: Executor._dot_plain,
    Kind.ADD_PLAIN: Executor._add_plain,
    Kind.ROTATE: Executor._rotate,
    Kind.RELINEARIZE: Executor._relinearize,
    Kind.RESCALE: Executor._rescale,
    Kind.DROP: Executor._drop,
    Kind.REFRESH: Executor._refresh,
}


def with_source(error: BackendError, circuit: Circuit, i: int) -> BackendError:
    """The error with the operation and source line of instruction i, and the rows of its slots."""
    if error.slots and not error.rows:
        error.rows = rows_of(circuit, error.slots)
    op = int(circuit.source[i])
    if op < 0:
        return error.at("input", "")
    return error.at(circuit.op_names[op], circuit.op_sources[op])


def rows_of(circuit: Circuit, slots: Sequence[int]) -> tuple[int, ...]:
    """Members of the batch that lie in these slots, ascending; none where tensors have no batch."""
    taps = (tap for tap in (*circuit.outputs, *circuit.taps) if tap is not None)
    for tap in taps:
        if tap.batch_axis >= 0:
            members = np.unique(np.asarray(slots) % tap.width)
            return tuple(members[members < tap.batch].tolist())
    return ()


def instruction_counts(circuit: Circuit, i: int) -> dict[str, int]:
    """What instruction i spends, by the ledger's names."""
    part = circuit.args(i)
    terms = part.stop - part.start
    kind = int(circuit.kind[i])
    if kind == Kind.ADD:
        return {"additions": terms - 1}
    if kind == Kind.DOT:
        return {"products": terms, "additions": terms - 1}
    if kind == Kind.DOT_PLAIN:
        return {"plain_products": terms, "additions": terms - 1}
    return {_SINGLE[kind]: 1}


_SINGLE = {
    Kind.INPUT: "inputs",
    Kind.ADD_PLAIN: "plain_additions",
    Kind.ROTATE: "rotations",
    Kind.RELINEARIZE: "relinearizations",
    Kind.RESCALE: "rescales",
    Kind.DROP: "drops",
    Kind.REFRESH: "refreshes",
}
