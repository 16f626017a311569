"""Draws docs/figures/levels.svg: what products, rescales and refreshes do to the level.

    python docs/tools/levels_figure.py

The levels are read from two compiled Circuits of one function, nothing is drawn by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

import hesim
from hesim.circuit.circuit import Circuit, Kind

FIGURE = Path(__file__).resolve().parents[1] / "figures" / "levels.svg"
PRODUCTS = 9


def chain(x):
    """Nine products, each of the result before."""
    for _ in range(PRODUCTS):
        x = x * x - 0.5
    return x


def steps(circuit: Circuit) -> list[tuple[int, int]]:
    """(kind, level) of the instructions that set or change a level, in order."""
    changing = (Kind.INPUT, Kind.RESCALE, Kind.REFRESH)
    rows = zip(circuit.kind.tolist(), circuit.level.tolist(), strict=True)
    return [(kind, level) for kind, level in rows if kind in changing]


def draw(axes: Axes, circuit: Circuit, title: str) -> None:
    """The level after each instruction; a refresh is an arrow up."""
    product, last = 0, 0
    for kind, level in steps(circuit):
        if kind == Kind.RESCALE:
            axes.plot([product, product + 1], [last, level], "o-", color="#3949ab", lw=2, ms=6)
            product += 1
        elif kind == Kind.REFRESH:
            arrow = {"arrowstyle": "->", "color": "#c62828", "lw": 2.5, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (product, level), (product, last), arrowprops=arrow)
            axes.annotate(
                "refresh", (product - 0.12, level - 0.25), color="#c62828", ha="right", va="center"
            )
        else:
            axes.plot(product, level, "o", color="#3949ab", ms=6)
            axes.annotate(
                "encrypted", (product, level), (8, 4), textcoords="offset points", va="bottom"
            )
        last = level
    axes.annotate("decrypted", (product, last), (8, 0), textcoords="offset points", va="center")
    axes.set_title(title, fontsize=12, loc="left")
    axes.set_ylabel("level")
    axes.set_xlim(-0.3, PRODUCTS + 1.9)
    axes.set_yticks(np.arange(circuit.params.levels + 1))
    axes.set_ylim(-0.4, circuit.params.levels + 0.9)
    axes.grid(True, axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Compiles the function for a short and for a long chain and writes the figure."""
    program = hesim.trace(chain, np.zeros(64, np.float32))
    short = hesim.CKKSParams(log_n=14, levels=3, scale_bits=35, first_bits=45, special_bits=55)
    long = hesim.CKKSParams(
        log_n=14, levels=PRODUCTS, scale_bits=35, first_bits=45, special_bits=55
    )
    refreshed = hesim.compile(program, short, refresh_price="bootstrap")
    through = hesim.compile(program, long, refresh_price=float("inf"))
    settings: Any = {"svg.hashsalt": "levels", "svg.fonttype": "none", "font.size": 11}
    with mpl.rc_context(settings):
        figure, (top, bottom) = plt.subplots(
            2, 1, figsize=(5.2, 5.4), sharex=True, height_ratios=(3, 6), layout="constrained"
        )
        draw(top, refreshed, f"3 levels: {refreshed.ledger.refreshes} refreshes")
        draw(bottom, through, f"{PRODUCTS} levels: {through.ledger.refreshes or 'no'} refresh")
        bottom.set_xticks(np.arange(PRODUCTS + 1))
        bottom.set_xlabel("products so far")
        FIGURE.parent.mkdir(exist_ok=True)
        figure.savefig(FIGURE, metadata={"Date": None}, transparent=False)
    plt.close(figure)


if __name__ == "__main__":
    main()
