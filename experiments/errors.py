"""The error of a job that cannot go on, one message that says what to do next; any error in a
line.
"""

from __future__ import annotations

from hesim.errors import HesimError

__all__ = ["ExperimentError", "first_line"]


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


def first_line(error: BaseException) -> str:
    """The type of an error and the first line of what it says, as the reason in a row.

    Examples:
      >>> first_line(ValueError("too long" + chr(10) + "by 3"))
      'ValueError: too long'
    """
    said, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {said}"
