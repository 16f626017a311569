"""The transformer as Flax NNX modules."""
