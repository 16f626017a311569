"""OpenFHE's module, which has no types, and is only where its interpreter is."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["openfhe"]

openfhe: Any = importlib.import_module("openfhe")
