"""One run of a saved Circuit in a process that has nothing else in it: its peak memory.

`python -m benchmarks.packing.alone FOLDER` prints bytes with the keys and in all, as JSON. Imports
no JAX.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from he_backend.local import run_local
from he_backend.machines.pyfhel.machine import PyfhelMachine
from he_backend.processes.memory import peak_bytes
from hesim.circuit.circuit import Circuit

__all__ = ["main", "save"]


def save(
    folder: Path, circuit: Circuit, inputs: list[np.ndarray], operands: list[np.ndarray]
) -> None:
    """Write what `main` reads."""
    circuit.save(folder / "circuit.npz")
    for name, arrays in (("inputs", inputs), ("operands", operands)):
        np.savez(folder / f"{name}.npz", *arrays)


def main(folder: Path) -> None:
    """Run it once, plaintexts encoded on the way, and print what it took."""
    circuit = Circuit.load(folder / "circuit.npz")
    inputs, operands = (
        [held[name] for name in held.files]
        for held in (np.load(folder / f"{name}.npz") for name in ("inputs", "operands"))
    )
    machine = PyfhelMachine.generate(circuit.params, circuit.rotation_steps, circuit.slots)
    keys = peak_bytes()
    run_local(circuit, machine, inputs, operands, [])
    print(json.dumps({"keys": keys, "peak": peak_bytes()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
