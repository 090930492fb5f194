"""Kernels: attention over packed rows, cross-entropy on labelled rows."""
