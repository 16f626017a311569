"""Packed plans, run and held against their bare operations and against scripts by hand."""
