"""The errors of models and their training; settings that cannot be are `hesim.ArgumentError`."""

from __future__ import annotations

from hesim.errors import HesimError

__all__ = [
    "CheckpointError",
    "DataError",
    "FreshParametersWarning",
    "TensorFileError",
    "TrainingError",
]


class CheckpointError(HesimError, ValueError):
    """A checkpoint that is missing or belongs to another model."""


class DataError(HesimError, RuntimeError):
    """Data that is missing, unreachable or not in the layout that its name promises."""


class TensorFileError(HesimError, ValueError):
    """A tensor file that cannot be read, is broken, or holds what it should not."""


class TrainingError(HesimError, ValueError):
    """A training whose numbers ceased to be finite."""


class FreshParametersWarning(UserWarning):
    """Parameters that were trained are replaced by random numbers, since another task is asked for.

    Examples:
      >>> import warnings
      >>> from models import FreshParametersWarning
      >>> warnings.simplefilter("error", FreshParametersWarning)  # have `load_pretrained` refuse
    """
