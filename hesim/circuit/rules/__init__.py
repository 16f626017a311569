"""Rules: functions from tensors to kernels, which the rows of `hesim.primitives` name."""
