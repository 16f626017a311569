"""Training: steps, loops, optimizers, checkpoints, several devices."""
