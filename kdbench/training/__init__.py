"""Training: the loop (`loop`), its checkpoints and the weights that it ends with (`weights`)."""
