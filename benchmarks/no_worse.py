"""Whether plans are cheaper than those by tables alone, for every program that the tests compile.

`python -m benchmarks.no_worse [pytest arguments]` runs tests in this process, by default those of
`tests/hesim` and `tests/he_backend` that are not slow. Each Program that they compile is planned by
tables alone, too, and the predicted seconds of both are compared: the programs that have become the
most expensive and the least, and the sums.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest

import hesim.circuit.compile as compiling
from hesim.circuit import tables
from hesim.circuit.candidate import Candidate
from hesim.errors import HesimError

_LARGEST = 3_000_000
"""Terms of a Program beyond which it is not planned by tables, which would take minutes."""

_SHOWN = 12
"""Programs at either end that are printed."""


@dataclass(frozen=True)
class _Compared:
    """A program's plans.

    Attributes:
      name: of the program, with its operations and the test. before, now: predicted seconds, by
        tables alone and as `hesim.compile` plans; None where tables have no plan.
    """

    name: str
    before: float | None
    now: float

    @property
    def ratio(self) -> float:
        return 1.0 if not self.before else self.now / self.before


class _Recorder:
    """A pytest plugin that plans every program twice."""

    def __init__(self) -> None:
        self.found: dict[Any, _Compared] = {}
        self.large = 0
        self.test = ""

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.test = item.nodeid

    def planning(self, true: Callable[..., Candidate]) -> Callable[..., Candidate]:
        """`planned_for`, remembering what it plans and what tables would have."""

        def planned_for(program: Any, params: Any, aim: Any, **options: Any) -> Candidate:
            plan = true(program, params, aim, **options)
            key = str(program), repr(params), repr(aim), str(options.get("layouts"))
            if (
                options.get("layouts") is not None
                or aim.objective != "seconds"
                or key in self.found
            ):
                return plan
            if tables.terms(program) > _LARGEST:
                self.large += 1
                return plan
            task = compiling._Task(
                program, params, aim, options.get("batch", True), None, None, None
            )
            try:
                before = compiling._tabled(task)
            except HesimError:
                before = None
            name = f"{program.name}, {len(program.ops)} operations, {self.test}"
            cost = None if before is None else before.cost[1]
            self.found[key] = _Compared(name, cost, plan.cost[1])
            return plan

        return planned_for


def main(arguments: list[str]) -> int:
    """Runs the tests and prints the comparison; 1 if some program became more expensive."""
    recorder = _Recorder()
    chosen = arguments or ["tests/hesim", "tests/he_backend"]
    with mock.patch.object(compiling, "planned_for", recorder.planning(compiling.planned_for)):
        pytest.main(["-q", "-n", "0", "-m", "not slow", *chosen], plugins=[recorder])
    found = sorted(recorder.found.values(), key=lambda c: c.ratio)
    both = [c for c in found if c.before is not None and math.isfinite(c.before)]
    worse = [c for c in both if c.ratio > 1.0 + 1e-9]
    print(f"\n{len(found):,} programs, {len(both):,} of which tables can plan", end="")
    print(f"; {recorder.large} with more than {_LARGEST:,} terms left out")
    before, now = sum(c.before or 0.0 for c in both), sum(c.now for c in both)
    print(f"predicted by tables {before:.2f} s, now {now:.2f} s; dearer now: {len(worse)}")
    for compared in [*both[:_SHOWN], *(worse or both)[-_SHOWN:]]:
        print(f"{compared.ratio:8.3f}  {compared.before:10.4f} s  {compared.now:10.4f} s", end="  ")
        print(compared.name)
    return 1 if worse else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
