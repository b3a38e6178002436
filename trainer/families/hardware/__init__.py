"""Fit a model to a device: blocks that wait or are recomputed, fewer bits, and faster kernels."""
