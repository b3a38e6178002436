"""Optimizers and learning-rate schedules: their settings, and what they build. Torch-free until `build()`."""
