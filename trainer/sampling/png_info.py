"""Record how an image was generated in the text chunks of its PNG file, and read it back."""

import io
import json
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainer import foreign_text, storage
from trainer.base_models import detect
from trainer.config import PictureConfig
from trainer.data.images import png_chunks
from trainer.data.location import PNG_SIGNATURE
from trainer.runs import archive

KEY = "limner"
MAX_TEXT = 2**18  # bytes
MAX_CHUNKS = 1000  # before the pixels


def write(path: Path, image: Image.Image, request: PictureConfig) -> str:
    """Save an image with its request, but without paths: once as A1111 writes it, once to be read back.

    Returns the SHA-256 of the file.
    """
    text = PngInfo()
    text.add_text(KEY, json.dumps(_published(request)))
    adapters = ", ".join(f"{Path(file).name}:{strength:g}" for file, strength in request.adapters)
    clip_skip = f"Clip skip: {request.clip_skip}, " if request.clip_skip > 1 else ""
    text.add_text(
        "parameters",
        f"{request.prompt}\nNegative prompt: {request.negative}\n"
        f"Steps: {request.steps}, CFG scale: {request.guidance:g}, {clip_skip}"
        f"Seed: {request.seed}, Size: {image.width}x{image.height}, Adapters: {adapters or 'none'}",
    )
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=text)
    return storage.write(path, buffer.getvalue())


def _published(request: PictureConfig) -> dict[str, Any]:
    """Return the settings of a request without paths: a base model on this machine is called by its name alone."""
    settings = request.model_dump(exclude={"out", "base", "vae", "adapters"})
    settings["base"] = request.base if detect.is_hub_name(request.base) else Path(request.base).name
    settings["adapters"] = [[archive.display_name(Path(file)), strength] for file, strength in request.adapters]
    return settings


def matches(path: Path, request: PictureConfig) -> bool:
    """Return True if a PNG file is that of a request, as far as it says: not if it was edited, or of which file."""
    recorded, settings = read(path), _published(request)
    return all(settings.get(name) == value for name, value in foreign_text.parse_json(recorded or "{}").items())


def read(path: Path) -> str:
    """Return the settings in a PNG file that `write` saved, as JSON; "" if there are none.

    The file may come from anywhere: only what is before its pixels is looked at, and nothing is decoded.
    """
    with path.open("rb") as file:
        if file.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
            return ""
        for kind, length in islice(png_chunks(file), MAX_CHUNKS):
            if kind == b"IDAT":
                break
            if kind == b"tEXt" and length <= MAX_TEXT:
                key, _, text = file.read(length).partition(b"\0")
                if key == KEY.encode():
                    return text.decode("latin-1")
    return ""
