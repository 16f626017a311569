"""`approximate`: a JAX function with polynomials where encrypted values need them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import PyTree

from hesim.approximating.approximated import Approximated, Site
from hesim.approximating.choosing import chosen
from hesim.approximating.compiled import Compiled
from hesim.approximating.requests import Asked, arguments, encrypted_arguments
from hesim.errors import ArgumentError

__all__ = ["approximate"]

DEFAULT_TOL = 1e-3
"""Error at the output, by the largest result, where nothing is asked for."""


def approximate(
    fn: Callable[..., Any],
    batches: Iterable[PyTree],
    *,
    encrypted: int | Sequence[int] | Any = None,
    tol: float | None = None,
    degree: int | None = None,
    levels: int | None = None,
    margin: float | None = None,
    overrides: Mapping[str | int, Any] | None = None,
    name: str | None = None,
) -> Approximated:
    """The same function with every operation on encrypted values that no polynomial scheme can do
    replaced by an `approx` object, fitted to the range that its values take on calibration batches.

    Functions of one value are fitted as wholes, however they are written: GELU is one polynomial,
    not that of a tanh. The maximum that softmax subtracts becomes a constant, or the mean and a
    constant, if nothing at the output depends on it; a maximum of several values becomes rounds of
    b + relu(a - b); a / b a product by a reciprocal; the clamp of a variance vanishes; a public
    mask of scores is applied after their exponential. All steps of a loop share their polynomials.

    Args:
      fn: any JAX function that `hesim.trace` can read but for such operations: a Flax module's
        forward pass, its `jax.grad`, an optax step.
      batches: what it is run on: each a tuple of arguments, or the only argument. One is enough;
        take inputs as they will be met.
      encrypted: which arguments are encrypted, as of `hesim.trace`; by default all real numbers.
        Integers beside them, as the count in an optimizer's state, stay public.
      tol: largest error at the output, in its unit, half of which the batches given here may take,
        so that others keep to it; shared out over the places by how much each of them matters.
        1e-3 of the largest result if nothing is asked for.
      degree: of every polynomial, instead.
      levels: that polynomials may take together on any path, instead; shared out in the same way.
      margin: part of its width by which the range met at each place is made wider on each side, or
        of its logarithm where a pole is near. By default as far as the tails of the values go on:
        one time in fifty, as many values again go beyond an end.
      overrides: by the name of a function ("gelu"), the caller's line ("model.py:12") or the number
        of a site: an `approx` object, or a dictionary of `degree`, `depth`, `tol`, `domain`,
        `margin`.
      name: shown in listings; the function's own by default.

    Returns:
      A function of the same arguments and result, with `.sites` (a table), `.output_error`,
      `.check`, `.plot`. It traces, differentiates, exports and runs encrypted like any other. What
      `fn` closes over is read at the first call for each structure of arguments, as by `jax.jit`.

    Raises:
      NotHomomorphicError: operations that cannot be replaced: all of them, each with its line.
      ToleranceError: `tol` or `levels` is out of reach.
      TraceError: as `hesim.trace`. ArgumentError: anything else that cannot be asked.

    Examples:
      >>> import hesim, jax, numpy as np
      >>> w = np.linspace(-1, 1, 12).reshape(4, 3)
      >>> def model(x):
      ...     return jax.nn.softmax(jax.nn.gelu(x @ w))
      >>> x = np.random.default_rng(0).normal(size=(64, 4))
      >>> smooth = hesim.approximate(model, [x[:48]], tol=1e-2)
      >>> [site.operation for site in smooth.sites]
      ['gelu_tanh', 'exp', 'inv']
      >>> bool(np.max(np.abs(smooth(x[48:]) - model(x[48:]))) <= 1e-2)
      True
      >>> hesim.trace(smooth, x).depth > 0  # it can be encrypted
      True
    """
    if not callable(fn):
        raise ArgumentError(f"approximate takes a function first, not a {type(fn).__name__}.")
    given = arguments(batches)
    asked = Asked(tol, degree, levels, margin, dict(overrides or {}))
    encrypted = encrypted_arguments(encrypted, given[0])
    title = str(name or getattr(fn, "__name__", type(fn).__name__))
    made = Compiled(fn, title, encrypted)
    results = chosen(made, given, asked)
    sites = tuple(Site.of(k, key, results) for k, key in enumerate(results.approximations))
    return Approximated(made, dict(results.approximations), sites, results, len(given))
