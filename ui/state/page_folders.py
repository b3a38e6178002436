"""The folder of sample images, which the page fills; and the adapter file of a checkpoint."""

from pathlib import Path

from trainer import paths


def sample_images() -> Path:
    """Folder of the images generated in the Try out tab."""
    return paths.outputs() / ".pictures"
