"""The first step of a training, which JAX compiles before it runs: announced, and left at a stop.

Compiling takes seconds to minutes, in a call that no signal interrupts. So the first call is made
by another thread, while this one asks whether to stop; the state it gets is a copy, so that what
is left behind touches nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from models.train.step import Step, TrainState

__all__ = ["COMPILING", "Abandoned", "Announced", "announced", "beside", "pending"]

COMPILING = "compiling the step ..."
_SECONDS = 0.1  # between two questions whether to stop
_left: list[threading.Thread] = []


class Abandoned(Exception):
    """The training is to stop before its first step is made."""


def pending() -> bool:
    """Whether a step that was left is still being compiled; it ends with the process."""
    return any(thread.is_alive() for thread in _left)


class Announced:
    """A step whose first call is announced, and left where `stop` says so; see `announced`."""

    def __init__(
        self, step: Step, stop: Callable[[], bool], waiting: Callable[[str], None]
    ) -> None:
        self._step, self._stop, self._waiting = step, stop, waiting
        self._compiled = False

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        if self._compiled:
            return self._step(state, batch)
        own = jax.tree.map(jnp.copy, state)
        call = lambda: jax.block_until_ready(self._step(own, batch))
        found = beside(call, self._stop, self._waiting, COMPILING)
        self._compiled = True
        return found


def announced(step: Step, stop: Callable[[], bool], waiting: Callable[[str], None] | None) -> Step:
    """The same step; with `waiting`, its first call is announced and can be left.

    Args:
      step: (state, batch) -> (state, metrics).
      stop: asked every tenth of a second while the first call takes; on one host only, since
        several must make every step together.
      waiting: called with `COMPILING` before the first call and with "" after it.

    Returns:
      A step. Its first call raises `Abandoned` if `stop` says so before it is done.
    """
    return step if waiting is None else Announced(step, stop, waiting)


def beside(
    call: Callable[[], Any],
    stop: Callable[[], bool],
    waiting: Callable[[str], None] | None,
    phrase: str,
) -> Any:
    """What the call returns or raises; with `waiting`, made by a thread that a stop leaves.

    Args:
      call: work that takes long, and that may be lost.
      stop, waiting: as for `announced`.
      phrase: what `waiting` is told before the call; after it, "".

    Raises:
      Abandoned: `stop` said so before the call was done.
    """
    if waiting is None:
        return call()
    waiting(phrase)
    found = _threaded(call, stop if jax.process_count() == 1 else lambda: False)
    waiting("")
    return found


def _threaded(call: Callable[[], Any], stop: Callable[[], bool]) -> Any:
    """The call by a thread with this one's precision of numbers."""
    wide, done = bool(jax.config.read("jax_enable_x64")), threading.Event()
    found: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with jax.enable_x64(wide):
                found.append(call())
        except BaseException as error:  # raised again by the thread that waits
            failed.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=run, daemon=True, name="first step")
    thread.start()
    while not done.wait(_SECONDS):
        if stop():
            _left.append(thread)
            raise Abandoned
    thread.join()
    if failed:
        raise failed[0]
    return found[0]
