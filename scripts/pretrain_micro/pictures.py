"""Read the drawn pictures, mapped into memory, and save pictures as a grid."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Attributes = dict[str, Any]
"""Attributes of one picture, as world.mjs wrote them."""


@dataclass(frozen=True)
class Pictures:
    """A set of equally large pictures; the pixels stay on disk until asked for."""

    pixels: np.ndarray[Any, np.dtype[np.uint8]]  # n, height, width, 3
    attributes: list[Attributes]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.attributes)

    def tensor(self, indices: list[int] | slice) -> Tensor:  # n, 3, height, width in [-1, 1]
        """Return the pictures at these indices as input for the models."""
        pixels = torch.from_numpy(np.array(self.pixels[indices]))
        return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def read_pictures(folder: Path, name: str, size: int) -> Pictures:
    """Open a set that draw_world.mjs has written."""
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    pixels = np.memmap(folder / f"{name}.rgb", np.uint8, "r", shape=(len(lines), size, size, 3))
    return Pictures(pixels, [json.loads(line) for line in lines])


def save_grid(images: Tensor, columns: int, path: Path) -> None:  # images: n, 3, height, width in [-1, 1]
    """Write pictures side by side as one PNG."""
    gap = 2
    bytes_ = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    count, height, width, _ = bytes_.shape
    rows = -(-count // columns)
    canvas = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, picture in enumerate(bytes_):
        row, column = divmod(index, columns)
        canvas.paste(Image.fromarray(picture), (column * (width + gap), row * (height + gap)))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, optimize=True)
