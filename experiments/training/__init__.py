"""Jobs that make a model: pre-train, publish, convert, distil, fine-tune, and evaluate it."""
