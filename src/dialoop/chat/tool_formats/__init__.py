"""How tools are spelt for checkpoints whose own template knows none, one form a file."""
