"""`suggest`: the cheapest CKKS parameters that carry a Program at a requested precision."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import tree_util

from hesim.circuit.compile import Candidate, planned
from hesim.circuit.cost import KEY_RUNS, key_seconds
from hesim.display import html_block, html_table, shown_as_text, text_table
from hesim.errors import LayoutError, LevelError, ParameterError, ValueOverflowWarning
from hesim.noise.placement import of_circuit
from hesim.noise.profiles import NoiseProfile
from hesim.params import SEAL_LIMITS, SECURITY_LIMITS, CKKSParams, largest_levels
from hesim.predict import predict
from hesim.program import Program, need_program

if TYPE_CHECKING:
    from jaxtyping import PyTree

__all__ = ["Alternative", "Suggestion", "suggest"]

_MARGIN_BITS = 0.1
"""Predictions are random; a scale is raised if a candidate misses by more than this."""

_RUNAWAY_BITS = 8.0
"""By how much the scale is raised where a candidate's values wrap around."""

_MOST_BITS = 60
"""Bits of SEAL's largest primes."""


@dataclass(frozen=True)
class Alternative:
    """One set of parameters that was tried.

    Attributes:
      params: ring, primes and scale.
      bits: predicted precision of the outputs, -log2 of their root mean square error; NaN if it was
        not compiled, or if values wrap around the modulus under some key.
      seconds: predicted for one core. refreshes, rounds: ciphertexts refreshed, and round trips.
      key_bytes: of all evaluation keys.
      lacks: why it does not do, empty if it does.
    """

    params: CKKSParams
    bits: float
    seconds: float
    refreshes: int
    rounds: int
    key_bytes: int
    lacks: str = ""

    @property
    def fits(self) -> bool:
        return not self.lacks

    @property
    def priced_seconds(self) -> float:
        """Seconds of a run, with a share of those in which its keys are made."""
        keys = self.key_bytes / self.params.key_bytes()
        return self.seconds + keys * key_seconds(self.params) / KEY_RUNS


@dataclass(frozen=True)
class Suggestion:
    """Parameters for a Program.

    Attributes:
      params: the cheapest that do.
      bits: predicted precision of the outputs, in bits.
      seconds: predicted for one core, in seconds.
      refreshes: refreshed ciphertexts.
      key_bytes: bytes of all evaluation keys.
      reasons: why these, sentence by sentence.
      alternatives: everything that was tried, cheapest first, the chosen one among them.

    Examples:
      >>> import hesim, numpy as np
      >>> program = hesim.trace(lambda x: x * x, np.zeros(8))
      >>> found = hesim.suggest(program, bits=10, rings=(12,), keys=1)
      >>> found.params in [a.params for a in found.alternatives], len(found.reasons) > 1
      (True, True)
    """

    params: CKKSParams
    bits: float
    seconds: float
    refreshes: int
    key_bytes: int
    reasons: tuple[str, ...]
    alternatives: tuple[Alternative, ...]

    def table(self) -> str:
        """The alternatives as text, the chosen one marked with `*`.

        QP is log2 of all primes together, beside what the tables of 2024 and 2018 allow there.
        """
        return text_table(self._rows())

    def _rows(self) -> list[tuple[str, ...]]:
        head = ("", "N", "levels", "scale", "first", "special", "QP", "2024", "2018")
        more = ("bits", "seconds", "refreshes", "rounds", "keys", "")
        rows: list[tuple[str, ...]] = [(*head, *more)]
        for a in self.alternatives:
            p = a.params
            rows.append(
                (
                    "*" if p == self.params and a.fits else "",
                    f"2^{p.log_n}",
                    str(p.levels),
                    str(p.scale_bits),
                    str(p.first_bits),
                    str(p.special_bits),
                    f"{p.log_qp:.0f}",
                    *_limits(p),
                    f"{a.bits:.1f}" if math.isfinite(a.bits) else "-",
                    f"{a.seconds:.2f}" if math.isfinite(a.seconds) else "-",
                    str(a.refreshes),
                    str(a.rounds),
                    _bytes(a.key_bytes),
                    a.lacks,
                )
            )
        return rows

    def __str__(self) -> str:
        return "\n".join([str(self.params), *self.reasons, "", self.table()])

    _repr_pretty_ = shown_as_text

    def _repr_html_(self) -> str:
        return html_block(str(self.params), *self.reasons, inner=html_table(self._rows()))


def suggest(
    program: Program,
    *,
    bits: float,
    slots: int = 1,
    memory: float | None = None,
    security: int = 128,
    args: Sequence[PyTree] | None = None,
    headroom: int = 10,
    rings: Sequence[int] = (12, 13, 14, 15),
    refresh_price: float | str | None = None,
    interactive: bool = True,
    profile: str | NoiseProfile = "seal",
    keys: int = 2,
) -> Suggestion:
    """Searches rings, chain lengths and scales; each candidate is compiled and its noise predicted.

    The cheapest has the fewest seconds of a run and of a tenth of the making of its keys.

    Args:
      program: from ``hesim.trace``.
      bits: precision wanted of the outputs, -log2 of their root mean square (absolute) error.
      slots: least number of slots of a ciphertext.
      memory: most bytes of evaluation keys, None for any.
      security: 128, 192 or 256 bits (the 2024 table, special prime counted).
      args: arguments of the traced function that stand for real data, as pytrees; without them
        floats are uniform in [-1, 1] and whole numbers 0.
      headroom: bits of `first_bits` above the scale, for values up to 2^(headroom - 1).
      rings: log2 of the ring degrees to try; SEAL stops at 15 unless its own check is off.
      refresh_price, interactive: as for ``hesim.compile``; without the key holder's part nothing is
        refreshed.
      profile, keys: as for ``hesim.predict``.

    Raises:
      ParameterError: nothing fits; the message says what comes nearest and what to change. Or an
        argument is out of bounds, or nothing is encrypted. TraceError: not a Program.

    Examples:
      >>> import hesim, numpy as np
      >>> program = hesim.trace(lambda x: x * x, np.zeros(8))
      >>> found = hesim.suggest(program, bits=10, rings=(12,), keys=1)
      >>> found.params.log_n, found.bits >= 9.9, found.refreshes
      (12, True, 0)
    """
    need_program(program, "suggest")
    if not any(v.encrypted for v in program.inputs):
        raise ParameterError(
            f"{program.name} has no encrypted input, so any parameters do: name the encrypted "
            "arguments in hesim.trace(..., encrypted=...)"
        )
    numbers: dict[str, tuple[Any, type]] = {
        "bits": (bits, Real),
        "slots": (slots, Integral),
        "headroom": (headroom, Integral),
        "keys": (keys, Integral),
    }
    if memory is not None:
        numbers["memory"] = (memory, Real)
    for name, (value, kind) in numbers.items():
        if isinstance(value, bool) or not isinstance(value, kind):
            wanted = "a number" if kind is Real else "a whole number"
            raise ParameterError(f"{name}={value!r} must be {wanted}")
    if not (math.isfinite(bits) and bits > 0):
        raise ParameterError(f"bits={bits} must be a positive number of bits")
    if slots < 1:
        raise ParameterError(f"slots={slots} must be at least 1")
    if memory is not None and not memory > 0:
        raise ParameterError(f"memory={memory} must be a positive number of bytes, or None")
    if not rings or not all(isinstance(n, int) and 4 <= n <= 17 for n in rings):
        raise ParameterError(
            f"rings={rings!r} must be binary logarithms of ring degrees, from 4 to 17"
        )
    if security not in SECURITY_LIMITS:
        raise ParameterError(f"security={security!r} must be 128, 192 or 256")
    if not 2 <= headroom <= 30:
        raise ParameterError(f"headroom={headroom} must be from 2 to 30 bits")
    sample = _sample(program) if args is None else args
    price = refresh_price if interactive else math.inf
    trial = _Trial(program, sample, bits, memory, price, profile, keys)
    found: list[Alternative] = []
    for log_n in rings:
        if 1 << (log_n - 1) >= slots:
            for levels in _lengths(program, log_n, bits, headroom, security):
                found += trial.set_exact_scale(log_n, levels, headroom, security)
    found.sort(key=lambda a: (a.priced_seconds, a.key_bytes, a.params.scale_bits))
    fitting = [a for a in found if a.fits]
    if not fitting:
        raise ParameterError(_nothing(found, bits, slots, memory, security, rings))
    best = fitting[0]
    return Suggestion(
        best.params,
        best.bits,
        best.seconds,
        best.refreshes,
        best.key_bytes,
        tuple(_reasons(best, found, bits, security)),
        tuple(found),
    )


class _Trial:
    """Compiles and predicts candidates for one Program."""

    def __init__(
        self,
        program: Program,
        args: Sequence[Any],
        bits: float,
        memory: float | None,
        refresh_price: float | str | None,
        profile: str | NoiseProfile,
        keys: int,
    ):
        self.program, self.args, self.bits, self.memory = program, args, bits, memory
        self.refresh_price, self.profile, self.keys = refresh_price, profile, keys
        self.lost: float | None = None
        self._plan: Candidate | None = None

    def _guess(self, log_n: int) -> int:
        """A scale by what the last candidate lost; noise grows by at most a bit with the ring."""
        if self.lost is None:
            return _first_scale(self.bits, log_n)
        return max(math.ceil(self.bits + log_n + self.lost - _MARGIN_BITS), log_n + 6)

    def set_exact_scale(
        self, log_n: int, levels: int, headroom: int, security: int
    ) -> Iterator[Alternative]:
        """Candidates of this ring and length: a first guess of the scale, then the one it implies,
        since precision grows bit for bit with the scale.
        """
        most = _MOST_BITS - headroom
        scale = min(self._guess(log_n), most)
        entry: Alternative | None = None
        for last in (False, True):
            sizes = _sizes(scale, headroom)
            if sizes is None or largest_levels(log_n, *sizes, security) < levels:
                if entry is not None:
                    yield entry  # what it lacks says more than nothing at all
                return
            entry = self._try(CKKSParams(log_n, levels, *sizes, security))
            missing = self.bits - entry.bits
            if math.isnan(entry.bits) and math.isfinite(entry.seconds):
                missing = _RUNAWAY_BITS  # nobody knows how much, only that it was far too coarse
            if math.isfinite(missing):
                self.lost = scale - (self.bits - missing) - log_n
            # Half a bit is a coefficient modulus smaller by `levels / 2` bits: worth a second look.
            wanted = scale + math.ceil(missing) if math.isfinite(missing) else scale
            wanted = min(max(wanted, log_n + 6), most)
            done = wanted == scale or (-1.0 < missing <= _MARGIN_BITS)
            if done or last or entry.fits:
                yield entry
            if done or last:
                return
            scale = wanted

    def _try(self, params: CKKSParams) -> Alternative:
        try:
            if self._plan is None or not self._plan.fits(params):
                self._plan = None  # two at a time would be twice the memory
                self._plan = planned(self.program, params, refresh_price=self.refresh_price)
            circuit = self._plan.circuit(params)
        except (LevelError, LayoutError) as error:
            return Alternative(params, math.nan, math.inf, 0, 0, 0, str(error).split(";")[0])
        ledger = circuit.ledger
        entry = Alternative(
            params,
            self._bits(params, circuit),
            ledger.seconds,
            ledger.refreshes,
            ledger.refresh_rounds,
            ledger.key_bytes,
        )
        if self.memory is not None and ledger.key_bytes > self.memory:
            return replace(entry, lacks=f"keys exceed {_bytes(self.memory)}")
        if math.isnan(entry.bits):
            return replace(entry, lacks="values run away under the noise, beyond the modulus")
        if entry.bits < self.bits - _MARGIN_BITS:
            return replace(entry, lacks=f"below {self.bits:g} bits")
        return entry

    def _bits(self, params: CKKSParams, circuit: Any) -> float:
        schedule = of_circuit(self.program, circuit, self.profile)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ValueOverflowWarning)  # said of the alternative
            prediction = predict(
                self.program,
                params,
                self.args,
                self.keys,
                self.profile,
                schedule=schedule,
                jit=False,
                walk=False,
            )
        leaves = (tree_util.tree_leaves(tree) for tree in (prediction.outputs, prediction.exact))
        found, exact = ([np.asarray(x) for x in side] for side in leaves)
        if not all(np.all(np.isfinite(x)) for x in exact if np.issubdtype(x.dtype, np.inexact)):
            raise ParameterError(
                "without any noise, the function gives numbers that are not finite for these "
                "arguments: pass args=(...) that stand for real data"
            )
        if prediction.overflows:
            return math.nan
        errors = [np.ravel(a - b) for a, b in zip(found, exact, strict=True)]
        secret = [
            e for e, v in zip(errors, self.program.outputs, strict=True) if v.encrypted and e.size
        ]
        error = float(np.sqrt(np.mean(np.square(np.concatenate(secret))))) if secret else 0.0
        return -math.log2(error) if error else math.inf


def _first_scale(bits: float, log_n: int) -> int:
    """A fresh encryption loses about log2(N) - 2.6 bits; a computation a few more."""
    return max(math.ceil(bits + log_n - 2.6 + 3.0), log_n + 6)


def _sizes(scale: int, headroom: int) -> tuple[int, int, int] | None:
    """Sizes of the scale, the first and the special prime, ten bits apart where 60 bits allow."""
    first = scale + headroom
    return None if first > _MOST_BITS else (scale, first, min(_MOST_BITS, first + 10))


def _lengths(
    program: Program, log_n: int, bits: float, headroom: int, security: int
) -> tuple[int, ...]:
    """Chain lengths worth a try: all that the computation can use, half of it, and a short one."""
    sizes = _sizes(min(_first_scale(bits, log_n), _MOST_BITS - headroom), headroom)
    if sizes is None:
        return ()
    most = min(largest_levels(log_n, *sizes, security), max(program.levels, 1) + 3)
    exact = min(most, max(program.levels, 1))
    return tuple(sorted({n for n in (most, exact, most // 2, 2) if 1 <= n <= most}))


def _sample(program: Program) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    leaves = [
        rng.uniform(-1.0, 1.0, v.shape)
        if jnp.issubdtype(v.dtype, jnp.floating)
        else (
            jax.random.key(0)
            if jnp.issubdtype(v.dtype, jax.dtypes.extended)
            else np.zeros(v.shape, v.dtype)
        )
        for v in program.inputs
    ]
    return tree_util.tree_unflatten(program.in_tree, leaves)


def _reasons(
    best: Alternative, found: Sequence[Alternative], bits: float, security: int
) -> Iterator[str]:
    p = best.params
    yield (
        f"A scale of 2^{p.scale_bits} gives {best.bits:.1f} bits where {bits:g} are asked for; "
        f"a smaller one would lose a bit for every bit."
    )
    yield (
        f"{p.levels} levels with first and special primes of {p.first_bits} and {p.special_bits} "
        f"bits make {p.log_qp:.0f} of the {SECURITY_LIMITS[security][p.log_n]} bits that "
        f"N = 2^{p.log_n} allows at {security}-bit security."
    )
    older = _older(p)
    if older:
        yield older
    yield (
        f"{best.refreshes} ciphertexts are refreshed in {best.rounds} rounds."
        if best.refreshes
        else "Nothing is refreshed."
    )
    for a in found:
        if a.fits and a.params != p and a.refreshes < best.refreshes:
            yield (
                f"N = 2^{a.params.log_n} with {a.params.levels} levels needs {a.refreshes} "
                f"refreshes only, at {a.seconds / best.seconds:.1f} times the seconds."
            )
            break
    smaller = [a for a in found if a.params.log_n < p.log_n]
    if smaller and not any(a.fits for a in smaller):
        nearest = max(smaller, key=lambda a: a.bits if math.isfinite(a.bits) else -math.inf)
        yield f"Smaller rings do not do: N = 2^{nearest.params.log_n}: {nearest.lacks}."
    elif smaller:
        yield "Smaller rings do, but are predicted to take longer."


def _older(p: CKKSParams) -> str:
    """What the 2018 table would have said otherwise; at 192 and 256 bits both tables agree."""
    older = SEAL_LIMITS.get(p.log_n)
    if p.security != 128 or older is None:
        return ""
    newer = SECURITY_LIMITS[128][p.log_n]
    # A scale's worth of bits is a level; what the 2024 table leaves unused counts too.
    more = int((older - p.log_qp) // p.scale_bits) - int((newer - p.log_qp) // p.scale_bits)
    levels = (
        f"which would carry {more} {'level' if more == 1 else 'levels'} more"
        if more
        else "which carries no level more"
    )
    ring = next((n for n in sorted(SEAL_LIMITS) if p.log_qp <= SEAL_LIMITS[n]), p.log_n)
    text = f"The 2018 table, which SEAL checks, allows {older} bits there, {levels}"
    if ring < p.log_n and p.log_qp > SECURITY_LIMITS[128][ring]:
        text += f", and it accepts this chain at N = 2^{ring} already; the 2024 one does not"
    return text + "."


def _nothing(
    found: Sequence[Alternative],
    bits: float,
    slots: int,
    memory: float | None,
    security: int,
    rings: Sequence[int],
) -> str:
    asked = f"no parameters with N up to 2^{max(rings, default=0)} give {bits:g} bits"
    if slots > 1 << (max(rings, default=0) - 1):
        return f"{asked}: {slots} slots need rings=({(slots - 1).bit_length() + 1},) or larger"
    if not found:
        return (
            f"{asked} at {security}-bit security: no chain with one level fits; ask for fewer bits "
            f"or less headroom, or allow larger rings"
        )
    precise = [a for a in found if a.bits >= bits - _MARGIN_BITS]
    if precise and memory is not None:
        least = min(precise, key=lambda a: a.key_bytes)
        return (
            f"{asked} with keys within {_bytes(memory)}: the least is {_bytes(least.key_bytes)} "
            f"(N = 2^{least.params.log_n}, {least.params.levels} levels); raise memory to that"
        )
    reached = [a for a in found if math.isfinite(a.bits)]
    if reached:
        best = max(reached, key=lambda a: a.bits)
        return (
            f"{asked}: the most is {best.bits:.1f} (N = 2^{best.params.log_n}, "
            f"scale 2^{best.params.scale_bits}); ask for fewer bits, less headroom, or larger rings"
        )
    return f"{asked}: {found[0].lacks}; allow refreshes (refresh_price) or larger rings"


def _limits(p: CKKSParams) -> tuple[str, str]:
    """What the 2024 and the 2018 table allow, in bits; only at 128 bits do they differ."""
    limits = SECURITY_LIMITS.get(p.security or 0, {})
    older = SEAL_LIMITS if p.security == 128 else limits
    return str(limits.get(p.log_n, "-")), str(older.get(p.log_n, "-"))


def _bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
