"""ReLU on [-1, 1] and the sign composite: bits, levels and products against published degrees."""

from __future__ import annotations

import math

import approx
from approx import plan, planning

# Lee et al. 2021 ("Precise approximation of convolutional neural networks for homomorphically
# encrypted data"): degrees of the stages for a ReLU error of 2^-alpha on [-1, 1].
PUBLISHED = {
    10: (7, 7, 13),
    11: (7, 7, 27),
    12: (7, 15, 27),
    13: (15, 15, 27),
    14: (15, 27, 29),
}


def main() -> bool:
    """Print the Pareto front and the comparison; returns whether both are reached."""
    print("Pareto front, the product with x included")
    print(f"{'levels':>6} {'products':>8} {'bits':>7}  degrees, product with x")
    met = False
    for levels in range(8, 15):
        reached = 0.0
        for products in range(10, 34):
            try:
                c = approx.composite("relu", (-1, 1), depth=levels, products=products)
            except approx.ToleranceError:
                continue
            bits = -math.log2(c.max_error)
            if bits > reached + 0.01 and c.depth == levels and c.products == products:
                made = f"{dict(c.knobs)['degrees']}, {dict(c.knobs)['multiplied']}"
                print(f"{levels:>6} {products:>8} {bits:7.2f}  {made}")
            reached = max(reached, bits)
            met |= c.depth <= 13 and c.products <= 30 and bits >= 12.8
    print("at least 12.8 bits in 13 levels and 30 products:", met)
    print("\nsign part for a ReLU error of 2^-alpha, all products counted by our plans")
    print(f"{'alpha':>5} {'published':>14} {'levels':>6} {'products':>8}   ours, no more levels")
    for alpha, degrees in PUBLISHED.items():
        levels = sum(plan.minimal_depth(d) for d in degrees)
        products = sum(planning.products(d, 1) for d in degrees)
        c = approx.composite("relu", (-1, 1), tol=2.0**-alpha, depth=levels + 1, multiplied="after")
        fewest = approx.composite(
            "relu", (-1, 1), tol=2.0**-alpha, products=products + 1, multiplied="after"
        )
        best = min(
            (c, fewest), key=lambda g: (g.products, g.depth) if g.depth <= levels + 1 else (99, 0)
        )
        met &= best.products - 1 <= products
        print(
            f"{alpha:>5} {degrees!s:>14} {levels:>6} {products:>8}   {dict(best.knobs)['degrees']} "
            f"{best.depth - 1} levels, {best.products - 1} products"
        )
    return met
