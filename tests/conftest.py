"""What every test shares: JAX on the CPU, compiled quickly; hypothesis with the same examples
in every run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

# The tests compile much and compute little: XLA without the passes that pay off in long runs, and
# one piece of code at a time, takes a third as long. Child processes inherit the flags; with
# XLA_FLAGS= in the environment everything is compiled as for users.
QUICK_XLA = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("XLA_FLAGS", " ".join(QUICK_XLA))

settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,  # compilation makes the first example of a test slow
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """For a module whose tests compile much and compute little, whatever XLA_FLAGS are."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
