"""`python -m benchmarks [name ...]`: those named, or all that take minutes.

`noise`, `shared_errors` and `verdict` measure for the better part of an hour, `training` compiles
and `reviews` trains for minutes, `gradients` and `carried_steps` need GLUE, `compile_sizes` and
`no_worse` compile for some minutes, as `scaling` does, `bootstrapped`, `bootstrapped_step` and
`bootstraps` need OpenFHE, and `packing`, `paper`, `clusters` and `workers` want the machine for
themselves; these have to be named.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: figures are for one core

import sys

from benchmarks import (
    bootstrapped,
    bootstrapped_step,
    bootstraps,
    carried_steps,
    circuits,
    clusters,
    compile_sizes,
    gradients,
    machines,
    no_worse,
    operations,
    reviews,
    scaling,
    sessions,
    shared_errors,
    simulation,
    suggest,
    tables_and_nets,
    training,
    verdict,
    workers,
)
from benchmarks.approximation import __main__ as approximation
from benchmarks.noise import table as noise
from benchmarks.packing import __main__ as packing
from benchmarks.paper import __main__ as paper

ALL = {
    "approximation": lambda: approximation.main([]),
    "operations": operations.main,
    "machines": machines.main,
    "sessions": sessions.main,
    "compile_sizes": lambda: compile_sizes.main([]) == 0,
    "no_worse": lambda: no_worse.main([]) == 0,
    "packing": lambda: packing.main([]),
    "paper": lambda: paper.main([]) == 0,
    "simulation": lambda: simulation.main([]),
    "noise": noise.main,
    "circuits": lambda: circuits.main([]),
    "shared_errors": lambda: shared_errors.main([]) == 0,
    "verdict": lambda: verdict.main([]) == 0,
    "suggest": lambda: suggest.main([]),
    "tables_and_nets": lambda: tables_and_nets.main([]),
    "training": training.main,
    "gradients": lambda: gradients.main([]) == 0,
    "carried_steps": lambda: carried_steps.main([]) == 0,
    "bootstrapped": lambda: bootstrapped.main([]) in (0, 2),
    "bootstrapped_step": lambda: bootstrapped_step.main([]) in (0, 2),
    "bootstraps": lambda: bootstraps.main([]) in (0, 2),
    "reviews": lambda: reviews.main([]),
    "workers": workers.main,
    "clusters": lambda: clusters.main([]) == 0,
    "scaling": lambda: scaling.main([]) == 0,
}
LONG = (
    *("noise", "shared_errors", "verdict", "training", "gradients", "carried_steps", "reviews"),
    *("packing", "paper", "compile_sizes", "no_worse", "workers", "bootstrapped"),
    *("bootstrapped_step", "bootstraps"),
    *("clusters", "scaling"),
)


def main(names: list[str]) -> int:
    """Run the benchmarks named.

    Returns:
      0; 1 if one of them says that something it checks does not hold; 2 for a name that is none.
    """
    unknown = [name for name in names if name not in ALL]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(ALL)}", file=sys.stderr)
        return 2
    failed = False
    for name in names or [name for name in ALL if name not in LONG]:
        print(f"\n== {name} " + "=" * (76 - len(name)), flush=True)
        failed |= ALL[name]() is False
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
