"""Kernels: one program operation each, as ciphertext operations on laid-out tensors."""
