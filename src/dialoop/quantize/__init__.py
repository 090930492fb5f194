"""Quantization: weights in fewer bits, layer by layer, checked against where they came from."""
