"""Emission: from stages at known levels to the instructions of a Circuit, at exact scales."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hesim.circuit.builder import Builder, Stage
from hesim.circuit.circuit import Kind
from hesim.circuit.nodes import Terms
from hesim.circuit.shape import held_to_scale
from hesim.params import CKKSParams

if TYPE_CHECKING:
    from hesim.circuit.levels import Schedule

__all__ = ["Emitted", "PlainNumbers", "arrays", "emit"]


class PlainNumbers:
    """Numbers plaintexts in the order in which they are first asked for; 22 bytes each.

    A plaintext is (pack, row, level, scale): which vector, and how it is encoded.
    """

    def __init__(self) -> None:
        self._pack, self._row = array("i"), array("i")
        self._level, self._scale = array("h"), array("d")
        # By row, for one pack in one encoding; -1 where it is not asked for.
        self._known: dict[tuple[int, int, float], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._pack)

    def one(self, pack: int, row: int, level: int, scale: float) -> int:
        """The number of a plaintext."""
        known = self._rows((pack, level, scale), row)
        if known[row] < 0:
            known[row] = len(self)
            self._pack.append(pack)
            self._row.append(row)
            self._level.append(level)
            self._scale.append(scale)
        return int(known[row])

    def many(self, pack: np.ndarray, row: np.ndarray, level: int, scale: np.ndarray) -> np.ndarray:
        """int32 (plaintexts,): numbers of several at one level; the others have one entry each."""
        if not len(row):
            return np.zeros(0, np.int32)
        if np.any(pack != pack[0]) or np.any(scale != scale[0]):
            each = zip(pack.tolist(), row.tolist(), scale.tolist(), strict=True)
            return np.array([self.one(p, r, level, s) for p, r, s in each], np.int32)
        known = self._rows((int(pack[0]), level, float(scale[0])), int(row.max()))
        fresh = row[known[row] < 0]
        if len(fresh):
            distinct, place = np.unique(fresh, return_index=True)
            fresh = fresh[np.sort(place)] if len(distinct) < len(fresh) else fresh
            known[fresh] = np.arange(len(self), len(self) + len(fresh))
            self._pack.extend([int(pack[0])] * len(fresh))
            self._row.extend(fresh.tolist())
            self._level.extend([level] * len(fresh))
            self._scale.extend([float(scale[0])] * len(fresh))
        return known[row]

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of a Circuit that say what its plaintexts are; none is numbered after that."""
        return {
            "plain_pack": np.asarray(self._pack, np.int32),
            "plain_row": np.asarray(self._row, np.int32),
            "plain_level": np.asarray(self._level, np.int16),
            "plain_scale": np.asarray(self._scale, np.float64),
        }

    def _rows(self, key: tuple[int, int, float], row: int) -> np.ndarray:
        known = self._known.get(key)
        held = 0 if known is None else len(known)
        if known is None or row >= held:
            longer = np.full(max(row + 1, 2 * held), -1, np.int32)
            if known is not None:
                longer[:held] = known
            known = self._known[key] = longer
        return known


class Emitted:
    """Instruction arrays under construction, and where each node ended up."""

    def __init__(self, params: CKKSParams, width: int):
        self.params = params
        self.step = width
        self.kind: list[int] = []
        self.level: list[int] = []
        self.scale: list[float] = []
        self.arg_ptr: list[int] = [0]
        self.arg, self.arg2, self.factor = array("i"), array("i"), array("i")
        self.param: list[int] = []
        self.source: list[int] = []
        self.plains = PlainNumbers()
        self.made: dict[int, int] = {}
        self.fresh: dict[int, int] = {}
        self._versions: dict[tuple[int, int, bool], int] = {}
        self._rotations: dict[tuple[int, int], int] = {}

    def push(
        self,
        kind: int,
        level: int,
        scale: float,
        terms: Sequence[tuple[int, int, int]],
        param: int,
        source: int,
    ) -> int:
        for factor, first, second in terms:
            self.factor.append(factor)
            self.arg.append(first)
            self.arg2.append(second)
        return self._push(kind, level, scale, param, source)

    def push_products(
        self, level: int, scale: float, ciphers: Sequence[int], plains: np.ndarray, source: int
    ) -> int:
        """A sum of ciphertexts times plaintexts."""
        self.factor.extend([1] * len(ciphers))
        self.arg.extend(ciphers)
        self.arg2.frombytes(plains.astype(np.int32).tobytes())
        return self._push(Kind.DOT_PLAIN, level, scale, 0, source)

    def _push(self, kind: int, level: int, scale: float, param: int, source: int) -> int:
        self.kind.append(kind)
        self.level.append(level)
        self.scale.append(scale)
        self.arg_ptr.append(len(self.arg))
        self.param.append(param)
        self.source.append(source)
        return len(self.kind) - 1

    def plain(self, pack: int, row: int, level: int, scale: float) -> int:
        return self.plains.one(pack, row, level, scale)


def emit(
    b: Builder, params: CKKSParams, schedule: Schedule, live: set[int], unit_pack: int
) -> Emitted:
    """Writes the instructions: every operand at the level of its stage, at exact scales.

    A ciphertext k levels too high is dropped k - 1 levels and multiplied by 1 at the correcting
    scale; where it only meets plaintexts it is dropped k levels, and they are encoded to correct
    it.
    """
    out = Emitted(params, b.width)
    for stage in b.stages:
        if stage.id >= len(schedule.level) or schedule.level[stage.id] < 0:
            continue
        _emit_stage(b, out, params, stage, schedule, live, unit_pack)
    return out


def _emit_stage(
    b: Builder,
    out: Emitted,
    params: CKKSParams,
    stage: Stage,
    schedule: Schedule,
    live: Collection[int],
    unit_pack: int,
) -> None:
    level = schedule.level[stage.id]
    local: dict[int, int] = {}
    members = [n for n in stage.nodes if n in live]
    held = held_to_scale(b, stage, members)

    versions: dict[int, dict[int, int]] = {}

    def use(n: int, at: int) -> int:
        if n in local:
            return local[n]
        found = versions.setdefault(at, {})
        if n not in found:
            found[n] = _version(out, params, n, at, n not in held, stage.source, unit_pack)
        return found[n]

    for n in members:
        node = b.nodes[n]
        at = level - node.below + (node.kind == Kind.RESCALE)
        scale = _scale(params, level - node.below, node.power, n in stage.unscaled)
        source = stage.source
        if node.kind == Kind.INPUT:
            at = schedule.want[stage.id]
            local[n] = out.push(Kind.INPUT, at, params.scale(at), (), node.param, source)
            continue
        if node.kind == Kind.DOT:
            terms = [(f, use(a, at), use(c, at)) for f, a, c in node.terms]
            local[n] = out.push(Kind.DOT, at, scale, terms, 0, source)
        elif node.kind == Kind.DOT_PLAIN and isinstance(node.terms, Terms):
            ciphers = [use(a, at) for a in node.first]
            scales = scale / np.array([out.scale[c] for c in ciphers])
            _, packs, rows = node.terms.table
            plains = out.plains.many(packs, rows, at, scales)
            local[n] = out.push_products(at, scale, ciphers, plains, source)
        elif node.kind == Kind.DOT_PLAIN:
            terms = []
            for _, a, (pack, row) in node.terms:
                cipher = use(a, at)
                plain = out.plain(pack, row, at, scale / out.scale[cipher])
                terms.append((1, cipher, plain))
            local[n] = out.push(Kind.DOT_PLAIN, at, scale, terms, 0, source)
        elif node.kind == Kind.ADD_PLAIN:
            ((_, a, (pack, row)),) = node.terms
            cipher = use(a, at)
            plain = out.plain(pack, row, at, out.scale[cipher])
            local[n] = out.push(
                Kind.ADD_PLAIN, at, out.scale[cipher], [(1, cipher, plain)], 0, source
            )
        elif node.kind == Kind.RESCALE:
            cipher = use(node.terms[0][1], at)
            local[n] = out.push(Kind.RESCALE, at - 1, scale, [(1, cipher, -1)], at - 1, source)
        elif node.kind == Kind.ROTATE:
            cipher = use(node.terms[0][1], at)
            step = node.param * out.step
            key = (cipher, step)
            if key not in out._rotations:
                out._rotations[key] = out.push(
                    Kind.ROTATE, at, out.scale[cipher], [(1, cipher, -1)], step, source
                )
            local[n] = out._rotations[key]
        else:
            terms = [(f, use(a, at), -1) for f, a, _ in node.terms]
            scale = out.scale[terms[0][1]]
            local[n] = out.push(node.kind, at, scale, terms, 0, source)
    for n in stage.outputs:
        if n not in live:
            continue
        out.made[n] = out.fresh[n] = local[n]
        if stage.id in schedule.refreshed:
            want = schedule.want[stage.id]
            out.fresh[n] = out.push(
                Kind.REFRESH, want, params.scale(want), [(1, local[n], -1)], want, stage.source
            )


def _scale(params: CKKSParams, level: int, power: int, unscaled: bool) -> float:
    """The exact scale from which the rescales that are left end at the canonical one.

    unscaled: a ciphertext at the canonical scale is multiplied in first.
    """
    scale = params.scale(level)
    if power == 1:
        return scale
    if power == 2:
        return scale * params.scale(level - 1) if unscaled else scale**2
    return scale**2 * params.scale(level - 1)


def _version(
    out: Emitted, params: CKKSParams, n: int, level: int, loose: bool, source: int, unit_pack: int
) -> int:
    cipher = out.fresh[n]
    have = out.level[cipher]
    if have == level:
        return cipher
    assert have > level, "operands are wanted at the highest level of their uses"
    key = (n, level, loose)
    if key in out._versions:
        return out._versions[key]
    target = level if loose else level + 1
    scale = out.scale[cipher]
    if have > target:
        shared = (n, target, True)
        if shared not in out._versions:
            out._versions[shared] = out.push(
                Kind.DROP, target, scale, [(1, cipher, -1)], target, source
            )
        cipher = out._versions[shared]
    if not loose:
        correcting = params.scale(level) * params.primes[target] / scale
        plain = out.plain(unit_pack, 0, target, correcting)
        product = out.push(
            Kind.DOT_PLAIN, target, scale * correcting, [(1, cipher, plain)], 0, source
        )
        cipher = out.push(
            Kind.RESCALE, level, params.scale(level), [(1, product, -1)], level, source
        )
        out._versions[key] = cipher
    return out._versions.get(key, cipher)


def arrays(out: Emitted) -> dict[str, np.ndarray]:
    """The instruction arrays of a Circuit."""
    return {
        "kind": np.asarray(out.kind, np.uint8),
        "level": np.asarray(out.level, np.int16),
        "scale": np.asarray(out.scale, np.float64),
        "arg_ptr": np.asarray(out.arg_ptr, np.int64),
        "arg": np.asarray(out.arg, np.int32),
        "arg2": np.asarray(out.arg2, np.int32),
        "factor": np.asarray(out.factor, np.int32),
        "param": np.asarray(out.param, np.int32),
        "source": np.asarray(out.source, np.int32),
        **out.plains.arrays(),
    }
