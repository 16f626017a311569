"""Steps of a training: batches that each go on from the state that the one before left."""

from __future__ import annotations

import contextlib
import itertools
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from he_backend.carrying import filled, next_state, public_results, with_state
from he_backend.errors import (
    BackendError,
    DomainError,
    EncodeError,
    RunFolderError,
    RunFolderWarning,
    ValueRangeError,
    need_count,
)

if TYPE_CHECKING:
    from he_backend.report.report import Report
    from he_backend.sessions import Session

__all__ = ["Batches", "States", "Step", "Training"]

Batches = Sequence[Sequence[Any]] | Callable[[int], Sequence[Any]]
"""Arguments of each step that are not carried, in their order: by its number."""

States = Sequence[Any] | Callable[[int], Sequence[Any]]
"""The carried arguments at the start; or, by a step's number, those before it as the caller knows
them, of which public ones must be right, and all of a step that is checked."""

_PREFIX = "step-"


@dataclass(frozen=True)
class Step:
    """A finished step.

    Attributes:
      number: from 0. report: of its batch.
      outputs: the function's result; None in the place of what is carried, unless it was read.

    Examples:
      >>> import he_backend, hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> program = hesim.trace(lambda s, x: s + x, np.ones(2), np.ones(2))
      >>> circuit = hesim.compile(program, params, carried={0: 0})
      >>> with he_backend.session(program, circuit=circuit, backend="slots") as session:
      ...     steps = list(session.steps((np.zeros(2),), [(np.ones(2),)] * 3, read=True))
      >>> steps[-1].number, steps[-1].batch, steps[-1].outputs
      (2, 'step-2', array([3., 3.]))
    """

    number: int
    report: Report
    outputs: Any

    @property
    def batch(self) -> str:
        """Name of its batch in the session."""
        return name_of(self.number)


def name_of(number: int) -> str:
    """Name of a step's batch."""
    return f"{_PREFIX}{number}"


class Training:
    """The steps of `Session.steps`, in order.

    Args:
      session: runs them. state, batches, count, first, keep, check, read, ahead: as there.

    Raises:
      BackendError: the Circuit carries nothing, or one of the arguments cannot be.
    """

    def __init__(
        self,
        session: Session,
        state: States,
        batches: Batches,
        count: int | None,
        first: int,
        keep: int,
        check: bool | Callable[[int], bool],
        read: bool | Callable[[int], bool],
        ahead: Callable[[int], Sequence[Any]] | None,
    ):
        if not session.circuit.carries:
            raise BackendError(
                "the circuit does not say what it carries from step to step: "
                "hesim.compile(program, params, carried={argument: result})"
            )
        need_count("keep", keep)
        if callable(check) and not callable(state):
            raise BackendError(
                "steps that are checked by choice need the state before each of them: "
                "state=lambda number: (...,)"
            )
        if not callable(batches):
            count = len(batches) if count is None else min(count, len(batches))
        self.session, self.first = session, first
        self.start = state if callable(state) else tuple(state)
        self.count, self.keep = count, keep
        self._check = check if callable(check) else lambda number: bool(check)
        self._batches = batches if callable(batches) else batches.__getitem__
        self._ahead = ahead if callable(batches) else batches.__getitem__
        self._read = read if callable(read) else lambda number: bool(read)

    def __iter__(self) -> Iterator[Step]:
        begin = max(self._stands(), self.first)
        state = self._state(begin)
        for k in itertools.count(begin) if self.count is None else range(begin, self.count):
            args = self._args(k, state)
            with self._encrypting(k + 1, state):
                report = self._run(k, args)
            outputs = self.session.read(name_of(k)) if self._read(k) else report.outputs
            yield Step(k, report, outputs)
            if k - self.keep >= self.first:
                self.session.forget(name_of(k - self.keep))
            if k + 1 != self.count:
                state = self._after(k, args)

    def _args(self, k: int, state: Sequence[Any]) -> tuple[Any, ...]:
        return with_state(self.session.circuit, state, tuple(self._batches(k)))

    @contextlib.contextmanager
    def _encrypting(self, k: int, state: Sequence[Any]) -> Iterator[None]:
        """Have the data of step k encrypted meanwhile. state: of the step before; what is carried
        is not looked at.
        """
        ahead, session = self._ahead, self.session
        if ahead is None or k == self.count or not session.options.apart:
            yield
            return

        def prepare() -> None:
            with contextlib.suppress(Exception):  # it comes again when its turn comes
                args = with_state(session.circuit, state, tuple(ahead(k)))
                session.encrypt_ahead(filled(session.program, session.circuit, args), name_of(k))

        thread = threading.Thread(target=prepare, name=f"step {k}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            thread.join()

    def _run(self, k: int, args: Sequence[Any]) -> Report:
        """Step k. Errors say which step it was, and what is kept."""
        name, before = name_of(k), name_of(k - 1) if k > self.first else None
        try:
            return self.session.run(*args, batch=name, after=before, check=self._check(k))
        except BackendError as error:
            if isinstance(error, ValueRangeError | EncodeError | DomainError):
                self.session.forget(name)  # it may be run with other arguments
            kept = (
                f"the state that step {k - 1} left is kept"
                if before
                else "nothing was begun before"
            )
            text = str(error.args[0]) if error.args else ""
            error.args = (
                f"{text} [step {k} of the training, counted from 0; {kept}: the same call goes on "
                f"from there]",
            )
            raise

    # Where it stood

    def _stands(self) -> int:
        """The last finished step whose state is whole, -1 if there is none. What came after it is
        forgotten, with a RunFolderWarning if it was finished.

        Raises:
          RunFolderError: steps are finished, but no state is whole.
        """
        session = self.session
        found = map(_number, session.batches)
        numbers = sorted((n for n in found if n >= self.first), reverse=True)
        finished = [n for n in numbers if session.done(name_of(n))]
        damaged: list[str] = []
        for n in finished:
            lost = session.damaged(name_of(n))
            if lost is None:
                self._forget(numbers, n, damaged)
                return n
            damaged.append(lost)
        if not finished:
            return -1
        raise RunFolderError(
            f"no state of the training is whole: {'; '.join(damaged)}. Put the files back, or "
            f"forget {', '.join(map(name_of, sorted(numbers)))} to begin again from the first step"
        )

    def _forget(self, numbers: Sequence[int], kept: int, damaged: Sequence[str]) -> None:
        if not damaged:
            return
        warnings.warn(
            f"{'; '.join(damaged)}: the training goes on from the state that step {kept} left, and "
            f"the steps since are made again",
            RunFolderWarning,
            stacklevel=4,
        )
        for n in [n for n in numbers if n > kept]:
            self.session.forget(name_of(n))

    # The state as the caller knows it: what of it is public; all of it for checks

    def _state(self, number: int) -> tuple[Any, ...]:
        """Before step `number`, of a training that goes on."""
        if callable(self.start):
            return tuple(self.start(number))
        if number > self.first and not self._check(number):
            public = self.session.public(name_of(number - 1))
            if public is not None:
                return self._next(public)
        state = self.start
        for k in range(self.first, number):
            state = self._after(k, self._args(k, state))
        return state

    def _after(self, k: int, args: Sequence[Any]) -> tuple[Any, ...]:
        """The state after step k: by the function itself for checks, else only what is public."""
        if callable(self.start):
            return tuple(self.start(k + 1))
        program = self.session.program
        if self._check(k):
            from jax import tree_util

            leaves = tree_util.tree_leaves(program(*args, precision="float64"))
            return next_state(program, self.session.circuit, leaves)
        public = self.session.public(name_of(k))
        if public is None:
            public = public_results(program, program.flatten(args))
        return self._next(public)

    def _next(self, public: Any) -> tuple[Any, ...]:
        program = self.session.program
        leaves = [public.get(k) for k in range(len(program.outputs))]
        return next_state(program, self.session.circuit, leaves)


def _number(batch: str) -> int:
    """The step whose batch has this name, -1 if it is none's."""
    digits = batch.removeprefix(_PREFIX)
    return int(digits) if batch.startswith(_PREFIX) and digits.isdecimal() else -1
