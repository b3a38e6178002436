"""Datasets: folders of images and captions, their upload, checks and fixes. Torch-free."""
