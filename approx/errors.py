"""Errors of the approximation package: each says what to do next."""

from __future__ import annotations

__all__ = ["ApproxError", "DomainError", "HesimError", "ToleranceError"]


class HesimError(Exception):
    """Base class of every error that this package, and those above it, raise on purpose.

    It is `hesim.HesimError` to them. Every error is one of Python's own besides.

    Examples:
      >>> import hesim
      >>> try:
      ...     hesim.CKKSParams(log_n=3, levels=1, scale_bits=40, first_bits=50, special_bits=60)
      ... except hesim.HesimError as error:
      ...     print(type(error).__name__)
      ParameterError
    """


class ApproxError(HesimError, ValueError):
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
