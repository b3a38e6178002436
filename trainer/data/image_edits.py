"""Rotate, crop and mask images of a dataset. Each original is kept beside them, and every edit is made from it.

So quality is lost once at most, four rotations give back the very file that was added, and every edit can be undone. A
mask, white where the image is learned, is edited with its image, and is whole again when the crop is.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from trainer import foreign_text, storage
from trainer.data import dataset, image_stats, images
from trainer.errors import UserError

ORIGINALS = ".originals"  # folder in a dataset: for each edited image, a folder named by its SHA-256
MAX_MASK_BYTES = 8 * 2**20
SMALLEST_CROP = 16  # pixels of a side that a crop leaves
Box = tuple[int, int, int, int]  # left, top, right, bottom
_TURNS = {1: Image.Transpose.ROTATE_270, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_90}
_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},
}
_ORIGINAL, _MASK, _EDIT = "original", "mask.png", "edit.json"


@dataclass(frozen=True)
class Edit:
    """Edit of an upright original: a crop to a box, then quarter turns clockwise. Without a box, all stays."""

    turns: int = 0
    box: Box | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Edit":
        """Read an edit that was stored as `asdict` returns it."""
        return cls(values["turns"], tuple(values["box"]) if values["box"] else None)

    def rotated(self, turns: int) -> "Edit":
        """Return this edit with more quarter turns."""
        return Edit((self.turns + turns) % 4, self.box)

    def cropped(self, box: Box, size: tuple[int, int]) -> "Edit":
        """Return this edit with a crop, whose box refers to the edited image; `size` is that of the original."""
        left, top, right, bottom = self.box or (0, 0, *size)
        wide, high = (right - left, bottom - top) if self.turns % 2 == 0 else (bottom - top, right - left)
        box = (max(0, box[0]), max(0, box[1]), min(wide, box[2]), min(high, box[3]))
        if min(box[2] - box[0], box[3] - box[1]) < SMALLEST_CROP:
            raise UserError("The crop is smaller than {size} pixels.", "Choose a larger part.", size=SMALLEST_CROP)
        for _ in range(self.turns):
            box = (box[1], wide - box[2], box[3], wide - box[0])
            wide, high = high, wide
        whole = (left + box[0], top + box[1], left + box[2], top + box[3])
        return Edit(self.turns, None if whole == (0, 0, *size) else whole)

    def apply(self, image: Image.Image) -> Image.Image:
        """Return the edited image."""
        if self.box:
            image = image.crop(self.box)
        return image.transpose(_TURNS[self.turns]) if self.turns else image


def edited(folder: Path) -> set[str]:
    """Return the names of the images that have an original to go back to."""
    kept = {path.name for path in (folder / ORIGINALS).glob("*") if path.is_dir()}
    if not kept:
        return set()
    return {path.name for path in dataset.image_files(folder) if _sha256(path, image_stats.stamp(path)) in kept}


def current(path: Path) -> Edit:
    """Return how an image differs from its original; `Edit()` if it is the original, or another program changed it."""
    kept = _kept(path)
    return kept[1] if kept else Edit()


def crop(path: Path, box: Box) -> Edit:
    """Return the edit of an image with a crop of it as it is now; `change` makes it.

    Raises:
        UserError: the crop is too small, or the image is damaged.
    """
    return current(path).cropped(box, images.upright(_original(path)).size)


def change(path: Path, edit: Edit) -> None:
    """Edit an image and its mask, from the original. Name, caption and order stay.

    Raises:
        UserError: the image is gone or damaged.
        OSError: as `storage.write`; then the image and its original are as they were.
    """
    with dataset.captions_lock(path.parent):
        dataset.check_present(path)
        kept, old, original = _kept(path), current(path), _original(path)
        data = original if edit == Edit() else _rendered(original, edit)
        sha256 = hashlib.sha256(data).hexdigest()
        whole = _whole_mask(path, kept[0] if kept else None, old, original)
        target = path.parent / ORIGINALS / sha256
        if edit != Edit():
            storage.write_folder(target, lambda part: _keep(part, original, whole, edit))
        storage.write(path, data)
        if whole:
            storage.write(dataset.mask_file(path), images.png(edit.apply(whole)))
        if kept and kept[0] != target and not _is_used(path.parent, kept[0].name):
            storage.remove_folder(kept[0])


def _is_used(folder: Path, sha256: str) -> bool:
    """Return True if another image of the dataset has the same content, and so the same original."""
    return any(_sha256(path, image_stats.stamp(path)) == sha256 for path in dataset.image_files(folder))


@lru_cache(maxsize=20_000)
def _sha256(path: Path, _stamp: image_stats.Stamp) -> str:
    return storage.sha256(path)


def _kept(path: Path) -> tuple[Path, Edit] | None:
    """Return the folder with the original of an image, and how the image was made from it."""
    folder = path.parent / ORIGINALS / storage.sha256(path)
    values = foreign_text.read_own_json(folder / _EDIT)
    if values is None or not (folder / _ORIGINAL).is_file():
        return None
    return folder, Edit.of(values)


def _original(path: Path) -> bytes:
    kept = _kept(path)
    return (kept[0] / _ORIGINAL if kept else path).read_bytes()


def _keep(folder: Path, original: bytes, mask: Image.Image | None, edit: Edit) -> None:
    storage.write(folder / _ORIGINAL, original)
    if mask:
        storage.write(folder / _MASK, images.png(mask))
    storage.write(folder / _EDIT, json.dumps(asdict(edit)))


def _rendered(original: bytes, edit: Edit) -> bytes:
    """Return the edited image in the format of the original, without its metadata but the color profile."""
    image = images.upright(original)
    with Image.open(io.BytesIO(original), formats=images.FORMATS) as header:
        form = "JPEG" if header.format == "MPO" else str(header.format)
    buffer = io.BytesIO()
    options = {"icc_profile": image.info.get("icc_profile"), "exif": b"", **_OPTIONS.get(form, {})}
    edit.apply(image).save(buffer, form, **options)
    return buffer.getvalue()


def _whole_mask(path: Path, kept: Path | None, old: Edit, original: bytes) -> Image.Image | None:
    """Return the mask of an original: that of the image as it is now, and around its crop what was there before."""
    data = dataset.read_mask(path)
    if not data:
        return None
    size = images.upright(original).size
    whole = Image.new("L", size, 255)
    if kept and (kept / _MASK).is_file():
        whole = images.decode((kept / _MASK).read_bytes()).convert("L")
    left, top, right, bottom = old.box or (0, 0, *size)
    part = Edit().rotated(-old.turns).apply(images.decode(data).convert("L"))
    whole.paste(part.resize((right - left, bottom - top)), (left, top))
    return whole


def rotations(folder: Path, names: Sequence[str], turns: int) -> dict[str, Edit]:
    """Return the edits that rotate images by quarter turns clockwise, by name."""
    return {name: current(folder / name).rotated(turns) for name in names}


def mask_from_drawing(png: bytes) -> bytes:
    """Return a mask that was drawn in the page, as a grayscale PNG; b"" if nothing is left out.

    Raises:
        UserError: it is not a PNG, damaged, or too large.
    """
    if len(png) > MAX_MASK_BYTES:
        raise UserError("The mask is too large.", "Draw it with a larger brush.")
    mask = images.upright(png, formats=("PNG",)).convert("L")
    if mask.getextrema() == (255, 255):
        return b""
    return images.png(mask)


def mask_from_transparency(image: Path) -> bytes:
    """Return the mask that leaves out what is transparent in an image; b"" if nothing is.

    Raises:
        UserError: the image is damaged.
    """
    alpha = images.alpha_channel(image.read_bytes())
    return b"" if alpha is None else images.png(alpha)


def masks_from_transparency(paths: Iterable[Path]) -> dict[str, bytes]:
    """Return masks of transparent images that have none yet, by the names of the images."""
    masks = {path.name: mask_from_transparency(path) for path in paths if not dataset.read_mask(path)}
    return {name: mask for name, mask in masks.items() if mask}


def write_mask(image: Path, mask: bytes) -> None:
    """Write the mask of an image, or remove it if it is b"".

    Raises:
        UserError: the image is gone.
    """
    dataset.check_present(image)
    path = dataset.mask_file(image)
    if mask:
        storage.write(path, mask)
    else:
        storage.remove(path)
