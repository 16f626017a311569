"""`hesim fit`: a polynomial for a function, its depth and its error, as text, figure or JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import approx
from experiments.console import make_console

__all__ = ["fit_and_show"]


def fit_and_show(
    target: str,
    domain: tuple[float, float],
    wanted: tuple[int | None, int | None, float | None],
    method: str = "minimax",
    plot: Path | None = None,
    out: Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Fit, print, and write what is asked for; the polynomial as JSON data is returned.

    Args:
      target: a name that `approx.fit` knows. domain: (low, high).
      wanted: degree, depth and tolerance, of which one is given (else a depth of 5).
      plot: file for the error curve, in a format that matplotlib knows by its suffix.
      out: file for the JSON, "-" for standard output and nothing else there.

    Raises:
      ApproxError: nothing fits, or the request is malformed.
    """
    degree, depth, tol = wanted
    if wanted == (None, None, None):
        depth = 5
    p = approx.fit(target, domain, degree=degree, depth=depth, tol=tol, method=method)
    found = {**p.to_dict(), "max_error": p.max_error, "certified": p.certified, "depth": p.depth}
    found["nonscalar_mults"] = p.plan.nonscalar_mults
    found["noise_magnification"] = approx.amplification(p)
    if out is not None and str(out) != "-":
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        from approx.choice.plots import error_curve

        error_curve(p, target).savefig(plot, dpi=150)
    show = console if console is not None else make_console()
    if out is not None and str(out) == "-":
        show.print(json.dumps(found, indent=1), soft_wrap=True)
        return found
    table = Table(show_header=False, box=None)
    for name, value in (
        ("function", f"{target} on {domain[0]:g} to {domain[1]:g}, {method}"),
        ("degree", str(p.degree)),
        ("levels", f"{p.depth}, the map of the domain to [-1, 1] included"),
        ("products of ciphertexts", str(p.plan.nonscalar_mults)),
        ("noise", f"the rounding of a rescale comes out x {found['noise_magnification']:.3g}"),
        ("largest error", f"{p.max_error:.3e}, {'proven' if p.certified else 'estimated'}"),
    ):
        table.add_row(name, value)
    show.print(table)
    for path in (plot, out):
        if path is not None:
            show.print(f"written: {path}")
    return found
