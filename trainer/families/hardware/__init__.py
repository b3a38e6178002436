"""What a model does to fit a device: blocks that wait or are recomputed, fewer bits, and faster kernels."""
