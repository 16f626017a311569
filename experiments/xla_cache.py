"""Keeps what XLA compiled beside a run, so that a resumed run does not wait for it again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

__all__ = ["keep_compiled"]

_WORTH_SECONDS = 0.5


@contextlib.contextmanager
def keep_compiled(folder: str | Path) -> Iterator[None]:
    """Within the context, compiled programs are written to `folder` and found there again.

    They hold for this machine only: they belong into a run folder, not into a shared home.
    """
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    _set(dict(zip(names, (str(folder), _WORTH_SECONDS))))
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, object]) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
