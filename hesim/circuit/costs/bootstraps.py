"""Memory that OpenFHE's bootstraps take: their keys, and the matrices that they are prepared with.

Which they are follows from its budgets of levels and its slots alone (`transforms`). Held against
the keys that it makes by the tests.
"""

from __future__ import annotations

from dataclasses import dataclass

from hesim.circuit.costs.transforms import Step, rotations, steps
from hesim.circuit.refresher import Refresher
from hesim.params import CKKSParams

__all__ = ["BootstrapMemory", "bootstrap_memory"]


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
            _entries(steps(slots, up), [chain.levels + switching - s for s in range(up)])
            + _entries(steps(slots, down), [down + 1 + switching - s for s in range(down)])
        ),
    )


def _entries(steps: list[Step], primes: list[int]) -> int:
    """Polynomials modulo one prime in the diagonals of these products."""
    return sum(step.diagonals * k for step, k in zip(steps, primes, strict=False))
