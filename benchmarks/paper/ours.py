"""What the compiler plans for the published model where an operation has the published price:
`python -m benchmarks.paper ours`.

The prices are those of `formulas`, as a cost table of the compiler, so that it plans for them. A
published product is a tensor product, a key switch and a rescale; here these are instructions, and
several products share the latter two. Encoding costs nothing, as there. Values lie in real slots;
the published bootstrap is one of two real ciphertexts, so each of a pair counts half. Functions are
those of Table 13, but for softmax, which is that of three squarings without a maximum.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import hesim
from benchmarks.paper.cases import SIZES
from benchmarks.paper.formulas import LOW, MILLISECONDS, TOP, level_factor
from benchmarks.paper.training import PUBLISHED, WAYS
from benchmarks.training_step import Part, training_step
from he_backend.processes.memory import peak_bytes
from hesim.circuit.circuit import Circuit
from hesim.circuit.costs.table import OPERATIONS, CostTable, OperationCost, ring_size, using
from hesim.circuit.refresher import Refresher
from hesim.errors import EmptySlotsWarning
from hesim.params import CKKSParams
from hesim.program import Program
from models.encrypted.update import training_sites
from models.sites.sites import FitSettings
from models.train.optim import adamw_he

__all__ = ["BOOTSTRAP", "RING", "optimizer", "ours", "planned", "published_costs"]

RING = CKKSParams(16, TOP, 40, 50, 60)
"""The published ring, with the levels that are left after a bootstrap."""

BOOTSTRAP = Refresher(
    "published bootstrap",
    interactive=False,
    min_input_level=4,
    price=MILLISECONDS["extended"] / 2e3,
)
"""Of values up to 2^20, from level 4 to the top, by half of a pair's seconds."""

_FUNCTIONS = FitSettings(
    degrees=(*FitSettings().degrees, ("tanh", 63)),
    composites=(
        ("exp", (("squarings", 14), ("degree", 1))),
        ("relu", (("degrees", (15, 15, 27)),)),
        ("inv_sqrt", (("degree", 127), ("steps", 3))),
    ),
    ranges=(
        ("exp", (-16384.0, 0.0)),
        ("relu", (-50.0, 50.0)),
        ("inv_sqrt", (0.15, 300.0)),
        ("tanh", (-5.0, 5.0)),
    ),
    derivatives="cheap",
)
"""Table 13; derivatives are made of what the forward pass computed."""

_PLANNED: tuple[tuple[str, Part], ...] = (
    ("LoRA, softmax", "gradient"),
    ("LoRA, Gaussian", "gradient"),
    ("LoRA, Gaussian", "forward"),
)
"""What is planned in 3 GB; (full, softmax) was not."""

_CIPHERTEXTS = {"full, softmax": 368, "LoRA, Gaussian": 15}
"""That the published optimizer goes through."""


def published_costs() -> CostTable:
    """A table of the published prices at N = 2^16.

    A rotation is a key switch. A plaintext's product without its rescale is taken to cost an
    addition, and a tensor product what is left of a product.
    """
    switch = MILLISECONDS["rotations"]
    rescale = MILLISECONDS["by_plaintexts"] - MILLISECONDS["additions"]
    own = dict.fromkeys(("add", "dot_plain", "dot_scalars", "add_plain"), MILLISECONDS["additions"])
    own |= {
        "rotate": switch,
        "relinearize": switch,
        "rescale": rescale,
        "dot": MILLISECONDS["products"] - switch - rescale,
    }
    high, low = TOP + 1, LOW + 1  # primes: a k + b k² goes through both figures of Table 8
    b = (low / high - level_factor(LOW)) / (low * (high - low))
    a = 1.0 / high - b * high
    costs = {}
    for name, transforms in OPERATIONS.items():
        size = ring_size(RING.log_n) if transforms else 2.0 ** (RING.log_n - 14)
        ms = own.get(name, 0.0) / size  # 0 for plaintexts and what a client does
        costs[name] = OperationCost(0.0, (0.0, a * ms, b * ms))
    shipped = CostTable.shipped()
    memory = shipped.base_bytes, shipped.table_bytes, shipped.key_factor
    return CostTable("Rho et al. 2025 on one RTX 4090", costs, *memory)


def ours() -> None:
    """Print what is planned for forward pass and gradient, and for the optimizer of one ciphertext,
    which goes through as many as the published one does.
    """
    print(f"{RING}; seconds at the published prices")
    each = _show("optimizer of a ciphertext", 0.687, optimizer(), {0: 0, 1: 1})
    for way, count in _CIPHERTEXTS.items():
        theirs = PUBLISHED[way].optimizer
        print(f"  {way}, optimizer of {count}: {count * each:.1f} s, the paper {theirs:.1f}")
    for way, part in _PLANNED:
        method, attention = WAYS[way]
        case = training_step(
            SIZES["whole"], method, attention, part=part, fit=_FUNCTIONS, stacked=False
        )
        _show(f"{way}, {part}", getattr(PUBLISHED[way], part), case.program)


def optimizer() -> Program:
    """AdamW-HE on numbers that fill one ciphertext: numbers and moments as the step before left
    them, gradients at the top level.
    """
    root = training_sites(2).get("optimizer.inv_sqrt")
    rule = adamw_he(1e-2, eps=6e-4, inv_sqrt=root, prescale=1.0)

    def step(numbers: jax.Array, state: Any, gradient: jax.Array) -> Any:
        found, state = rule.update(gradient, state, numbers)
        return optax.apply_updates(numbers, found), state

    numbers = jnp.zeros(RING.slots)
    state = rule.init(numbers)
    secret = jax.tree.map(lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating), state)
    return hesim.trace(step, numbers, state, numbers, encrypted=(True, secret, True))


def planned(program: Program, carried: Mapping[int, int] | None = None) -> Circuit:
    """The Circuit for the published ring, bootstrap and prices. carried: of `hesim.compile`."""
    with using(published_costs()), warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptySlotsWarning)
        return hesim.compile(program, RING, refresher=BOOTSTRAP, carried=carried)


def _show(
    name: str, theirs: float, program: Program, carried: Mapping[int, int] | None = None
) -> float:
    started = time.process_time()
    ledger = planned(program, carried).ledger
    bootstraps = ledger.refreshes * (BOOTSTRAP.price or 0.0)
    print(
        f"  {name}: {ledger.seconds:.2f} s, {bootstraps:.2f} of them for {ledger.refreshes:,} "
        f"bootstraps; the paper {theirs:.2f}; {ledger.rotations:,} rotations, {ledger.products:,} "
        f"products in {ledger.relinearizations:,}, {ledger.plain_products:,} by plaintexts, "
        f"{ledger.rotation_keys:,} keys; planned in {time.process_time() - started:.0f} s of CPU, "
        f"{peak_bytes() / 1e9:.1f} GB",
        flush=True,
    )
    return ledger.seconds
