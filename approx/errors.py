"""Errors of the approximation package: each says what to do next."""

from __future__ import annotations


class ApproxError(ValueError):
    """A request that no polynomial can meet, or that is malformed.

    Examples:
      >>> import approx
      >>> approx.fit("exp", (-1, 1), degree=7, method="guess")
      Traceback (most recent call last):
          ...
      approx.errors.ApproxError: Unknown method 'guess'; use one of ...
    """


class DomainError(ApproxError):
    """The domain is empty, reversed, not finite, or the target is undefined somewhere on it.

    Examples:
      >>> import approx
      >>> approx.fit("log", (-1, 1), degree=7)
      Traceback (most recent call last):
          ...
      approx.errors.DomainError: ...
    """


class ToleranceError(ApproxError):
    """No polynomial within the permitted degree reaches the requested tolerance.

    Examples:
      >>> import approx
      >>> approx.fit("gelu", (-8, 8), tol=1e-9, depth=4)
      Traceback (most recent call last):
          ...
      approx.errors.ToleranceError: ...
    """
