"""Noise formulas beside measured errors, operation by operation."""
