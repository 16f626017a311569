"""What models read: data sets, tokens, tasks, batches by length."""
