"""The demo: train, run held-out sentences encrypted, compare, and report."""
