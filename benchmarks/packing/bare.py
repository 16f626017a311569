"""What the operations of a Circuit take as bare Pyfhel calls, one by one, at their levels."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from Pyfhel import PyCtxt, PyPtxt

from he_backend.machines.pyfhel.machine import PyfhelMachine
from hesim.circuit.circuit import Circuit, Kind

__all__ = ["operations", "seconds"]

_REPEATS = 15


def operations(circuit: Circuit) -> Counter[tuple[str, int]]:
    """How often each Pyfhel operation is there, by its name and the level of its operands.

    Sums are counted by their terms. A refresh is a decryption, an encoding and an encryption; what
    encodes the plaintexts of products is left out.
    """
    found: Counter[tuple[str, int]] = Counter()
    for i in range(len(circuit)):
        kind, arguments = int(circuit.kind[i]), circuit.operands(i)
        part = circuit.args(i)
        terms = part.stop - part.start
        here = int(circuit.level[i])
        level = int(circuit.level[arguments[0]]) if arguments else here
        if kind in (Kind.INPUT, Kind.REFRESH):
            found["encode and encrypt", here] += 1
            found["decrypt", level] += kind == Kind.REFRESH
        elif kind == Kind.DOT:
            same = int(np.sum(circuit.arg[part] == circuit.arg2[part]))
            found["square", level] += same
            found["multiply", level] += terms - same
            found["add 3", level] += terms - 1
        elif kind == Kind.DOT_PLAIN:
            found["multiply by plaintext", level] += terms
            found["add", level] += terms - 1
        elif kind == Kind.ADD:
            found["add", level] += terms - 1
        elif kind == Kind.DROP:
            found["switch", level] += level - here
        else:
            found[_NAMES[kind], level] += 1
    return found


def seconds(circuit: Circuit, machine: PyfhelMachine) -> float:
    """The sum, in CPU seconds on one core, each operation timed here and now.

    Args:
      machine: with the keys of the Circuit, the secret one among them.
    """
    counted = operations(circuit)
    times = {}
    for level in sorted({level for _, level in counted}):
        calls = _calls(machine, level)
        for name, call in calls.items():
            if counted[name, level]:
                times[name, level] = _best(call)
    return sum(count * times[key] for key, count in counted.items() if count)


_NAMES = {
    Kind.ADD_PLAIN: "add a plaintext",
    Kind.ROTATE: "rotate",
    Kind.RELINEARIZE: "relinearize",
    Kind.RESCALE: "rescale",
}


def _calls(machine: PyfhelMachine, level: int) -> dict[str, Callable[[], Any]]:
    """A call of each operation at `level`. What works in place gets a copy."""
    he, params = machine._he, machine.params
    values = np.random.default_rng(0).uniform(-1, 1, machine.slots)
    scale = 2.0**20  # whose square fits at level 0; time does not depend on it
    cipher = machine.encrypt(values, level, scale).handle
    plain = machine.encode(values, level, scale).handle
    encoder, drops = machine._encoder(level)
    full = np.tile(values, params.slots // machine.slots)
    sums = [PyCtxt(copy_ctxt=cipher), he.multiply(cipher, cipher, in_new_ctxt=True)]
    other, step = PyCtxt(copy_ctxt=cipher), min(machine.rotation_steps, default=0)
    product = he.multiply_plain(cipher, plain, in_new_ctxt=True)

    def encrypt() -> Any:
        handle = encoder.encodeFrac(full, scale=scale)
        for _ in range(drops):
            encoder.mod_switch_to_next_ptxt(handle, in_new_ptxt=False)
        return he.encryptPtxt(PyPtxt(copy_ptxt=handle))

    calls: dict[str, Callable[[], Any]] = {
        "encode and encrypt": encrypt,
        "decrypt": lambda: np.array(he.decryptFrac(cipher)),
        "multiply": lambda: he.multiply(cipher, other, in_new_ctxt=True),
        "square": lambda: he.square(cipher, in_new_ctxt=True),
        "multiply by plaintext": lambda: he.multiply_plain(cipher, plain, in_new_ctxt=True),
        "add": lambda: he.add(sums[0], cipher),
        "add 3": lambda: he.add(sums[1], sums[1]),
        "add a plaintext": lambda: he.add_plain(PyCtxt(copy_ctxt=cipher), plain),
        "rotate": lambda: he.rotate(cipher, step, in_new_ctxt=True),
        "relinearize": lambda: he.relinearize(PyCtxt(copy_ctxt=sums[1])),
    }
    if level:
        product.set_scale(2.0**60)
        calls["rescale"] = lambda: he.rescale_to_next(PyCtxt(copy_ctxt=product))
        calls["switch"] = lambda: he.mod_switch_to_next_ctxt(PyCtxt(copy_ctxt=cipher))
    return calls


def _best(call: Callable[[], Any]) -> float:
    """CPU seconds of the middle one of several calls, after one that does not count."""
    call()
    taken = []
    for _ in range(_REPEATS):
        started = time.thread_time()
        call()
        taken.append(time.thread_time() - started)
    return float(np.median(taken))
