"""Record how an image was generated in the text chunks of its PNG file."""

import io
import json
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainer import storage
from trainer.base_models import MICRO, detect
from trainer.config import PictureConfig
from trainer.runs import archive


def write(path: Path, image: Image.Image, request: PictureConfig) -> str:
    """Save an image with its request, but without paths: once as A1111 writes it, once to be read back.

    Returns the SHA-256 of the file.
    """
    text = PngInfo()
    settings = request.model_dump(exclude={"out", "base", "vae", "adapters"})
    settings["base"] = request.base if detect.is_hub_name(request.base) else MICRO
    settings["adapters"] = [(archive.display_name(Path(file)), strength) for file, strength in request.adapters]
    text.add_text("limner", json.dumps(settings))
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
