"""Batches in, checkpoints out: settings, optimizers, the loop, and the run directory."""
