"""What every test shares: JAX on the CPU, compiled quickly and not kept for long; hypothesis with
the same examples in every run; and a summary of the memory and CPU time that a run took."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
from collections.abc import Iterator
from typing import Any

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

KEPT_BYTES = 1000 << 20
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


@pytest.fixture(scope="session")
def needs_openfhe() -> str:
    """The Python that has OpenFHE; skipped, with the reason, where there is none."""
    from he_backend.errors import BackendError
    from he_backend.machines.openfhe.interpreter import find_interpreter

    try:
        return find_interpreter()
    except BackendError as error:
        pytest.skip(str(error))


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


# ---------------------------------------------------------------- what a run took


def usage() -> dict[str, float]:
    """CPU seconds and largest resident bytes of this process and of its largest finished child."""
    own, children = (
        resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "own": own.ru_utime + own.ru_stime,
        "children": children.ru_utime + children.ru_stime,
        "largest": own.ru_maxrss * unit,
        "largest child": children.ru_maxrss * unit,
    }


class Usage:
    """Gathers `usage()` of every worker, and prints it when the run ends."""

    def __init__(self) -> None:
        self.of: dict[str, dict[str, float]] = {}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        found = getattr(node, "workeroutput", {}).get("usage")
        if found is not None:
            self.of[node.gateway.id] = found

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        took = self.of or {"one process": usage()}
        minutes = sum(u["own"] + u["children"] for u in took.values()) / 60
        terminalreporter.section(f"{minutes:.1f} CPU minutes", sep="-")
        for name, u in sorted(took.items()):
            terminalreporter.write_line(
                f"{name}: {u['largest'] / 1e9:.2f} GB at its largest (a child "
                f"{u['largest child'] / 1e9:.2f} GB), {u['own'] / 60:.1f} CPU minutes, "
                f"its children {u['children'] / 60:.1f}"
            )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Memory(), "memory")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Usage(), "usage")


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["usage"] = usage()
