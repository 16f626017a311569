"""Measurements: each prints seconds and ratios from one run, and asserts nothing about time."""
