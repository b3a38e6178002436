"""The folder of sample images, which the page fills; and the adapter file of a checkpoint."""

from pathlib import Path

from trainer import paths
from trainer.runs import Run


def sample_images() -> Path:
    """Folder of the images generated in the Try out tab."""
    return paths.outputs() / ".pictures"


def checkpoint_file(run: Run, step: int) -> Path:
    """Path of the adapter in a checkpoint."""
    return run.folder / "checkpoints" / f"{step:06d}" / "adapter.safetensors"
