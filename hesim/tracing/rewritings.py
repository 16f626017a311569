"""The operations that tracing writes in other ones, as a table from primitive to rewriting.

What is linear in its encrypted operands, or a product of them, but has no row of its own in
`hesim.primitives`, has one here.
"""

from __future__ import annotations

from hesim.tracing import convolution, linear, moves, powers, reductions, scatters
from hesim.tracing.call import Rewriting

__all__ = ["REWRITINGS"]

REWRITINGS: dict[str, Rewriting] = {
    "pow": powers.whole_powers,
    "scatter": scatters.updated,
    "scatter-sub": scatters.subtracted,
    "scatter-mul": scatters.multiplied,
    "reduce": reductions.reduced,
    "reduce_window": reductions.windowed,
    "reduce_window_sum": reductions.window_sums,
    "cumprod": reductions.cumulative_product,
    "gather": moves.filled,
    "unstack": moves.unstacked,
    "sort": moves.sorted_by_public,
    "conv_general_dilated": convolution.weighed,
    "ragged_dot_general": linear.ragged_product,
    "triangular_solve": linear.solved,
    "tridiagonal_solve": linear.by_matrix(3),
    "symmetric_product": linear.symmetric,
    "select_and_scatter_add": linear.by_matrix(0),
    "select_and_gather_add": linear.by_matrix(0),
}
