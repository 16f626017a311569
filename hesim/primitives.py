"""The primitives that encrypted values may pass through."""

from __future__ import annotations

__all__ = ["IDENTITIES", "SUPPORTED"]

IDENTITIES = frozenset(
    {
        "copy",
        "copy_p",
        "device_put",
        "name",
        "reshard",
        "layout_constraint",
        "stop_gradient",
        "optimization_barrier",
        "sharding_constraint",
        "reduce_precision",
    }
)
"""Primitives that leave encrypted values as they are."""

SUPPORTED = IDENTITIES | {
    *("add", "add_any", "sub", "neg", "mul", "square", "integer_pow", "div", "dot_general"),
    *("reduce_sum", "reduce_prod", "cumsum", "broadcast_in_dim", "reshape", "transpose"),
    *("slice", "dynamic_slice", "squeeze", "expand_dims", "concatenate", "split", "stack", "tile"),
    *("pad", "rev", "gather", "scatter", "scatter-add", "select_n", "conv_general_dilated"),
    *("convert_element_type", "polynomial", "refresh", "dynamic_update_slice"),
}
"""Primitives that encrypted values may pass through."""
