"""Record what made an image in the text chunks of its PNG file."""

import io
import json
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainer import storage
from trainer.base_models import MICRO, detect
from trainer.config import PictureConfig
from trainer.runs import archive


def write(path: Path, image: Image.Image, picture: PictureConfig) -> None:
    """Save a picture with what made it in its text, but no path: once as A1111 writes it, once to be read back."""
    text = PngInfo()
    told = picture.model_dump(exclude={"out", "base", "adapters"})
    told["base"] = picture.base if picture.base == MICRO or detect.is_hub_name(picture.base) else MICRO
    told["adapters"] = [(archive.known_as(Path(file)), strength) for file, strength in picture.adapters]
    text.add_text("limner", json.dumps(told))
    adapters = ", ".join(f"{Path(file).name}:{strength:g}" for file, strength in picture.adapters)
    text.add_text(
        "parameters",
        f"{picture.prompt}\nNegative prompt: {picture.negative}\n"
        f"Steps: {picture.steps}, CFG scale: {picture.guidance:g}, "
        f"Seed: {picture.seed}, Size: {image.width}x{image.height}, Adapters: {adapters or 'none'}",
    )
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=text)
    storage.write(path, buffer.getvalue())
