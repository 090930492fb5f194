"""Verification: one model's forms get the same dialogues and must send and say the same."""
