"""Circuits whose noise is measured: single instructions at the top level, compiled operations."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

import approx
import hesim
from hesim.circuit.circuit import Circuit, Kind, PlaintextFamily, TensorLocation
from hesim.circuit.emission import Emitted, arrays
from hesim.circuit.ledger import ledger
from hesim.circuit.refresher import KEY_HOLDER
from hesim.params import CKKSParams

__all__ = ["DISTRIBUTIONS", "NAMES", "Case", "build", "values"]

DISTRIBUTIONS = ("uniform", "normal", "sparse", "constant", "heavy-tailed")
"""Of the values: uniform on [-1, 1]; normal; normal in one slot of 16, else zero; 0.7 everywhere;
Student's t with 2.5 degrees of freedom, cut at 100."""

_SQUARINGS = 10
_DEGREES = (7, 31, 63)


@dataclass(frozen=True)
class Case:
    """A Circuit with one tap a row of the table.

    Attributes:
      name: of the case. circuit: its taps are the rows, its operation names theirs.
      inputs: encrypted leaves. operands: public ones. All float64.
    """

    name: str
    circuit: Circuit
    inputs: list[np.ndarray]
    operands: list[np.ndarray]

    @property
    def rows(self) -> tuple[str, ...]:
        return self.circuit.op_names

    @property
    def ciphers(self) -> list[int]:
        """Ciphertexts that the rows read, each once, ascending."""
        return sorted({int(c) for tap in self.circuit.taps for c in tap.ciphers})


def values(distribution: str, slots: int, seed: int) -> np.ndarray:
    """float64[slots] of one of `DISTRIBUTIONS`."""
    rng = np.random.default_rng(seed)
    if distribution == "uniform":
        return rng.uniform(-1.0, 1.0, slots)
    if distribution == "normal":
        return rng.standard_normal(slots)
    if distribution == "sparse":
        return rng.standard_normal(slots) * (rng.random(slots) < 1 / 16)
    if distribution == "constant":
        return np.full(slots, 0.7)
    if distribution == "heavy-tailed":
        return np.clip(rng.standard_t(2.5, slots), -100.0, 100.0)
    raise ValueError(f"values are {', '.join(DISTRIBUTIONS)}, not {distribution!r}")


def build(params: CKKSParams, distribution: str, only: tuple[str, ...] = ()) -> list[Case]:
    """All cases, or those of the names `only`, on values of one distribution."""
    return [_MAKERS[name](params, distribution) for name in (only or NAMES)]


def _instructions(params: CKKSParams, distribution: str) -> Case:
    """Every kind of instruction at the top level, each on fresh ciphertexts or on products."""
    slots, top = params.slots, params.levels
    x, y, w = (values(distribution, slots, seed) for seed in (1, 2, 3))
    write = _Writer(params, inputs=2, operands=1)
    a, b = write.input(0), write.input(1)
    write.row("encrypt", a)
    write.row("add", write.add(a, b))
    write.row("add public", write.plain(Kind.ADD_PLAIN, a))
    public = write.plain(Kind.DOT_PLAIN, a)
    write.row("multiply public", public)
    write.row("multiply public, rescale", write.rescale(public))
    for name, second in (("multiply", b), ("square", a)):
        product = write.multiply(a, second)
        write.row(name, product)
        product = write.relinearize(product)
        if name == "multiply":
            write.row("relinearize", product)
        write.row("rescale" if name == "multiply" else "square, rescale", write.rescale(product))
    for step in (1, 3, 64, slots - 1):
        write.row(f"rotate {step if step < slots // 2 else step - slots}", write.rotate(a, step))
    write.row("level drop", write.lowered(a, max(0, top - 3)))
    return write.case("instructions", [x, y], [w])


def _squarings(params: CKKSParams, distribution: str) -> Case:
    """Ten squarings of values from exp(-1/1000) to 1, so that powers stay in [exp(-1), 1]."""
    size = np.abs(values(distribution, params.slots, 4))
    x = np.exp(-1e-3 * size / size.max())
    write = _Writer(params, inputs=1, operands=0)
    power = write.input(0)
    for _ in range(min(_SQUARINGS, params.levels)):
        power = write.rescale(write.relinearize(write.multiply(power, power)))
    write.row(f"{min(_SQUARINGS, params.levels)} squarings", power)
    return write.case("squarings", [x], [])


def _polynomial(degree: int) -> Any:
    def make(params: CKKSParams, distribution: str) -> Case:
        poly = approx.fit("gelu", (-4.0, 4.0), degree=degree)
        x = values(distribution, params.slots, 5)
        x = 4.0 * x / np.abs(x).max()
        name = f"polynomial {degree}"
        return _compiled(name, poly, params, (x,), (0,), refresh_price=math.inf)

    return make


def _public_matmul(params: CKKSParams, distribution: str) -> Case:
    x = values(distribution, params.slots, 6).reshape(-1, 16)
    w = values(distribution, 256, 7).reshape(16, 16)
    return _compiled("public matmul", lambda x, w: x @ w, params, (x, w), (0,))


def _encrypted_matmul(params: CKKSParams, distribution: str) -> Case:
    q, k = (values(distribution, params.slots, s).reshape(-1, 8, 8) for s in (8, 9))
    return _compiled(
        "encrypted matmul",
        lambda q, k: jnp.einsum("bij,bkj->bik", q, k),
        params,
        (q, k),
        (0, 1),
    )


def _sum(params: CKKSParams, distribution: str) -> Case:
    x = values(distribution, params.slots, 10).reshape(-1, 64)
    return _compiled("sum", lambda x: x.sum(1), params, (x,), (0,))


def _compiled(
    name: str,
    fn: Any,
    params: CKKSParams,
    args: tuple[np.ndarray, "..."],
    encrypted: tuple[int, ...],
    **options: Any,
) -> Case:
    program = hesim.trace(fn, *args, encrypted=encrypted)
    circuit = hesim.compile(program, params, **options)
    operands = circuit.publics.evaluate(program.flatten(args))
    (output,) = (tap for tap in circuit.outputs if tap is not None)
    circuit = dataclasses.replace(
        circuit,
        taps=(dataclasses.replace(output, op=0),),
        op_names=(name,),
        op_sources=("",),
        source=np.minimum(circuit.source, 0),
    )
    return Case(name, circuit, [args[i] for i in encrypted], operands)


_MAKERS = {
    "instructions": _instructions,
    "squarings": _squarings,
    **{f"polynomial {d}": _polynomial(d) for d in _DEGREES},
    "public matmul": _public_matmul,
    "encrypted matmul": _encrypted_matmul,
    "sum": _sum,
}
NAMES = tuple(_MAKERS)
"""Of the cases."""


class _Writer:
    """Writes instructions one by one, at the highest level that their operands allow.

    `inputs` encrypted vectors of all slots, and `operands` public ones.
    """

    def __init__(self, params: CKKSParams, inputs: int, operands: int) -> None:
        self.params = params
        self.out = Emitted(params, 1)
        every = np.arange(params.slots, dtype=np.int32)[None, :]

        def pack(number: int) -> PlaintextFamily:
            return PlaintextFamily(number, every, 0, 1, 1, params.slots)

        one = PlaintextFamily(
            -1, np.zeros((1, 1), np.int32), 0, 1, 1, params.slots, literal=np.ones(1)
        )
        self.inputs = tuple(pack(i) for i in range(inputs))
        self.packs = (one, *(pack(i) for i in range(operands)))
        self.rows: dict[str, int] = {}

    def row(self, name: str, cipher: int) -> None:
        """A row of the table: this ciphertext."""
        self.rows[name] = cipher

    def input(self, row: int) -> int:
        top = self.params.levels
        return self.out.push(Kind.INPUT, top, self.params.scale(top), [], row, 0)

    def add(self, a: int, b: int) -> int:
        return self._push(Kind.ADD, self.out.level[a], self.out.scale[a], [(1, a, -1), (1, b, -1)])

    def plain(self, kind: int, a: int) -> int:
        """a plus or times the first operand."""
        level, scale = self.out.level[a], self.out.scale[a]
        result = scale * scale if kind == Kind.DOT_PLAIN else scale
        return self._push(kind, level, result, [(1, a, self.out.plain(1, 0, level, scale))])

    def multiply(self, a: int, b: int) -> int:
        scale = self.out.scale[a] * self.out.scale[b]
        return self._push(Kind.DOT, self.out.level[a], scale, [(1, a, b)])

    def relinearize(self, a: int) -> int:
        return self._push(Kind.RELINEARIZE, self.out.level[a], self.out.scale[a], [(1, a, -1)])

    def rescale(self, a: int) -> int:
        level = self.out.level[a]
        scale = self.out.scale[a] / self.params.primes[level]
        return self._push(Kind.RESCALE, level - 1, scale, [(1, a, -1)])

    def rotate(self, a: int, step: int) -> int:
        return self._push(Kind.ROTATE, self.out.level[a], self.out.scale[a], [(1, a, -1)], step)

    def lowered(self, a: int, level: int) -> int:
        """a at the canonical scale of a lower level: a drop and a product by 1."""
        scale, above = self.out.scale[a], level + 1
        dropped = self._push(Kind.DROP, above, scale, [(1, a, -1)], above)
        correcting = self.params.scale(level) * self.params.primes[above] / scale
        one = self.out.plain(0, 0, above, correcting)
        product = self._push(Kind.DOT_PLAIN, above, scale * correcting, [(1, dropped, one)])
        return self.rescale(product)

    def _push(self, kind: int, level: int, scale: float, terms: list, param: int = 0) -> int:
        return self.out.push(kind, level, scale, terms, param, 0)

    def case(self, name: str, inputs: list[np.ndarray], operands: list[np.ndarray]) -> Case:
        slots = self.params.slots
        every = np.arange(slots, dtype=np.int32)
        taps = tuple(
            TensorLocation(k, (slots,), -1, np.full(slots, c, np.int32), every, 1.0, 1, 1)
            for k, c in enumerate(self.rows.values())
        )
        data = arrays(self.out)
        names, sources = tuple(self.rows), ("",) * len(taps)
        circuit = Circuit(
            params=self.params,
            slots=slots,
            packs=self.packs,
            inputs=self.inputs,
            operand_count=len(operands),
            op_names=names,
            op_sources=sources,
            outputs=(),
            taps=taps,
            input_labels=tuple(f"input {i}" for i in range(len(inputs))),
            ledger=ledger(self.params, data, self.packs, len(taps), None, names, sources),
            refresher=KEY_HOLDER,
            memory=None,
            carried=(),
            carries=(),
            origin=None,
            **data,
        )
        return Case(name, circuit, inputs, operands)
