"""`hesim encrypted-finetune`: fine-tuning on encrypted sentences and labels, rehearsed and run."""

__all__ = ["KIND"]

KIND = "encrypted training"
"""What a run folder's settings say that it is of."""
