"""`calibrate`: the ranges that a Program's values really take, and whether a modulus holds them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import tree_util
from jaxtyping import PyTree

from hesim.display import html_block, html_table, shown_as_text, text_table
from hesim.domains import inside, not_finite, public_polynomials
from hesim.errors import (
    ArgumentError,
    ConstantValuesWarning,
    ParameterError,
    ValueOverflowError,
    reading,
)
from hesim.files import replacing
from hesim.noise.placement import canonical
from hesim.params import larger_capacity
from hesim.program import Equation, Literal, Program, Var, is_key, need_program, widened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hesim.circuit.circuit import Circuit
    from hesim.params import CKKSParams

__all__ = ["Calibration", "LevelOverflow", "Observed", "ValueOverflowError", "calibrate"]

_SAMPLE = 4096
"""Elements of a tensor, at most, that enter its quantiles from each batch."""


@dataclass(frozen=True)
class Observed:
    """What the values of one operation's result (or of one encrypted input) were.

    Attributes:
      name, source: of the operation; the argument's label for an input.
      low, high: smallest and largest value.
      rms: root mean square.
      q99: 99 % quantile of absolute values.
      excess: mean of |value| - q99 where it is positive: the scale of an exponential tail.
      domain: hull of a polynomial's domain, None for other operations.
      met: range of what a polynomial was fed, None for others.
      outside: part of what it was fed that lies outside its domain: beyond an end, or in a gap.
      intervals: the domain in ascending order where it is a union of several.
    """

    name: str
    source: str
    low: float
    high: float
    rms: float
    q99: float
    excess: float
    domain: tuple[float, float] | None = None
    met: tuple[float, float] | None = None
    outside: float = 0.0
    intervals: tuple[tuple[float, float], ...] = ()

    @property
    def largest(self) -> float:
        """Largest absolute value."""
        return max(abs(self.low), abs(self.high))

    def tail(self, bound: float) -> float:
        """Probability that an element exceeds ``bound`` in absolute value, by an exponential tail
        above the 99 % quantile; 1 if a larger one was met.
        """
        if self.largest > bound:
            return 1.0
        if self.excess <= 0.0:
            return 0.0
        return min(1.0, 0.01 * math.exp(-min((bound - self.q99) / self.excess, 700.0)))


@dataclass(frozen=True)
class LevelOverflow:
    """How near the contents of ciphertexts at one level come to the modulus.

    Attributes:
      level: of the ciphertexts.
      capacity: largest slot value that cannot wrap there, Q / (2·scale).
      largest: largest slot value met, of the operation named by `name` and `source`.
      probability: that an element of that operation exceeds the capacity.
    """

    level: int
    capacity: float
    largest: float
    probability: float
    name: str
    source: str

    @property
    def spare_bits(self) -> float:
        """log2 of the capacity over the largest value; negative where values wrap."""
        return math.log2(self.capacity / self.largest) if self.largest else math.inf


@dataclass(frozen=True)
class Calibration:
    """Ranges and magnitudes of a Program on calibration data.

    Attributes:
      program_name: of the Program.
      batches: how many were seen.
      inputs: one per encrypted argument leaf.
      ops: one per ``program.ops``.
      outputs: one per encrypted leaf of the result, by its key if the function returns it in a
        dictionary.
      publics: one per polynomial that is fed public values, in program order.
      program: the Program itself; None after ``load``, which leaves it out.

    Examples:
      >>> import approx, hesim, numpy as np
      >>> exp = approx.fit("exp", (-1, 1), degree=3)
      >>> program = hesim.trace(lambda x: exp(x), np.zeros(2))
      >>> ranges = hesim.calibrate(program, [(np.array([-0.5, 0.5]),)])
      >>> ranges.domains(margin=0.5), ranges.batches
      (((-1.0, 1.0),), 1)
    """

    program_name: str
    batches: int
    inputs: tuple[Observed, ...]
    ops: tuple[Observed, ...]
    outputs: tuple[Observed, ...] = ()
    program: Program | None = field(default=None, repr=False, compare=False)
    publics: tuple[Observed, ...] = ()

    @property
    def polynomials(self) -> tuple[Observed, ...]:
        """The operations with a domain, those on public values left out."""
        return tuple(op for op in self.ops if op.domain is not None)

    def domains(self, margin: float = 0.1) -> tuple[tuple[float, float], ...]:
        """A domain for each polynomial: the range met, wider by this part of its width each side.

        A range of no width is widened by the part of its size, with a ConstantValuesWarning.
        """
        found = []
        for op in self.polynomials:
            assert op.met is not None
            low, high = op.met
            if low == high:
                warnings.warn(
                    f"`{op.name}` at {op.source or 'an unknown place'} met {low:.4g} only, so its "
                    f"domain holds little else: calibrate on values of later steps, too",
                    ConstantValuesWarning,
                    stacklevel=2,
                )
            wider = margin * ((high - low) or max(abs(low), 1e-6))
            found.append((low - wider, high + wider))
        return tuple(found)

    def targets(
        self, units: Mapping[str, float] | None = None, margin: float = 0.0
    ) -> dict[str, tuple[float, float]]:
        """Ranges met of the values that the function returns in a dictionary, by their keys: what
        `models.objectives.losses.range_penalty` is to hold them to. ``Model.forward_with_values``
        returns the values at its polynomials so.

        units: factor of each, ``Model.units()`` there; 1 for keys that are not in it. margin: wider
        by this part of their width each side.

        Raises:
          ArgumentError: the function returns no encrypted value in a dictionary, or one twice.
        """
        named = [out for out in self.outputs if not out.name.startswith("result")]
        keys = {out.name for out in named}
        if not named or len(keys) < len(named):
            raise ArgumentError(
                "calibrate a function that returns the values to be penalised in one dictionary, "
                f"each under a key of its own; {self.program_name} returns "
                f"{', '.join(out.name for out in self.outputs) or 'nothing encrypted'}"
            )
        found = {}
        for out in named:
            unit = 1.0 if units is None else units.get(out.name, 1.0)
            low, high = sorted((unit * out.low, unit * out.high))
            wider = margin * (high - low)
            found[out.name] = (low - wider, high + wider)
        return found

    def overflow(
        self, params: CKKSParams, circuit: Circuit | None = None
    ) -> tuple[LevelOverflow, ...]:
        """For each level that results end at, the contents nearest to the modulus, low levels last.

        Args:
          params: ring, primes and scales.
          circuit: gives the levels, and the gain of each tensor (its slots hold value / gain);
            the canonical schedule of the Program does otherwise.

        Raises:
          ArgumentError: neither a circuit nor the Program is there (after ``load``), or the circuit
            is of another program.
        """
        worst: dict[int, LevelOverflow] = {}
        for observed, level, gain in self._placed(params, circuit):
            contents = dataclasses.replace(
                observed,
                low=observed.low / gain,
                high=observed.high / gain,
                q99=observed.q99 / gain,
                excess=observed.excess / gain,
            )
            capacity = params.capacity(level)
            entry = LevelOverflow(
                level,
                capacity,
                contents.largest,
                contents.tail(capacity),
                observed.name,
                observed.source,
            )
            kept = worst.get(level)
            order = (entry.probability, entry.largest)
            if kept is None or order > (kept.probability, kept.largest):
                worst[level] = entry
        return tuple(worst[level] for level in sorted(worst, reverse=True))

    def largest(self, program: Program) -> dict[int, float]:
        """Largest absolute value of each operation's result, by its number, and of encrypted inputs
        together under -1.

        Raises:
          ArgumentError: it is of another program.
        """
        if tuple(op.name for op in self.ops) != tuple(op.name for op in program.ops):
            raise ArgumentError(
                f"the calibration is of {self.program_name} with other operations than those of "
                f"{program.name}: hesim.calibrate(program, batches) of this program"
            )
        found = {k: op.largest for k, op in enumerate(self.ops)}
        return {-1: max((op.largest for op in self.inputs), default=0.0), **found}

    def check(self, params: CKKSParams, circuit: Circuit | None = None) -> None:
        """Raises ValueOverflowError if values met in calibration wrap around; see ``overflow``."""
        for entry in self.overflow(params, circuit):
            if entry.largest > entry.capacity:
                scale = params.scale(entry.level)
                raise ValueOverflowError(
                    f"`{entry.name}` at {entry.source or 'an unknown place'} holds "
                    f"{entry.largest:.4g} in a slot at level {entry.level}, whose modulus wraps "
                    f"above {entry.capacity:.4g}: "
                    f"{larger_capacity(params, -entry.spare_bits, entry.level, scale)}"
                )

    def _placed(
        self, params: CKKSParams, circuit: Circuit | None
    ) -> Iterable[tuple[Observed, int, float]]:
        """(values, level, gain) of each result that has ciphertexts of its own."""
        if circuit is not None:
            if circuit.op_names != tuple(op.name for op in self.ops) or circuit.params != params:
                raise ParameterError("the circuit is of another program, or of other parameters")
            for tap in circuit.taps:
                if tap.op >= 0 and len(tap.ciphers):
                    level = int(circuit.level[tap.ciphers].min())
                    yield self.ops[tap.op], level, abs(tap.gain)
            return
        if self.program is None:
            raise ArgumentError("a loaded Calibration carries no program: pass a circuit")
        for observed in self.inputs:
            yield observed, params.levels, 1.0
        schedule = canonical(self.program, params)
        for observed, equation in zip(self.ops, self.program.ops, strict=True):
            place = schedule[equation.index]
            yield observed, place.level, place.gain

    def table(self) -> str:
        """Text: ranges, and what polynomials were fed against their domains."""
        return f"{self._title()}\n{text_table(self._rows())}"

    def _title(self) -> str:
        batches = f"{self.batches} batch{'' if self.batches == 1 else 'es'}"
        return f"{self.program_name}: {batches}, {len(self.ops)} operations"

    def _rows(self) -> list[tuple[str, ...]]:
        head = ("operation", "low", "high", "rms", "domain", "met", "outside", "source")
        rows: list[tuple[str, ...]] = [head]
        for op in (*self.inputs, *self.publics, *self.ops):
            rows.append(
                (
                    f"{op.name} (public)" if op in self.publics else op.name,
                    *(f"{x:.4g}" for x in (op.low, op.high, op.rms)),
                    " | ".join(map(_interval, op.intervals)) or _interval(op.domain),
                    _interval(op.met),
                    f"{op.outside:.2%}" if op.domain else "",
                    op.source,
                )
            )
        return rows

    __str__ = table

    _repr_pretty_ = shown_as_text

    def _repr_html_(self) -> str:
        return html_block(self._title(), inner=html_table(self._rows()))

    def plot(self, path: str | Path | None = None) -> Figure:
        """Ranges met (bars) against polynomial domains (brackets); saved if a path is given."""
        from approx.choice.figures import Figure

        found = (*self.publics, *self.polynomials)
        figure = Figure(figsize=(8, 1.2 + 0.35 * max(len(found), 1)), layout="constrained")
        axes = figure.add_subplot()
        for k, op in enumerate(found):
            assert op.met is not None and op.domain is not None
            low, high = op.domain
            half = 0.5 * (high - low)
            met = [(x - low) / half - 1.0 for x in op.met]
            color = "tab:red" if op.outside else "tab:blue"
            for piece in op.intervals or (op.domain,):
                ends = [(x - low) / half - 1.0 for x in piece]
                axes.plot(ends, [k, k], color="0.8", lw=9, solid_capstyle="butt", zorder=1)
            axes.plot(met, [k, k], color=color, lw=4, solid_capstyle="butt", zorder=2)
        labels = [f"{op.name} {op.source.rsplit('/', 1)[-1]}".strip() for op in found]
        axes.set_yticks(range(len(found)), labels)
        axes.invert_yaxis()
        axes.set_xlabel("position in the domain: -1 and 1 are its ends; red leaves it")
        axes.set_title(f"ranges met against ranges assumed, {self.program_name}")
        if path is not None:
            figure.savefig(path)
        return figure

    def to_json(self) -> str:
        """Everything but the Program."""
        keep = ("program_name", "batches", "inputs", "ops", "outputs", "publics")
        data = {
            name: [dataclasses.asdict(x) for x in value] if isinstance(value, tuple) else value
            for name, value in ((name, getattr(self, name)) for name in keep)
        }
        return json.dumps(data, indent=1)

    @classmethod
    def from_json(cls, text: str, program: Program | None = None) -> Calibration:
        """Reads what ``to_json`` wrote; give the Program to have levels without a circuit."""
        data = json.loads(text)
        for group in ("inputs", "ops", "outputs", "publics"):
            data[group] = tuple(_observed(entry) for entry in data.get(group, ()))
        return cls(**data, program=program)

    def save(self, path: str | Path) -> None:
        """Writes ``to_json``, whole or not at all."""
        with replacing(path) as file:
            file.write(self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path, program: Program | None = None) -> Calibration:
        """Reads what ``save`` wrote; ParameterError if it is damaged, or of another program."""
        with reading(path, "Calibration"):
            found = cls.from_json(Path(path).read_text(), program)
        if program and [op.name for op in found.ops] != [e.name for e in program.ops]:
            raise ParameterError(f"{path} is of other operations than {program.name}: calibrate it")
        return found


def calibrate(program: Program, batches: Iterable[Sequence[PyTree]]) -> Calibration:
    """Evaluates a Program in float64 on every batch and keeps the ranges of all operations.

    Args:
      program: from ``hesim.trace``.
      batches: arguments of the traced function, one sequence per batch, at least one.

    Raises:
      ParameterError: there is no batch, or a value is NaN or infinite (the operation is named).
      TraceError: not a Program, or arguments of another structure or shape.

    Examples:
      >>> import approx, hesim, numpy as np
      >>> exp = approx.fit("exp", (-1, 1), degree=3)
      >>> program = hesim.trace(lambda x: exp(x), np.zeros(4))
      >>> ranges = hesim.calibrate(program, [(np.array([-0.5, 0.0, 0.5, 2.0]),)])
      >>> ranges.polynomials[0].met, ranges.polynomials[0].outside
      ((-0.5, 2.0), 0.25)
    """
    need_program(program, "calibrate")
    secret = [(v, s) for v, s in zip(program.inputs, program.labels, strict=True) if v.encrypted]
    inputs = [_Statistics(label, "") for _, label in secret]
    results = [
        (k, _Statistics(name, ""))
        for k, (name, v) in enumerate(zip(_result_names(program), program.outputs, strict=True))
        if v.encrypted
    ]
    ops = [_Statistics(e.name, str(e.source) if e.source else "") for e in program.ops]
    public = {
        e.index: _Statistics(e.name, str(e.source) if e.source else "")
        for e in program.equations
        if e.name == "polynomial" and not e.encrypted
    }
    place = {e.index: k for k, e in enumerate(program.ops)}
    fed = {e.inputs[0].id for e in program.ops if _is_polynomial(e)}  # type: ignore[union-attr]
    count = 0
    for args in batches:
        count += 1
        flat = widened(program.flatten(args), program.inputs)
        known: dict[int, Any] = {v.id: x for v, x in zip(program.inputs, flat) if v.id in fed}

        def hook(equation: Equation, out: list[Any], known: dict[int, Any] = known) -> list[Any]:
            statistics = ops[place[equation.index]]
            if _is_polynomial(equation):
                operand = equation.inputs[0]
                assert isinstance(operand, Var)
                statistics.feed(equation, known[operand.id])
            statistics.add(out)
            known.update({v.id: x for v, x in zip(equation.outputs, out) if v.id in fed})
            return out

        with _blaming(program, flat, count - 1, ops):
            given = {var.id: value for var, value in zip(program.inputs, flat, strict=True)}
            for (var, _), statistics in zip(secret, inputs, strict=True):
                statistics.add([given[var.id]])
            for equation, values in public_polynomials(program, flat):
                public[equation.index].feed(equation, values)
                public[equation.index].add([values])
            with jax.enable_x64(True):
                found = program.evaluate(flat, hook, wide=True)
            for k, statistics in results:
                statistics.add([found[k]])
    if not count:
        raise ParameterError("calibrate needs at least one batch of arguments")
    return Calibration(
        program.name,
        count,
        tuple(s.observed() for s in inputs),
        tuple(s.observed() for s in ops),
        tuple(s.observed() for _, s in results),
        program,
        tuple(s.observed() for s in public.values()),
    )


class _NotFiniteError(ParameterError):
    """A value that is no number; `_blaming` says where it comes from."""


@contextlib.contextmanager
def _blaming(
    program: Program, flat: Sequence[Any], batch: int, ops: Sequence[_Statistics]
) -> Iterator[None]:
    """ParameterError that says where a value comes from that is not finite: arguments that are not,
    the first polynomial that met values outside of its domain, or the largest argument.
    """
    try:
        yield
    except _NotFiniteError as error:
        strange = not_finite(program.labels, flat)
        left = next((s for s in ops if s.outside), None)
        if strange:
            cause = f"such values are in {', '.join(strange)}"
        elif left is not None:
            where = f" at {left.source}" if left.source else ""
            cause = (
                f"`{left.name}`{where} met {_interval(left.met)} outside of its domain "
                f"{_interval(left.domain)}"
            )
        else:
            cause = f"all arguments are finite{_largest(program.labels, flat)}"
        raise ParameterError(f"{error} in batch {batch} of the calibration data: {cause}") from None


def _largest(labels: Sequence[str], flat: Sequence[Any]) -> str:
    """The argument with the largest value, in words; nothing without numbers."""
    sizes = {
        label: float(np.max(np.abs(np.asarray(leaf, np.float64)), initial=0.0))
        for label, leaf in zip(labels, flat, strict=True)
        if not is_key(leaf)
    }
    worst = max(sizes, key=sizes.__getitem__, default=None)
    return "" if worst is None else f", {worst} reaches {sizes[worst]:.4g}"


def _result_names(program: Program) -> list[str]:
    """Of each result leaf: its key in the dictionary that holds it, or its place in the result."""
    leaves = [object()] * program.out_tree.num_leaves
    paths, _ = tree_util.tree_flatten_with_path(tree_util.tree_unflatten(program.out_tree, leaves))
    return [
        str(path[-1].key)
        if path and isinstance(path[-1], tree_util.DictKey)
        else "result" + tree_util.keystr(path)
        for path, _ in paths
    ]


def _is_polynomial(equation: Equation) -> bool:
    return equation.name == "polynomial" and not isinstance(equation.inputs[0], Literal)


class _Statistics:
    """Running statistics of one tensor over batches."""

    def __init__(self, name: str, source: str):
        self.name, self.source = name, source
        self.low, self.high = math.inf, -math.inf
        self.squares, self.size = 0.0, 0
        self.sample: list[np.ndarray] = []
        self.domain: tuple[float, float] | None = None
        self.met = (math.inf, -math.inf)
        self.intervals: tuple[tuple[float, float], ...] = ()
        self.outside, self.fed = 0, 0

    def add(self, arrays: Sequence[Any]) -> None:
        for array in arrays:
            values = np.asarray(array, np.float64).reshape(-1)
            if not np.all(np.isfinite(values)):
                where = f" at {self.source}" if self.source else ""
                raise _NotFiniteError(f"`{self.name}`{where} is NaN or infinite")
            if not values.size:
                continue
            self.low = min(self.low, float(values.min()))
            self.high = max(self.high, float(values.max()))
            with np.errstate(over="ignore"):
                self.squares += float(np.dot(values, values))
            self.size += values.size
            self.sample.append(np.abs(values[:: -(-values.size // _SAMPLE) | 1]))

    def feed(self, equation: Equation, array: Any) -> None:
        values = np.asarray(array, np.float64)
        poly = equation.params["poly"]
        self.domain = (float(poly.hull[0]), float(poly.hull[1]))
        if len(poly.intervals) > 1:
            self.intervals = tuple((float(low), float(high)) for low, high in poly.intervals)
        self.met = (
            min(self.met[0], float(values.min(initial=math.inf))),
            max(self.met[1], float(values.max(initial=-math.inf))),
        )
        self.outside += int(np.sum(~inside(equation, values)))
        self.fed += values.size

    def observed(self) -> Observed:
        sample = np.concatenate(self.sample) if self.sample else np.zeros(1)
        q99 = float(np.quantile(sample, 0.99))
        above = sample[sample > q99]
        return Observed(
            name=self.name,
            source=self.source,
            low=self.low if self.size else 0.0,
            high=self.high if self.size else 0.0,
            rms=math.sqrt(self.squares / self.size) if self.size else 0.0,
            q99=q99,
            excess=float(np.mean(above - q99)) if above.size else 0.0,
            domain=self.domain,
            met=self.met if self.domain else None,
            outside=self.outside / self.fed if self.fed else 0.0,
            intervals=self.intervals,
        )


def _observed(entry: dict[str, Any]) -> Observed:
    pairs = {k: tuple(entry[k]) if entry[k] is not None else None for k in ("domain", "met")}
    intervals = tuple((low, high) for low, high in entry.get("intervals", ()))
    return Observed(**{**entry, **pairs, "intervals": intervals})


def _interval(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"[{bounds[0]:.4g}, {bounds[1]:.4g}]"
