"""Adapter files that settings name: by a path, or by their name on the Hugging Face Hub. Offline."""

from pathlib import Path

from trainer.base_models import detect, hub
from trainer.errors import UserError


def find(name: str) -> Path:
    """Return the path of an adapter file; `name` is a path, or owner/name/file.safetensors for one from the hub.

    Raises:
        UserError: it is not there, or not downloaded.
    """
    path = Path(name).expanduser()
    if detect.is_here(name) and path.is_file():
        return path
    if hub.NAME.fullmatch(name):
        if cached := hub.cached(name):
            return cached
        raise UserError(
            "The adapter {name!r} is not on this machine.",
            "Download it with: limner download {name}. Or give the path of a .safetensors file.",
            name=name,
        )
    raise UserError("The adapter {name!r} is not there.", "Give the path of a .safetensors file.", name=path.name[:100])
