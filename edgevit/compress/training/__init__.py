"""Training: data, loop, checkpoints, logs."""
