"""Run by the tests of sharding in a process with several devices: losses of some pre-training steps
on a mesh, as JSON.

    python sharded_run.py PRESET DATA TENSOR STEPS ROWS [COORDINATOR HOSTS NUMBER]
"""

from __future__ import annotations

import json
import sys

import jax
import numpy as np

from models.config import EncoderConfig, preset
from models.nn.encoder import Model
from models.objectives.mlm import Masking
from models.recipes.pretrain import Pretraining, make_optimizer, make_pretraining_step
from models.train.schedules import Budget
from models.train.sharding import check_config, make_mesh, place_batch, place_state, start_hosts
from models.train.step import SpreadState, initial_state

SMALL = EncoderConfig(
    hidden=64,
    heads=4,
    ffn=64,
    sequence=16,
    vocabulary=128,
    pooler=(16,),
    first_norm=True,
    lm_head="tied",
)


def main(name: str, data: int, tensor: int, steps: int, rows: int, *hosts: str) -> None:
    if hosts:
        start_hosts(hosts[0], int(hosts[1]), int(hosts[2]))
    config = SMALL if name == "small" else preset(name, lm_head="tied", lora_rank=0)
    settings = Pretraining(config=config, batch=rows, budget=Budget(100), rate=1e-3, chunk=0)
    mesh = make_mesh(data, tensor)
    check_config(config, mesh)
    key = jax.random.key(0)
    model = Model(config)
    step = make_pretraining_step(model, settings)
    state = place_state(initial_state(model.init(key), make_optimizer(settings), key), mesh)
    laid = state.laid if isinstance(state, SpreadState) else state.params
    lies = laid["blocks"][0]["attention"]["query"]["kernel"].sharding.spec
    masking = Masking(4, (5, config.vocabulary))
    losses: list[float] = []
    for number in range(steps):
        random = np.random.default_rng(number)
        tokens = random.integers(5, config.vocabulary, (rows, config.sequence)).astype(np.int32)
        batch = masking.apply(tokens, random, progress=(number + 1) / 100)
        state, metrics = step(state, place_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    print(json.dumps({"losses": losses, "devices": jax.device_count(), "query": str(lies)}))


if __name__ == "__main__":
    name, data, tensor, steps, rows, *hosts = sys.argv[1:]
    main(name, int(data), int(tensor), int(steps), int(rows), *hosts)
