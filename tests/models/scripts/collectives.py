"""Run by the tests of sharding in a process with four devices: what one block exchanges between
devices in a step, by activation and by what is trained, as JSON; and what becomes of the state.

    python collectives.py FOLDER
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from models.config import EncoderConfig
from models.data.batches import Batch
from models.nn.encoder import Model
from models.nn.lora import combine, is_adapter, partition
from models.train.checkpoint import Checkpoints
from models.train.sharding import make_mesh, place_batch, place_frozen, place_state
from models.train.step import StepOptions, TrainState, initial_state, make_update

EXCHANGES = re.compile(
    r"= .*? (all-gather|all-reduce|all-to-all|collective-\w+|reduce-scatter)(?:-start)?\("
)


def main(folder: Path) -> None:
    found = {
        activation: {
            "blocks": exchanged(activation, adapters=False),
            "adapters": exchanged(activation, adapters=True),
        }
        for activation in ("relu", "glu_relu", "gelu", "glu_gelu")
    }
    print(json.dumps(found | {"same": kept(folder)}))


def parts(activation: Any, adapters: bool = False) -> tuple[Any, ...]:
    """Model, step, state, frozen parameters and batch of one block."""
    config = EncoderConfig(
        layers=1,
        hidden=32,
        heads=4,
        ffn=64,
        sequence=8,
        vocabulary=32,
        pooler=(8,),
        first_norm=True,
        biases=True,
        activation=activation,
        lora_rank=2,
    )
    model, mesh = Model(config), make_mesh(1, 4)

    def loss(trained: Any, frozen: Any, batch: Batch, key: jax.Array) -> Any:
        del key
        params = combine(trained, frozen)
        states, _ = model.hidden_states(params, batch.tokens, batch.mask)
        total = jnp.mean(jnp.square(states - batch.targets))
        return total, {"loss": total}

    def chosen(path: Any) -> bool:
        return is_adapter(path) if adapters else path[0] == "blocks"

    trained, frozen = partition(model.init(jax.random.key(0)), chosen)
    optimizer = optax.adam(1e-3)
    # A second step on the same state is compared with it.
    step = make_update(loss, optimizer, StepOptions(donate=False))
    state = initial_state(trained, optimizer, jax.random.key(1))
    random = np.random.default_rng(0)
    shape = (4, config.sequence, config.hidden)
    rows, targets = (random.normal(size=shape).astype(np.float32) for _ in range(2))
    batch = Batch(rows, np.ones(shape[:2], np.float32), targets)
    return mesh, step, state, frozen, batch


def exchanged(activation: str, adapters: bool) -> Counter[str]:
    mesh, step, state, frozen, batch = parts(activation, adapters)
    placed = place_state(state, mesh)
    arguments = (placed, place_batch(batch, mesh), place_frozen(frozen, mesh))
    return Counter(EXCHANGES.findall(step.lower(*arguments).compile().as_text()))


def kept(folder: Path) -> dict[str, Any]:
    """Whether state and checkpoint are as stored, and how far two steps are from one device's."""
    mesh, step, state, frozen, batch = parts("glu_relu")
    placed = place_state(state, mesh)
    with Checkpoints(folder) as store:
        store.save(0, placed)
        back = store.restore(state)
    shared = place_batch(batch, mesh), place_frozen(frozen, mesh)
    for _ in range(2):
        state, _ = step(state, batch, frozen)
        placed, _ = step(placed, *shared)
    pairs = list(zip(jax.tree.leaves(state.params), jax.tree.leaves(placed.params), strict=True))
    again = jax.tree.leaves(back.params), jax.tree.leaves(parts("glu_relu")[2].params)
    kernel = placed.laid["blocks"][0]["ffn"]["up"]["kernel"]
    ffn = placed.params["blocks"][0]["ffn"]["up"]
    return {
        "shapes": all(a.shape == b.shape for a, b in pairs),
        "distance": max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs),
        "checkpoint": isinstance(back, TrainState)
        and all(np.array_equal(a, b) for a, b in zip(*again, strict=True)),
        "laid": [str(kernel.shape), str(kernel.sharding.spec)],
        "stored": [str(ffn["kernel"].shape), str(ffn["kernel"].sharding.spec)],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
