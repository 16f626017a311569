"""Numbers of the plaintexts of a Circuit under construction: one for each that differs."""

from __future__ import annotations

from array import array

import numpy as np

__all__ = ["PlainNumbers"]


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
