"""A compiled program with all that running it takes, as data. Nothing here imports JAX."""
