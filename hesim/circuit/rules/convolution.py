"""Rule of convolutions with public weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hesim.circuit.context import Context
from hesim.circuit.kernels import linear, matmul
from hesim.circuit.layout import Tensor
from hesim.circuit.rules.contraction import check_size
from hesim.program import Equation

__all__ = ["convolution"]


def convolution(ctx: Context, eqn: Equation) -> list[Tensor]:
    """A convolution is a move to patches and a product by the flattened kernel."""
    (var,), (x, kernel) = eqn.outputs, eqn.inputs
    p = eqn.params
    spec = p["dimension_numbers"]
    groups = p["feature_group_count"]
    t = ctx.tensor(x)
    node, column = (
        np.expand_dims(a, t.batch_axis) if t.batch_axis is not None else a
        for a in (t.node, t.column)
    )
    places: np.ndarray = np.arange(node.size).reshape(node.shape)
    places = places.transpose(spec.lhs_spec)  # N C spatial
    if p["batch_group_count"] > 1:  # groups of the batch are groups of features of a smaller batch
        groups = p["batch_group_count"]
        members, features, rest = places.shape[0], places.shape[1], places.shape[2:]
        places = places.reshape(groups, members // groups, features, *rest)
        places = np.moveaxis(places, 0, 1).reshape(members // groups, groups * features, *rest)
    patches = _patches(places, kernel.shape, spec.rhs_spec, p)  # N C out-spatial kernel-spatial
    batch, channels = patches.shape[:2]
    spatial = patches.shape[2 : 2 + len(spec.lhs_spec) - 2]
    taps = int(np.prod(patches.shape[2 + len(spatial) :], dtype=np.int64))
    per_group = channels // groups
    patches = patches.reshape(batch, groups, per_group, int(np.prod(spatial, dtype=np.int64)), taps)
    operand, index, stride = ctx.public(kernel, kernel.shape, None)
    coefficients = linear.Coefficients(operand, stride)
    weights = index.transpose(spec.rhs_spec)  # out in spatial
    outs = weights.shape[0] // groups
    weights = weights.reshape(groups, outs, per_group * taps)
    flat_node = np.r_[node.reshape(-1), -1].astype(np.int64)
    flat_column = np.r_[column.reshape(-1), 0].astype(np.int64)
    made_all, at_all = [], []
    for g in range(groups):
        rows = patches[:, g].transpose(0, 2, 1, 3).reshape(-1, per_group * taps)
        weight = np.broadcast_to(weights[g][None], (len(rows), outs, per_group * taps))
        check_size(ctx, weight.size)
        made, at = matmul.apply(
            ctx.b, ctx.source, flat_node[rows], flat_column[rows], weight, coefficients
        )
        made_all.append(made.reshape(batch, -1, outs))
        at_all.append(at.reshape(batch, -1, outs))
    inverse = np.argsort(spec.out_spec)

    def shaped(parts: Sequence[np.ndarray]):
        whole = np.concatenate(parts, axis=2).transpose(0, 2, 1).reshape(batch, -1, *spatial)
        whole = whole.transpose(inverse)
        return whole if t.batch_axis is None else whole.take(0, axis=ctx.axis(var))

    return [ctx.result(var, shaped(made_all), shaped(at_all), t.gain)]


def _patches(
    places: np.ndarray, kernel_shape: Sequence[int], rhs_spec: Sequence[int], p: Mapping[str, Any]
) -> np.ndarray:
    """Indices under each kernel tap: (N, C, *out spatial, *kernel spatial), -1 outside."""
    dims = places.ndim - 2
    for k in range(dims):
        axis = 2 + k
        spread = p["lhs_dilation"][k]
        if spread > 1:
            shape = list(places.shape)
            shape[axis] = (shape[axis] - 1) * spread + 1
            wide = np.full(shape, -1, places.dtype)
            wide[
                tuple(
                    slice(None, None, spread) if a == axis else slice(None)
                    for a in range(places.ndim)
                )
            ] = places
            places = wide
        low, high = p["padding"][k]
        pads = [(0, 0)] * places.ndim
        pads[axis] = (max(low, 0), max(high, 0))
        places = np.pad(places, pads, constant_values=-1)
        cut = slice(max(-low, 0), places.shape[axis] - max(-high, 0))
        places = places[tuple(cut if a == axis else slice(None) for a in range(places.ndim))]
    extent = [kernel_shape[d] for d in rhs_spec[2:]]
    for k in range(dims):
        reach = (extent[k] - 1) * p["rhs_dilation"][k] + 1
        count = (places.shape[2 + k] - reach) // p["window_strides"][k] + 1
        at = (
            np.arange(count)[:, None] * p["window_strides"][k]
            + np.arange(extent[k]) * p["rhs_dilation"][k]
        )
        places = np.take(places, at.reshape(-1), axis=2 + k)
        shape = places.shape
        places = places.reshape(*shape[: 2 + k], count, extent[k], *shape[3 + k :])
        places = np.moveaxis(places, 3 + k, -1)
    return places
