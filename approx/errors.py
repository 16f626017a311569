"""Errors of the approximation package: each says what to do next."""

from __future__ import annotations


class ApproxError(ValueError):
    """A request that no polynomial can meet, or that is malformed."""


class DomainError(ApproxError):
    """The domain is empty, reversed, not finite, or the target is undefined somewhere on it."""


class ToleranceError(ApproxError):
    """No polynomial within the permitted degree reaches the requested tolerance."""
