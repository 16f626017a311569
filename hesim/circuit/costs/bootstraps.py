"""Memory that OpenFHE's bootstraps take: their keys, and the matrices that they are prepared with.

Which rotations a bootstrap makes follows from its budgets of levels and its slots alone, by the
rule of OpenFHE 1.6 (`ckksrns-fhe`, `ckksrns-utils`): a transform of log2(slots) layers is done in
as many steps as it has levels, each a product by a matrix of few diagonals, by baby steps and giant
steps. Held against the keys that it makes by the tests.
"""

from __future__ import annotations

from dataclasses import dataclass

from hesim.circuit.refresher import Refresher
from hesim.params import CKKSParams

__all__ = ["BootstrapMemory", "bootstrap_memory", "rotations"]


@dataclass(frozen=True)
class BootstrapMemory:
    """Bytes of residues that bootstraps keep in a process.

    Attributes:
      keys: of rotation, conjugation, relinearization and the way back from the sparse secret.
      matrices: of both transforms, encoded.

    Examples:
      >>> import hesim
      >>> from hesim.circuit.costs.bootstraps import bootstrap_memory
      >>> params = hesim.CKKSParams(16, 9, 59, 60, 60, digits=2)
      >>> found = bootstrap_memory(params, hesim.openfhe_bootstrap(params), params.slots)
      >>> f"{found.keys / 1e9:.1f} GB of keys, {found.matrices / 1e9:.1f} GB of matrices"
      '6.4 GB of keys, 3.9 GB of matrices'
    """

    keys: int = 0
    matrices: int = 0

    @property
    def total(self) -> int:
        """Both."""
        return self.keys + self.matrices


@dataclass(frozen=True)
class _Step:
    """One product by a matrix: rotations by multiples of `stride`, `diagonals` of them, in so many
    `baby` steps and `giant` steps.
    """

    stride: int
    diagonals: int
    baby: int
    giant: int


def bootstrap_memory(params: CKKSParams, refresher: Refresher, slots: int) -> BootstrapMemory:
    """What bootstraps of so many slots take; nothing where the refresher has no levels of its own.

    Args:
      params: of the Circuit. refresher: that it is planned for.
      slots: in use, of which every slot vector is made of copies.
    """
    if not refresher.own_levels:
        return BootstrapMemory()
    up, down = refresher.transforms
    chain = refresher.chain(params)
    switching = len(chain.moduli) - len(chain.primes)
    count = len(rotations(params.n, slots, up, down)) + 3
    return BootstrapMemory(
        chain.key_bytes(count),
        8
        * params.n
        * (
            _entries(_steps(slots, up), [chain.levels + switching - s for s in range(up)])
            + _entries(_steps(slots, down), [down + 1 + switching - s for s in range(down)])
        ),
    )


def rotations(n: int, slots: int, up: int, down: int) -> set[int]:
    """The steps that a bootstrap rotates by.

    Args:
      n: ring degree. slots: in use. up, down: levels of the two transforms.
    """
    half = n // 2
    found = {slots << k for k in range((half // slots).bit_length() - 1)}
    for step in (*_steps(slots, up, rest_first=True), *_steps(slots, down)):
        found |= {j * step.stride for j in range(1, step.giant)}
        found |= {i * step.giant * step.stride for i in range(1, step.baby)}
    return {k % half for k in found} - {0}


def _steps(slots: int, levels: int, *, rest_first: bool = False) -> list[_Step]:
    """The products of a transform, by their strides: as many as levels, or as layers if fewer."""
    count = slots.bit_length() - 1
    levels = min(levels, count)
    if not levels:
        return []
    layers, rest = _layers(count, levels)
    parts = [layers] * (levels - (rest > 0)) + ([rest] if rest else [])
    if rest_first and rest:
        parts = [rest, *parts[:-1]]
    return [_step(1 << sum(parts[:i]), part) for i, part in enumerate(parts)]


def _step(stride: int, layers: int) -> _Step:
    diagonals = (1 << (layers + 1)) - 1
    giant = 1 << (layers // 2 + (2 if diagonals > 7 else 1))
    return _Step(stride, diagonals, (diagonals + 1) // giant, giant)


def _layers(count: int, levels: int) -> tuple[int, int]:
    """Layers to a product, and those that are left for the last."""
    each = -(-count // levels)
    rows, rest = divmod(count, each)
    if rows + (rest > 0) < levels:
        each -= 1
        rows, rest = divmod(count, each)
        while rows + (rest > 0) != levels:
            rows -= 1
            rest = count - rows * each
    return each, rest


def _entries(steps: list[_Step], primes: list[int]) -> int:
    """Polynomials modulo one prime in the diagonals of these products."""
    return sum(step.diagonals * k for step, k in zip(steps, primes, strict=False))
