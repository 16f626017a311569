"""Machines that execute Circuits, one a file; `protocol` says what a machine can do."""

__all__ = ["protocol", "pyfhel", "slots"]
