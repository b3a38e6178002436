"""Checkpoint folders of a run: complete or absent, with a checksum for each file. Torch-free.

`checkpoints/000500/` holds `adapter.safetensors` (the weights that would be exported in fp32, in the format that other
programs load, so that every checkpoint can be tried), `optimizer.safetensors` (the trained tensors as the optimizer
steps them, and its state for each) and `manifest.json`. Nothing is pickled. Of a checkpoint that was removed since,
`adapters/000500.safetensors` may be left.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from trainer import foreign_text, storage
from trainer.runs.run import Run

FOLDER = "checkpoints"
ADAPTER = "adapter.safetensors"
OPTIMIZER = "optimizer.safetensors"
MANIFEST = "manifest.json"
KEPT = "adapters"


def folders(run: Run) -> list[Path]:
    """List the checkpoint folders of a run by step, the oldest first; half-written ones do not count."""
    root = run.folder / FOLDER
    if not root.is_dir():
        return []
    return sorted((folder for folder in root.iterdir() if folder.name.isdigit()), key=lambda folder: int(folder.name))


def adapter_file(run: Run, step: int) -> Path:
    """Path of the adapter as it was after a step: that of the checkpoint, or what is left of it."""
    file = run.folder / FOLDER / f"{step:06d}" / ADAPTER
    return file if file.is_file() else kept_adapter(run, step)


def kept_adapter(run: Run, step: int) -> Path:
    """Path of the adapter of a checkpoint that was removed."""
    return run.folder / KEPT / f"{step:06d}.safetensors"


def kept_adapters(run: Run) -> list[Path]:
    """List the adapters of checkpoints that were removed, by step."""
    return sorted((run.folder / KEPT).glob("*.safetensors"))


def is_intact(folder: Path) -> bool:
    """Return True if all files of a checkpoint have the checksums in its manifest."""
    return not damaged(folder)


def damaged(folder: Path) -> list[str]:
    """Return the names of the files of a checkpoint that are missing or differ from the checksums in its manifest.

    The manifest's own checksum is missing in checkpoints of older versions.
    """
    try:
        manifest = read_manifest(folder)
        checksums = manifest["sha256"]
        own = checksums.pop(MANIFEST, "")
        if own not in ("", checksum(manifest)) or not {ADAPTER, OPTIMIZER} <= checksums.keys():
            return [MANIFEST]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [MANIFEST]
    return [name for name, expected in checksums.items() if not _has(folder / name, expected)]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint.

    Raises:
        OSError: it has none.
        ValueError: it is not JSON.
    """
    manifest: dict[str, Any] = foreign_text.read_json(folder / MANIFEST, most=foreign_text.MAX_OWN)
    return manifest


def checksum(manifest: dict[str, Any]) -> str:
    """Return the checksum of a manifest without its own, which is added afterwards."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _has(file: Path, expected: object) -> bool:
    try:
        return storage.sha256(file) == expected
    except OSError:
        return False
