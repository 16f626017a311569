"""The error of a job that cannot go on: one message that says what to do next."""

from __future__ import annotations

from hesim.errors import HesimError

__all__ = ["ExperimentError"]


class ExperimentError(HesimError, RuntimeError):
    """A job that was asked for something that cannot be done, or a folder of another job.

    Examples:
      >>> import pathlib, tempfile
      >>> from experiments import RunFolder
      >>> RunFolder.find(tempfile.mkdtemp())
      Traceback (most recent call last):
          ...
      experiments.errors.ExperimentError: ...
    """
