"""Client, server and workers: who holds what, and how they speak."""
