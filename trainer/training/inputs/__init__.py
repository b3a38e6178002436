"""Inputs of a run: images and captions, augmented, encoded once, cached, and put together into batches."""
