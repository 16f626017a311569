"""`python -m benchmarks.noise [options]`: the table of `benchmarks.noise.table`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.noise import table
from benchmarks.noise.cases import DISTRIBUTIONS, NAMES

__all__ = ["main"]


def main(arguments: Sequence[str]) -> bool:
    """Measure with these options of the command line; whether every line passes."""
    given = _parsed(arguments)
    return table.main(
        given.out,
        given.rings,
        given.first_bits,
        given.values,
        given.keys,
        given.cases,
        given.levels,
        given.most,
    )


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.noise", description=table.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", default="runs/noise")
    parser.add_argument("--rings", type=int, nargs="+", default=[13, 14, 15])
    parser.add_argument("--first-bits", type=int, nargs="+", default=[60, 50])
    parser.add_argument("--values", nargs="+", default=DISTRIBUTIONS, choices=DISTRIBUTIONS)
    parser.add_argument("--keys", type=int, default=20)
    parser.add_argument("--most", type=int, default=160)
    parser.add_argument("--cases", nargs="+", default=[], choices=NAMES)
    parser.add_argument("--levels", type=int, default=table.LEVELS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(0 if main(sys.argv[1:]) else 1)
