"""Folders that the page itself fills: sample images and adapter files; and the adapter file of a checkpoint."""

from pathlib import Path

from trainer import paths
from trainer.runs import Run


def sample_images() -> Path:
    """Folder of the images generated in the Try out tab."""
    return paths.outputs() / ".pictures"


def adapters() -> Path:
    """Folder of adapter files that were dropped on the page or written by a tool."""
    return paths.outputs() / ".adapters"


def checkpoint_file(run: Run, step: int) -> Path:
    """Path of the adapter in a checkpoint."""
    return run.folder / "checkpoints" / f"{step:06d}" / "adapter.safetensors"
