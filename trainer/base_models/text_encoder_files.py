"""Text encoders in files of their own, beside a base model in a single file that lacks them."""

from pathlib import Path


def find(base: Path, name: str) -> Path | None:
    """Return the file beside a single file whose name begins with that of a text encoder, such as `clip_l`."""
    files = sorted(base.parent.glob(f"{name}*.safetensors")) if name else []
    return next((file for file in files if file != base), None)
