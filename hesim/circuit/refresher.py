"""What a refresh is: one description, which the planner, noise, cost, executor and report read.

A refresh gives a ciphertext its levels back. The key holder does it in a round trip, by decrypting
and encrypting again; a library that bootstraps does it on the server. Both are instances of
`Refresher`. Imports no JAX.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from numbers import Integral

from hesim.circuit.costs.table import current
from hesim.circuit.costs.transforms import share_of_seconds
from hesim.errors import ParameterError
from hesim.noise.bootstrap import LAWS, law, twice
from hesim.params import CKKSParams, InsecureParametersWarning, largest_levels

__all__ = [
    "BOOTSTRAP_SECONDS",
    "KEY_HOLDER",
    "MODULAR_LEVELS",
    "Refresher",
    "bootstrap",
    "openfhe_bootstrap",
]

BOOTSTRAP_SECONDS = 10.0
"""Price of a bootstrap of one ciphertext on a CPU: about what open libraries need at N = 2^16."""

_SENT = 4.0
"""Seconds of a ciphertext's way to the key holder or back, over those of writing and reading its
bytes: it also passes a socket and a file, and digests of both.
"""


@dataclass(frozen=True)
class Refresher:
    """One way to refresh a ciphertext.

    Attributes:
      name: for reports.
      interactive: whether the key holder takes part in it.
      min_input_level: level that its operand needs at least.
      output_level: level at which its result can be at most; None for the top of the chain, less
        `depth`.
      depth: levels of the chain that it uses up itself.
      price: seconds for one ciphertext on one core, in all slots; None for the key holder's, which
        depend on the levels.
      error: name of the law of ``hesim.noise.bootstrap`` by which it errs; None for the error of a
        fresh encryption, or that of the noise profile's own bootstrap.
      value_range: largest absolute slot value that it is made for.
      slots: effective slots that it refreshes, at most; None for all that the ring has.
      own_levels: levels above those of the parameters at which it alone works, all of which it uses
        up. They are no part of the chain of the Circuit, so keys of rotations do not pay for them.
      own_digits: digits of key switching there.
      iterations: bootstraps that one refresh consists of: a second one takes away what the first
        errs by, and uses up a level more. Price, error and levels are those of both together.

    Raises:
      ParameterError: negative levels, depth or price, no range, slots or iterations, or an unknown
        law.

    Examples:
      >>> import hesim
      >>> hesim.Refresher("bootstrap of ours", interactive=False, depth=15, price=4.0).highest(20)
      5
    """

    name: str
    interactive: bool
    min_input_level: int = 0
    output_level: int | None = None
    depth: int = 0
    price: float | None = None
    error: str | None = None
    value_range: float = math.inf
    slots: int | None = None
    own_levels: int = 0
    own_digits: int | None = None
    iterations: int = 1

    def __post_init__(self) -> None:
        levels = self.min_input_level, self.depth, self.output_level or 0, self.own_levels
        if not all(isinstance(level, Integral) and level >= 0 for level in levels):
            raise ParameterError(
                f"levels and depth of the refresher {self.name!r} are whole numbers, at least 0"
            )
        if self.price is not None and not self.price >= 0.0:
            raise ParameterError(f"price={self.price} of {self.name!r} is seconds, at least 0")
        slots = 1 if self.slots is None else self.slots
        if not self.value_range > 0.0 or not isinstance(slots, Integral) or slots < 1:
            raise ParameterError(
                f"value_range and slots of {self.name!r} must be above 0, slots a whole number"
            )
        if self.iterations not in (1, 2):
            raise ParameterError(f"iterations={self.iterations} of {self.name!r} is 1 or 2")
        if self.error is not None:
            law(self.error)

    @property
    def transforms(self) -> tuple[int, int]:
        """Levels of the two linear maps of a bootstrap on levels of its own: coefficients to slots,
        and slots to coefficients, which come first and are its operand's.
        """
        return self.own_levels - MODULAR_LEVELS - self.iterations + 1, self.min_input_level - 1

    def chain(self, params: CKKSParams) -> CKKSParams:
        """The ring and primes that it works with: those of `params`, and of its own levels above.

        Raises:
          ParameterError: there are no such primes, or they are too many to be secure.
        """
        if not self.own_levels:
            return params
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InsecureParametersWarning)  # said of `params` already
            return replace(
                params,
                levels=params.levels + self.own_levels,
                digits=self.own_digits,
                continues=params.levels,
            )

    def highest(self, levels: int) -> int:
        """The highest level of a result, in a chain of this many levels; below 0 if it is too short
        for this refresher.
        """
        top = levels - self.depth
        return top if self.output_level is None else min(top, self.output_level)

    def in_slots(self, slots: int) -> Refresher:
        """The same where so many effective slots are in use."""
        return self if self.interactive else replace(self, slots=slots)

    def seconds(self, below: int, above: int, log_n: int) -> float:
        """Seconds of one refresh on one core, from level `below` to level `above`."""
        if self.price is not None:
            if not self.own_levels or self.slots is None:
                return self.price
            return self.price * share_of_seconds(log_n, self.slots, self.transforms[0])
        table = current()
        sent = table.seconds("transport", below, log_n) + table.seconds("transport", above, log_n)
        opened = table.seconds("decrypt", below, log_n)
        return opened + table.seconds("encrypt", above, log_n) + _SENT * sent


KEY_HOLDER = Refresher("key holder", interactive=True)
"""A refresh by the key holder: a round trip in which a ciphertext is decrypted, encoded and
encrypted again, to any level.

Examples:
  >>> import hesim
  >>> hesim.KEY_HOLDER.interactive, hesim.KEY_HOLDER.highest(levels=7)
  (True, 7)
"""


def bootstrap(
    error: str,
    *,
    seconds: float = BOOTSTRAP_SECONDS,
    depth: int = 0,
    min_input_level: int = 0,
    value_range: float = 1.0,
    slots: int | None = None,
) -> Refresher:
    """The bootstrap of a published law (``hesim.noise.bootstrap.LAWS``), on the server.

    Args:
      error: name of the law.
      seconds: of one ciphertext on one core.
      depth: levels of the chain that it uses up; 0 if the parameters leave out its primes.
      min_input_level, value_range, slots: as for `Refresher`; laws are of messages in [-1, 1].

    Raises:
      ParameterError: there is no such law, or a number cannot be.

    Examples:
      >>> import hesim
      >>> refresher = hesim.bootstrap("lattigo_40", seconds=6.0, depth=2)
      >>> refresher.interactive, refresher.highest(levels=5), refresher.seconds(0, 3, log_n=16)
      (False, 3, 6.0)
    """
    return Refresher(
        f"bootstrap ({error})",
        interactive=False,
        min_input_level=min_input_level,
        depth=depth,
        price=seconds,
        error=error,
        value_range=value_range,
        slots=slots,
    )


def openfhe_bootstrap(
    params: CKKSParams,
    *,
    budget: tuple[int, int] = (3, 3),
    correction: int = 13,
    iterations: int = 1,
    digits: int | None = None,
    seconds: float | None = None,
) -> Refresher:
    """The bootstrap that ``backend="openfhe"`` runs: slots to coefficients first, on levels of its
    own above those of `params`, under a sparse secret that lives at the lowest prime only.

    It wants slots in [-1, 1]; larger ones pass, and are bent by the sine of its law. Its result is
    at the top of `params`: of those levels, the least that it begins at are kept for the next one.

    Args:
      params: the ring, with 59-bit scales, under which its law was measured. All of its levels are
        for the Circuit: 9 at most with 128 bits at N = 2^16, one more with digits=5.
      budget: levels to bring coefficients to slots, which it has of its own, and slots to
        coefficients, which are left of its operand; more of them are faster, from 1 to 4 each.
      correction: log2 of what values are divided by before they are refreshed. Large ones bend
        less and are noisier: 13 is best for values of size 1, 11 for sizes of 1/8.
      iterations: 2 to bootstrap the error of a first bootstrap as well, and take it away: twice the
        seconds, a level of its own more, and errors that are 2^20 times as small at N = 2^16.
      digits: of key switching on its chain; the fewest that are secure by default, as those are
        fastest and their keys smallest.
      seconds: of one ciphertext on one core; measured ones by default.

    Raises:
      ParameterError: no law was measured for this ring, scale or correction, or no such budget; or
        its chain is longer than is held secure in this ring.

    Examples:
      >>> import hesim
      >>> params = hesim.CKKSParams(16, 9, 59, 60, 60, digits=2)
      >>> refresher = hesim.openfhe_bootstrap(params)
      >>> refresher.interactive, refresher.min_input_level, refresher.highest(params.levels)
      (False, 4, 9)
      >>> chain = refresher.chain(params)
      >>> chain.levels, chain.digits, round(chain.log_qp), chain.primes[:10] == params.primes
      (22, 4, 1718, True)
    """
    name = f"openfhe_n{params.log_n}_cf{correction}"
    if name not in LAWS or params.scale_bits != _OPENFHE_SCALE_BITS:
        raise ParameterError(
            f"OpenFHE's bootstrap was not measured at log_n={params.log_n}, scale_bits="
            f"{params.scale_bits} and correction={correction}, but at scale_bits="
            f"{_OPENFHE_SCALE_BITS} and {_measured()}"
        )
    if len(budget) != 2 or not all(isinstance(b, Integral) and 1 <= b <= 4 for b in budget):
        raise ParameterError(f"budget={budget!r} is two whole numbers of levels, from 1 to 4")
    if params.digits is None:
        raise ParameterError(
            "OpenFHE switches keys in digits of several primes: give the parameters digits=2 or so"
        )
    if not isinstance(iterations, Integral) or iterations not in (1, 2):
        raise ParameterError(f"iterations={iterations!r} of a bootstrap is 1 or 2")
    own = MODULAR_LEVELS + budget[0] + iterations - 1
    own_digits = _own_digits(params, own) if digits is None else digits
    found = Refresher(
        "OpenFHE bootstrap" if iterations == 1 else "OpenFHE bootstrap in two iterations",
        interactive=False,
        min_input_level=budget[1] + 1,
        price=0.0,
        error=name if iterations == 1 else twice(name),
        value_range=1.0,
        own_levels=own,
        own_digits=own_digits,
        iterations=iterations,
    )
    if seconds is None:
        seconds = iterations * _openfhe_seconds(found.chain(params))
    return replace(found, price=seconds)


_OPENFHE_SCALE_BITS = 59
MODULAR_LEVELS = 10
"""Levels of OpenFHE's modular reduction with a sparse secret, between the two linear maps."""

_LEAST_DIGITS = 3
_MOST_DIGITS = 12
_FAST_DIGITS = 4
"""Those that errors count on: more leave room for a level more each, and make keys larger."""


def _own_digits(params: CKKSParams, own: int) -> int:
    """The fewest digits with which the chain of a bootstrap is secure.

    Raises:
      ParameterError: it is with none.
    """
    levels = params.levels + own
    wider = range(_LEAST_DIGITS, _MOST_DIGITS + 1)
    fit = [d for d in wider if (d - 1) * -(-(levels + 1) // d) <= levels]
    if params.security is None:
        return fit[0]
    for digits in fit:
        try:
            replace(params, levels=levels, digits=digits, continues=params.levels)
        except ParameterError:
            continue
        return digits
    sizes = params.scale_bits, params.first_bits, params.special_bits
    most = largest_levels(params.log_n, *sizes, params.security, _FAST_DIGITS) - own
    take = f"take levels={most}" if most > 0 else "take log_n=16 or more"
    raise ParameterError(
        f"a bootstrap of ciphertexts of levels={params.levels} works on {own} levels above them, "
        f"and so many primes are not secure at N = 2^{params.log_n}: {take}; security=None skips "
        f"the check, for tests only"
    )


def _measured() -> str:
    found = sorted({(law.log_n, law.sine_bits) for law in LAWS.values() if law.log_n is not None})
    rings, corrections = sorted({n for n, _ in found}), sorted({int(c or 0) for _, c in found})
    return (
        f"log_n from {rings[0]} to {rings[-1]}, corrections from {corrections[0]} to "
        f"{corrections[-1]}"
    )


def _openfhe_seconds(chain: CKKSParams) -> float:
    """Of a bootstrap with all slots on one core: 10.4 at N = 2^16 and 22 levels, and as transforms
    and key switches shrink.
    """
    transforms = chain.n * chain.log_n / (2.0**16 * 16)
    return 10.4 * transforms * ((chain.levels + 1) / 23) ** 1.5
