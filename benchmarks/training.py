"""What a training step costs: parameters, compile time, peak memory, seconds, for each preset.

Memory is what the compiled program needs beside the code: its arguments, its results that overwrite
no argument, and its temporary buffers, as the compiler reports them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from models.config import EncoderConfig, preset
from models.encoder import Model
from models.export import pretraining_arguments, task_arguments
from models.lora import count, is_adapter, is_adapter_or_head, partition
from models.pretrain import Pretraining
from models.step import StepOptions

__all__ = ["counts", "main", "measure"]

ROWS = 8
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "accumulate 4": {"accumulate": 4},
    "bfloat16": {"precision": "bfloat16"},
    "remat": {"remat": True},
    "all three": {"accumulate": 4, "precision": "bfloat16", "remat": True},
}


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


def measure(step: Any, arguments: Any, *, runs: int = 0) -> dict[str, float]:
    """Compile seconds and bytes of a step's program, and the fastest of `runs` runs in seconds."""
    started = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0,)).lower(*arguments).compile()
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
        for _ in range(runs + 1):
            started = time.perf_counter()
            state, metrics = jax.block_until_ready(compiled(state, *rest))
            seconds.append(time.perf_counter() - started)
        figures["step"] = min(seconds[1:])
        figures["loss"] = float(metrics["loss"])
    return figures


def _example(leaf: Any) -> jax.Array:
    """An array of that shape: small numbers, ones, a key."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return 0.02 * jax.random.normal(jax.random.key(len(leaf.shape)), leaf.shape, leaf.dtype)
    return jnp.ones(leaf.shape, leaf.dtype) if leaf.ndim else jnp.zeros((), leaf.dtype)


def _line(name: str, figures: dict[str, float]) -> str:
    mega = {key: figures[key] / 2**20 for key in ("arguments", "temporary", "peak")}
    line = (
        f"  {name:<24} compiles in {figures['compile']:6.1f} s; {mega['arguments']:8.1f} MB of "
        f"arguments, {mega['temporary']:8.1f} MB temporary, {mega['peak']:8.1f} MB at most"
    )
    if "step" in figures:
        line += f"; {figures['step']:.2f} s a step, loss {figures['loss']:.3f}"
    return line


def main(arguments: Sequence[str] = ()) -> None:
    """Print the figures of the presets named (tiny and paper by default)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks training")
    parser.add_argument("presets", nargs="*", default=["tiny", "paper"])
    parser.add_argument("--runs", type=int, default=2, help="steps that are run; 0: only compile")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of a batch")
    given = parser.parse_args(list(arguments))
    for name in given.presets:
        config = preset(name)
        found = ", ".join(f"{value:,} {key}" for key, value in counts(config).items())
        print(f"{name}: {found}; {given.rows} rows of {config.sequence} tokens")
        fine = task_arguments(config, optax.adamw(1e-3), given.rows, StepOptions())
        print(_line("fine-tuning", measure(*fine, runs=given.runs)), flush=True)
        words = preset(name, lm_head="tied", lora_rank=0)
        for label, changes in VARIANTS.items():
            settings = Pretraining(config=words, batch=given.rows, **changes)
            program = pretraining_arguments(settings)
            print(_line(f"pre-training, {label}", measure(*program, runs=given.runs)), flush=True)


if __name__ == "__main__":
    main()
