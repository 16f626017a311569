"""Several rotations of one ciphertext, which is taken apart once for all of them."""

from __future__ import annotations

import weakref
from typing import Any

__all__ = ["Hoisted"]


class Hoisted:
    """Rotations in one context.

    Taking a ciphertext apart is two fifths of a rotation, and serves every other one of the same
    ciphertext (Halevi and Shoup, "Faster homomorphic linear transformations in HElib", ePrint
    2018/244). It is done at the second rotation in succession, when it costs nothing more.

    Args:
      cc: the context, with keys of the steps.
    """

    def __init__(self, cc: Any):
        self._cc = cc
        self._last: weakref.ref[Any] = weakref.ref(self)  # no ciphertext
        self._digits: Any = None

    def rotate(self, cipher: Any, step: int) -> Any:
        """OpenFHE's ciphertext of the slots that lie `step` further on.

        cipher: has a `handle`, which stays as it is.
        """
        if self._last() is not cipher:
            self._last, self._digits = weakref.ref(cipher), None
            return self._cc.EvalRotate(cipher.handle, step)
        if self._digits is None:
            self._digits = self._cc.EvalFastRotationPrecompute(cipher.handle)
        return self._cc.EvalFastRotation(cipher.handle, step, self._digits)
