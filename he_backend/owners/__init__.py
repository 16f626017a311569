"""Two owners: an evaluator with the model, and a key holder with the data, on one host or two."""
