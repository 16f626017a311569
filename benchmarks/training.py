"""What a training step costs: parameters, compile time, peak memory, seconds, for each preset.

Memory is told twice: what the compiled program needs beside the code (its arguments, its results
that overwrite no argument, and its temporary buffers, as the compiler reports them), and the peak
of the whole process, compilation included. Each step has a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import optax

from models.config import EncoderConfig, preset
from models.nn.encoder import Model
from models.nn.lora import count, is_adapter, is_adapter_or_head, partition
from models.recipes.export import pretraining_arguments, task_arguments
from models.recipes.pretrain import Pretraining

__all__ = ["counts", "main", "measure"]

ROWS = 8
PRETRAINING: dict[str, dict[str, Any]] = {
    "pre-training": {},
    "accumulate 4": {"accumulate": 4},
    "bfloat16": {"precision": "bfloat16"},
    "remat": {"remat": True},
    "all three": {"accumulate": 4, "precision": "bfloat16", "remat": True},
}
FINE_TUNING = ("LoRA", "full")
"""Fine-tuning of adapters, pooler and head, and of everything."""


def counts(config: EncoderConfig) -> dict[str, int]:
    """Scalars of all parameters, and what LoRA fine-tuning trains of them where there is LoRA."""
    params = jax.eval_shape(Model(config).init, jax.random.key(0))
    found = {"parameters": count(params)}
    if config.lora_rank:
        trained, _ = partition(params, is_adapter_or_head)
        adapters, _ = partition(params, is_adapter)
        found["trained by LoRA"] = count(trained)
        found["matrices trained"] = len(jax.tree.leaves(trained))
        found["of them adapters"] = len(jax.tree.leaves(adapters))
    return found


def _program(name: str, step: str, rows: int) -> tuple[Any, Any]:
    """(function, shapes of its arguments) of a preset's step of that name."""
    if step in PRETRAINING:
        config = preset(name, lm_head="tied", lora_rank=0)
        return pretraining_arguments(Pretraining(config=config, batch=rows, **PRETRAINING[step]))
    config = preset(name) if step == "LoRA" else preset(name, lora_rank=0)
    return task_arguments(config, optax.adamw(1e-3), rows)


def measure(name: str, step: str, rows: int, runs: int = 0) -> dict[str, float]:
    """Compile seconds and bytes of a step's program, bytes of this process at its peak, and the
    fastest of `runs` runs in seconds.
    """
    function, arguments = _program(name, step, rows)
    started = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=(0,)).lower(*arguments).compile()
    figures = {"compile": time.perf_counter() - started}
    memory: Any = compiled.memory_analysis()
    figures["arguments"] = memory.argument_size_in_bytes
    figures["temporary"] = memory.temp_size_in_bytes
    figures["peak"] = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    if runs:
        state, *rest = jax.tree.map(_example, arguments)
        state = state._replace(optimizer=jax.tree.map(jnp.zeros_like, state.optimizer))
        seconds: list[float] = []
        metrics: dict[str, Any] = {}
        for _ in range(runs + 1):
            started = time.perf_counter()
            state, metrics = jax.block_until_ready(compiled(state, *rest))
            seconds.append(time.perf_counter() - started)
        figures["step"] = min(seconds[1:])
        figures["loss"] = float(metrics["loss"])
    figures["process"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return figures


def _example(leaf: Any) -> jax.Array:
    """An array of that shape: small numbers, ones, a key."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return 0.02 * jax.random.normal(jax.random.key(len(leaf.shape)), leaf.shape, leaf.dtype)
    return jnp.ones(leaf.shape, leaf.dtype) if leaf.ndim else jnp.zeros((), leaf.dtype)


def _line(step: str, figures: dict[str, float]) -> str:
    names = ("arguments", "temporary", "peak", "process")
    mega = {key: figures[key] / 2**20 for key in names}
    line = (
        f"  {step:<14} compiles in {figures['compile']:6.1f} s; {mega['arguments']:8.1f} MB of "
        f"arguments, {mega['temporary']:8.1f} MB temporary, {mega['peak']:8.1f} MB at most; "
        f"the process {mega['process']:8.1f} MB"
    )
    if "step" in figures:
        line += f"; {figures['step']:.2f} s a step, loss {figures['loss']:.3f}"
    return line


def main(arguments: Sequence[str] = ()) -> None:
    """Print the figures of the presets named (tiny and paper by default)."""
    steps = (*FINE_TUNING, *PRETRAINING)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training")
    parser.add_argument("presets", nargs="*", default=["tiny", "paper"])
    parser.add_argument("--steps", nargs="+", choices=steps, default=steps, help="which to measure")
    parser.add_argument("--runs", type=int, default=2, help="steps that are run; 0: only compile")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of a batch")
    given = parser.parse_args(list(arguments))
    for name in given.presets:
        config = preset(name)
        found = ", ".join(f"{value:,} {key}" for key, value in counts(config).items())
        print(f"{name}: {found}; {given.rows} rows of {config.sequence} tokens")
        for step in given.steps:
            if step == "LoRA" and not config.lora_rank:
                continue
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                figures = alone.submit(measure, name, step, given.rows, given.runs).result()
            print(_line(step, figures), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
