"""What every test shares: JAX on the CPU, compiled quickly and not kept for long; hypothesis with
the same examples in every run."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
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

KEPT_BYTES = 600 << 20
"""By how much a process may grow before it drops what JAX compiled."""

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


# ---------------------------------------------------------------- memory


def resident_bytes() -> int:
    """Bytes of this process in memory; 0 where the system does not say (no /proc)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def give_memory_back() -> None:
    """Drops compiled functions; hands what was freed to the system, as glibc by itself does not."""
    if (jax := sys.modules.get("jax")) is not None:
        jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


class Memory:
    """Lets no worker keep more than `KEPT_BYTES` of compiled functions between tests."""

    def __init__(self) -> None:
        self.resident = 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Iterator[None]:
        self.resident = self.resident or resident_bytes()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self) -> Iterator[None]:
        result = yield
        if resident_bytes() - self.resident > KEPT_BYTES:
            give_memory_back()
            self.resident = resident_bytes()
        return result


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Memory(), "memory")
