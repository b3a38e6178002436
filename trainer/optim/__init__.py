"""Optimizers and learning-rate schedules: settings, and the objects built from them. Torch-free until `build()`."""
