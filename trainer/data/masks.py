"""Masks of images: white where the image is learned, black where it is left out."""

from collections.abc import Iterable
from pathlib import Path

from trainer import storage
from trainer.data import dataset, images
from trainer.errors import UserError

MAX_BYTES = 8 * 2**20


def from_drawing(png: bytes) -> bytes:
    """Return a mask that was drawn in the page, as a grayscale PNG; b"" if nothing is left out.

    Raises:
        UserError: it is not a PNG, damaged, or too large.
    """
    if len(png) > MAX_BYTES:
        raise UserError("The mask is too large.", "Draw it with a larger brush.")
    mask = images.upright(png, formats=("PNG",)).convert("L")
    if mask.getextrema() == (255, 255):
        return b""
    return images.png(mask)


def from_transparency(image: Path) -> bytes:
    """Return the mask that leaves out what is transparent in an image; b"" if nothing is.

    Raises:
        UserError: the image is damaged.
    """
    alpha = images.alpha_channel(image.read_bytes())
    return b"" if alpha is None else images.png(alpha)


def all_from_transparency(paths: Iterable[Path]) -> dict[str, bytes]:
    """Return masks of transparent images that have none yet, by the names of the images."""
    masks = {path.name: from_transparency(path) for path in paths if not dataset.read_mask(path)}
    return {name: mask for name, mask in masks.items() if mask}


def write(image: Path, mask: bytes) -> None:
    """Write the mask of an image, or remove it if it is b"".

    Raises:
        UserError: the image is gone.
    """
    if not image.is_file():
        raise UserError("{name} is no longer in this dataset.", "Reload the page.", name=image.name)
    path = dataset.mask_file(image)
    if mask:
        storage.write(path, mask)
    else:
        storage.remove(path)
