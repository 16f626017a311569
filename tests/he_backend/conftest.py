"""A pencil for hand-made Circuits, and small rings to run them on."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest

from he_backend.machines.openfhe.remote import RemoteMachine
from he_backend.machines.pyfhel.machine import PyfhelMachine
from he_backend.machines.slots import SlotsMachine
from hesim.circuit.circuit import Circuit, Kind, PlaintextFamily, TensorLocation
from hesim.circuit.costs.spending import Ledger
from hesim.params import CKKSParams

LEDGER = {
    Kind.INPUT: "inputs",
    Kind.ADD_PLAIN: "plain_additions",
    Kind.ROTATE: "rotations",
    Kind.RELINEARIZE: "relinearizations",
    Kind.RESCALE: "rescales",
    Kind.DROP: "drops",
    Kind.REFRESH: "refreshes",
}


class Draft:
    """Writes a Circuit instruction by instruction, with levels and exact scales."""

    def __init__(self, params: CKKSParams, slots: int):
        self.params, self.slots = params, slots
        self.rows: list[tuple] = []
        self.terms: list[list[tuple[int, int, int]]] = []
        self.plains: list[tuple[int, int, float]] = []
        self.packs: list[PlaintextFamily] = []
        self.inputs: list[PlaintextFamily] = []
        self.input_values: list[np.ndarray] = []
        self.operands: list[np.ndarray] = []
        self.counts: Counter[str] = Counter()
        self.names = ["first", "second"]
        self.op = 0

    def _put(self, kind, level, scale, terms=(), param=0, source=None) -> int:
        self.rows.append((kind, level, scale, param, self.op if source is None else source))
        self.terms.append(
            [(t[0], t[1] if len(t) > 1 else -1, t[2] if len(t) > 2 else 1) for t in terms]
        )
        if kind in LEDGER:
            self.counts[LEDGER[kind]] += 1
        return len(self.rows) - 1

    def level(self, c: int) -> int:
        return self.rows[c][1]

    def scale(self, c: int) -> float:
        return self.rows[c][2]

    def _vector_pack(self, operand: int) -> PlaintextFamily:
        index = np.arange(self.slots, dtype=np.int32)[None]
        return PlaintextFamily(operand, index, 0, 1, 1, self.slots)

    def input(self, values: np.ndarray, level: int | None = None) -> int:
        level = self.params.levels if level is None else level
        self.inputs.append(self._vector_pack(len(self.input_values)))
        self.input_values.append(np.asarray(values, np.float64))
        return self._put(
            Kind.INPUT, level, self.params.scale(level), param=len(self.inputs) - 1, source=-1
        )

    def plain(self, values: np.ndarray | float, level: int, scale: float) -> int:
        """A vector becomes a public operand, a number a literal scalar."""
        if np.ndim(values):
            self.packs.append(self._vector_pack(len(self.operands)))
            self.operands.append(np.asarray(values, np.float64))
        else:
            index = np.zeros((1, 1), np.int32)
            self.packs.append(
                PlaintextFamily(-1, index, 0, 1, 1, self.slots, literal=np.array([values]))
            )
        self.plains.append((len(self.packs) - 1, level, scale))
        return len(self.plains) - 1

    def add(self, *terms: tuple[int, int]) -> int:
        """Terms (factor, ciphertext)."""
        self.counts["additions"] += len(terms) - 1
        c = terms[0][1]
        return self._put(Kind.ADD, self.level(c), self.scale(c), [(c, -1, f) for f, c in terms])

    def dot(self, *terms: tuple[int, int, int]) -> int:
        """Terms (factor, left, right)."""
        self.counts["products"] += len(terms)
        self.counts["additions"] += len(terms) - 1
        _, a, b = terms[0]
        scale = self.scale(a) * self.scale(b)
        return self._put(Kind.DOT, self.level(a), scale, [(a, b, f) for f, a, b in terms])

    def dot_plain(self, *terms: tuple[int, np.ndarray | float]) -> int:
        """Terms (ciphertext, values)."""
        self.counts["plain_products"] += len(terms)
        self.counts["additions"] += len(terms) - 1
        c = terms[0][0]
        level = self.level(c)
        at = self.params.scale(level)
        plains = [(a, self.plain(values, level, at)) for a, values in terms]
        return self._put(Kind.DOT_PLAIN, level, self.scale(c) * at, plains)

    def add_plain(self, c: int, values: np.ndarray | float) -> int:
        plain = self.plain(values, self.level(c), self.scale(c))
        return self._put(Kind.ADD_PLAIN, self.level(c), self.scale(c), [(c, plain)])

    def rotate(self, c: int, step: int) -> int:
        return self._put(Kind.ROTATE, self.level(c), self.scale(c), [(c,)], step)

    def relinearize(self, c: int) -> int:
        return self._put(Kind.RELINEARIZE, self.level(c), self.scale(c), [(c,)])

    def rescale(self, c: int) -> int:
        level = self.level(c)
        return self._put(Kind.RESCALE, level - 1, self.scale(c) / self.params.primes[level], [(c,)])

    def drop(self, c: int, level: int) -> int:
        return self._put(Kind.DROP, level, self.scale(c), [(c,)], level)

    def refresh(self, c: int, level: int) -> int:
        return self._put(Kind.REFRESH, level, self.params.scale(level), [(c,)], level)

    def circuit(self, *outputs: int) -> Circuit:
        taps = tuple(
            TensorLocation(
                op=max(self.rows[c][4], 0),
                shape=(self.slots,),
                batch_axis=-1,
                cipher=np.full(self.slots, c, np.int32),
                column=np.arange(self.slots, dtype=np.int32),
                gain=1.0,
                batch=1,
                width=1,
            )
            for c in outputs
        )
        flat = [t for terms in self.terms for t in terms]
        counts: dict[str, Any] = {name: self.counts[name] for name in LEDGER.values()}
        counts |= {n: self.counts[n] for n in ("additions", "plain_products", "products")}
        ledger = Ledger(
            depth=self.params.levels,
            refresh_rounds=int(counts["refreshes"] > 0),
            outputs=len(outputs),
            rotation_keys=len({r[3] for r in self.rows if r[0] == Kind.ROTATE}),
            key_bytes=0,
            plaintexts=len(self.plains),
            seconds=0.0,
            seconds_bootstrapped=0.0,
            operations=(),
            **counts,
        )
        kind, level, scale, param, source = zip(*self.rows, strict=True)
        return Circuit(
            params=self.params,
            slots=self.slots,
            kind=np.array(kind, np.uint8),
            level=np.array(level, np.int16),
            scale=np.array(scale, np.float64),
            arg_ptr=np.cumsum([0, *map(len, self.terms)]).astype(np.int64),
            arg=np.array([t[0] for t in flat], np.int32),
            arg2=np.array([t[1] for t in flat], np.int32),
            factor=np.array([t[2] for t in flat], np.int8),
            param=np.array(param, np.int32),
            source=np.array(source, np.int32),
            plain_pack=np.array([p[0] for p in self.plains], np.int32),
            plain_row=np.zeros(len(self.plains), np.int32),
            plain_level=np.array([p[1] for p in self.plains], np.int16),
            plain_scale=np.array([p[2] for p in self.plains], np.float64),
            packs=tuple(self.packs),
            inputs=tuple(self.inputs),
            operand_count=len(self.operands),
            op_names=tuple(self.names),
            op_sources=("model.py:10 (first)", "model.py:20 (second)"),
            outputs=taps,
            taps=(),
            input_labels=tuple(f"args[{k}]" for k in range(len(self.inputs))),
            ledger=ledger,
        )


def quiet_params(log_n: int = 11, levels: int = 3) -> CKKSParams:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CKKSParams(log_n, levels, 40, 50, 60, security=None)


@pytest.fixture(scope="session")
def params() -> CKKSParams:
    return quiet_params()


@pytest.fixture
def draft(request, params) -> Draft:
    """For the machine that a test runs on, if it runs on one."""
    own = "machine" in request.fixturenames
    return Draft(request.getfixturevalue("machine").params if own else params, 32)


@pytest.fixture(scope="session")
def new_draft():
    return Draft


@pytest.fixture(scope="session")
def pyfhel(params) -> PyfhelMachine:
    """A machine with all keys; steps 1, 2 and 5."""
    return PyfhelMachine.generate(params, [1, 2, 5], 32)


@pytest.fixture(scope="session")
def digit_params() -> CKKSParams:
    """As `params`, with keys that are switched in digits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CKKSParams(11, 3, 40, 50, 60, security=None, digits=2)


@pytest.fixture(scope="session")
def openfhe(digit_params, needs_openfhe) -> RemoteMachine:
    """A machine with all keys, in a process of its own; steps 1, 2 and 5."""
    return RemoteMachine.generate(digit_params, [1, 2, 5], 32)


@pytest.fixture(params=["slots", "pyfhel", "openfhe"])
def machine(request, params):
    if request.param == "slots":
        return SlotsMachine(params, 32, [1, 2, 5])
    return request.getfixturevalue(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def branches() -> int:
    """Of `work`; a folder of tests may want fewer."""
    return 12


@pytest.fixture
def work(draft, rng, branches):
    """A Circuit with refreshes and many small tasks; inputs, operands, outputs, values.

    Its branches visit the key holder in the middle, and each ends in an output.
    """
    x, y = rng.uniform(-1, 1, (2, draft.slots))
    w = rng.uniform(-1, 1, draft.slots)
    a, b = draft.input(x), draft.input(y)
    outputs, values = [], []
    for k in range(branches):
        draft.op = k % 2
        c = draft.rescale(draft.relinearize(draft.dot((1, a, b), (1, b, b))))
        c = draft.rotate(draft.rescale(draft.dot_plain((c, w))), 1 + k % 2)
        d = draft.refresh(c, 1)
        outputs.append(draft.rescale(draft.dot_plain((d, 0.5 + k))))
        values.append((0.5 + k) * np.roll((x * y + y * y) * w, -(1 + k % 2)))
    return draft.circuit(*outputs), [x, y], draft.operands, outputs, values


@pytest.fixture
def broad(draft, rng):
    """Eight chains that wait for the key holder twice each, and for nothing else."""
    x = draft.input(rng.uniform(-1, 1, draft.slots))
    ends = []
    for k in range(8):
        c = draft.rotate(x, 1 + k)
        for _ in range(2):
            c = draft.rescale(draft.relinearize(draft.dot((1, c, c))))
            c = draft.refresh(c, 3)
        ends.append(draft.rotate(c, 1))
    return draft.circuit(*ends), ends
