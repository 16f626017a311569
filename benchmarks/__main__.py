"""`python -m benchmarks [name ...]`: operations, machines, simulation, noise; or all of them."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: figures are for one core

import sys

from benchmarks import approximation, machines, noise, operations, simulation

ALL = {
    "approximation": lambda: approximation.main([]),
    "operations": operations.main,
    "machines": machines.main,
    "simulation": lambda: simulation.main(64),
    "noise": noise.main,
}


def main(names: list[str]) -> int:
    """Run the benchmarks named. Returns 2 for a name that is none."""
    unknown = [name for name in names if name not in ALL]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(ALL)}", file=sys.stderr)
        return 2
    for name in names or ALL:
        print(f"\n== {name} " + "=" * (76 - len(name)), flush=True)
        ALL[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
