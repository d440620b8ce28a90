"""Checkpoints in, evidence out: chat, exact match, likelihood, pictures."""
