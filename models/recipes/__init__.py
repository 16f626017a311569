"""Whole jobs: pre-train, fine-tune, distil, export."""
