"""Lowering: one walk over a Program, from tensors to kernels, by the rows of `hesim.primitives`."""

from __future__ import annotations

from hesim.circuit.context import Context
from hesim.circuit.layout import Tensor
from hesim.primitives import PRIMITIVES
from hesim.program import Equation
from hesim.progress import CompileWatch

__all__ = ["lower"]


def lower(ctx: Context, watch: CompileWatch | None = None) -> None:
    """Lowers every operation on encrypted values, in order: the tensors of their results are in
    `ctx.values` afterwards, and their stages in `ctx.b`.

    Args:
      watch: is told each operation before it is lowered.
    """
    ops = ctx.program.ops
    for number, eqn in enumerate(ops):
        if watch is not None:
            watch.operation(number, len(ops), eqn)
        ctx.enter(number, eqn)
        # A product that is only summed has no tensor of its own: see `Context.pending`.
        for var, tensor in zip(eqn.outputs, _results(ctx, eqn), strict=False):
            ctx.values[var.id] = tensor


def _results(ctx: Context, eqn: Equation) -> list[Tensor]:
    nothing = all(v.size == 0 for v in eqn.outputs)
    row = PRIMITIVES[eqn.name]
    if nothing or row.zero_if_empty and any(0 in v.shape for v in eqn.inputs):
        return [ctx.zero(v) for v in eqn.outputs]
    return row.lower(ctx, eqn)
