"""Modules that travel with checkpoints, for tools whose transformers lacks the family."""
