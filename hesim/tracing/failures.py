"""What goes wrong inside a function while it is traced, said in its own terms."""

from __future__ import annotations

import ast
import linecache
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import jax.scipy.special

from hesim.errors import TraceError
from hesim.source import Source, of_frames
from hesim.tracing.frames import Frame, registered

__all__ = ["explained"]

_OTHERS = {
    "Polynomial": "approx.Polynomial, or jnp.polyval(coefficients[::-1], x)",
    "Chebyshev": "approx.Polynomial, whose basis is Chebyshev's",
}
"""What to use for objects of NumPy and SciPy that have no namesake in JAX."""


_UNKNOWN = "NumPy or SciPy", "the function of that name in jax.numpy or jax.scipy"
"""What is said of a function that cannot be found in the caller's line."""


@contextmanager
def explained(name: str, fn: Any, traced_at: Source | None) -> Iterator[None]:
    """TraceError with the caller's line, for what JAX and libraries raise about traced values.

    Args:
      name, fn: the function that is traced. traced_at: where.
    """

    def at(error: BaseException) -> Source | None:
        return _source(error) or traced_at

    try:
        yield
    except jax.errors.TracerArrayConversionError as error:
        raise TraceError(_of_numpy(name, fn, error, at(error))) from error
    except jax.errors.NonConcreteBooleanIndexError as error:
        raise TraceError(
            f"{name} picks elements by a traced mask at {at(error)}: how many there are must "
            "be known when tracing. Use jnp.where(mask, x, 0), or a mask that is no argument."
        ) from error
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerIntegerConversionError) as error:
        if _numpy_call(error) != _UNKNOWN:  # a function of `math`, or NumPy, wants a float
            raise TraceError(_of_numpy(name, fn, error, at(error))) from error
        raise TraceError(
            f"{name} needs the number in a traced value at {at(error)}: a Python `if`, `while` or "
            "int() cannot ask for what is not known when tracing. Use a product with a mask, "
            "jnp.where on public values, or pass the value as a plain Python number."
        ) from error
    except Exception as error:
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        if kind not in registered().errors:
            raise
        says, instead = registered().errors[kind]
        raise TraceError(f"{name}: {says}, at {at(error)}. {instead}") from error


def _source(error: BaseException) -> Source | None:
    found = _callers_frame(error.__traceback__)
    if found is None:
        return None
    summary = found[1]
    return of_frames((Frame(summary.filename, summary.lineno or 0, _qualified(found[0])),))


def _qualified(tb: TracebackType) -> str:
    code = tb.tb_frame.f_code
    return getattr(code, "co_qualname", code.co_name)


def _of_numpy(name: str, fn: Any, error: BaseException, source: Source | None) -> str:
    called, instead = _numpy_call(error)
    if _foreign(fn):
        called, instead = name, _in_jax(name, _module(fn))
    return (
        f"{name} hands a traced value to {called} at {source}, which computes with numbers at "
        f"once: use {instead}."
    )


def _module(function: Any) -> str:
    return getattr(function, "__module__", None) or type(function).__module__ or ""


def _foreign(function: Any) -> bool:
    return _module(function).startswith(("numpy", "scipy", "math"))


def _numpy_call(error: BaseException) -> tuple[str, str]:
    """(the function that was called, what to use instead), read from the caller's line."""
    found = _callers_frame(error.__traceback__)
    if found is None:
        return _UNKNOWN
    tb, summary = found
    names = {**tb.tb_frame.f_builtins, **tb.tb_frame.f_globals, **tb.tb_frame.f_locals}
    for call in _calls(summary):
        function = _looked_up(call, names)
        if function is None or not _foreign(function):
            continue
        text = ast.unparse(call)
        own = getattr(function, "__name__", type(function).__name__)
        return text, _in_jax(own, _module(function))
    return _UNKNOWN


def _looked_up(node: ast.expr, names: dict[str, Any]) -> Any:
    """The object that a name with dots stands for; None if there is none."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        return getattr(_looked_up(node.value, names), node.attr, None)
    return None


def _callers_frame(
    tb: TracebackType | None,
) -> tuple[TracebackType, traceback.FrameSummary] | None:
    """The innermost frame that is neither JAX's, NumPy's nor SciPy's, nor this toolkit's."""
    summaries = traceback.extract_tb(tb)
    found = None
    for summary in summaries:
        assert tb is not None
        path = summary.filename
        foreign = "site-packages" in path and ("numpy" in path or "scipy" in path)
        if not path.startswith(registered().machinery) and not foreign:
            found = tb, summary
        tb = tb.tb_next
    return found


def _calls(summary: traceback.FrameSummary) -> list[ast.expr]:
    """Names (with dots) that are called in the part of a line that failed, or in the line."""
    line = summary.line or ""
    raw = linecache.getline(summary.filename, summary.lineno or 0) or line
    if summary.colno is not None and summary.end_colno is not None:
        part = raw.encode()[summary.colno : summary.end_colno].decode(errors="ignore")
        if (found := _called_in(part)) is not None:
            return found
    texts = (line, line.split("=", 1)[-1], line.removeprefix("return "))
    return [node for text in texts for node in _called_in(text) or ()]


def _called_in(text: str) -> list[ast.expr] | None:
    """Names (with dots) that are called in a piece of source; None where it is no whole piece."""
    try:
        tree = ast.parse(text.strip())
    except SyntaxError:
        return None
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [function for function in calls if isinstance(function, (ast.Name, ast.Attribute))]


def _in_jax(name: str, module: str) -> str:
    """The namesake of a function of NumPy or SciPy in JAX."""
    if name in _OTHERS:
        return _OTHERS[name]
    homes = {
        "jnp": jnp,
        "jnp.linalg": jnp.linalg,
        "jnp.fft": jnp.fft,
        "jax.scipy.special": jax.scipy.special,
        "jax.scipy.linalg": jax.scipy.linalg,
    }
    scipy = module.startswith("scipy")
    # The home of the same name first, then those of the same library.
    part = next((p for p in ("linalg", "fft", "special") if p in module), "")
    order = sorted(homes, key=lambda text: (part not in text, text.startswith("jnp") == scipy))
    for text in order:
        if callable(getattr(homes[text], name, None)):
            return f"{text}.{name}"
    return "the function of that name in jax.numpy or jax.scipy, or write it with jnp"
