"""Image statistics of a dataset: sharpness, similarity, background. Each image is measured once.

They are kept in the dataset's cache, by name, size and time of the file, so that editing captions costs nothing.
"""

import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer import foreign_text, paths, storage
from trainer.data import dataset, images
from trainer.errors import UserError

SIDE = 512  # pixels at which sharpness is measured
CELLS = 8  # of the small version by which images are compared
TILES = 4
BOX = 9  # pixels that are averaged to blur an image once more
MAX_BITS, MAX_COLOR_DISTANCE = 10, 5.0  # between near duplicates: of 128 bits, and of 255
STEP = 2  # of 255: brightness has to grow by more than noise does
SAME_BACKGROUND, PLAIN = 14.0, 8.0  # of 255
THREADS = min(8, os.cpu_count() or 1)
Grayscale = np.ndarray[Any, np.dtype[np.float32]]
FILE = "measurements.json"  # in the cache
_VERSION = 2
_WRITING = threading.Lock()


@dataclass(frozen=True)
class ImageStats:
    """Statistics of one image.

    `shape` is a difference hash of 128 bits and `colours` an 8 x 8 version in RGB, both in hex; `blur` goes from 0,
    sharp, to 1; `opaque` is the share of opaque pixels.
    """

    shape: str
    colours: str
    blur: float
    opaque: float

    @cached_property
    def is_blank(self) -> bool:
        """True if the image shows a single color."""
        colors = self.grid.reshape(-1, 3)
        return not int(self.shape, 16) and int((colors.max(0) - colors.min(0)).max()) <= STEP

    @property
    def grid(self) -> np.ndarray[Any, np.dtype[np.int16]]:
        """The colors of the small version, [cells, cells, 3]."""
        colors = np.frombuffer(bytes.fromhex(self.colours), dtype=np.uint8)
        return colors.reshape(CELLS, CELLS, 3).astype(np.int16)


@dataclass(frozen=True)
class Known:
    """Statistics of the images of a dataset as they are now.

    `stats` are by name; `damaged` are the names of images that could not be decoded when they were measured, and have
    not changed since; `missing` are not measured yet.
    """

    stats: dict[str, ImageStats]
    damaged: set[str]
    missing: list[Path]


def look(folder: Path) -> Known:
    """Compare the images of a dataset with what is stored of them."""
    stored, result = _stored(folder), Known({}, set(), [])
    for path in dataset.image_files(folder):
        file_stamp, stats = stored.get(path.name, ((), None))
        if file_stamp != stamp(path):
            result.missing.append(path)
        elif stats:
            result.stats[path.name] = stats
        elif path.name in stored:
            result.damaged.add(path.name)
    return result


def known(folder: Path) -> dict[str, ImageStats]:
    """Return the stored statistics of the images that are there now, by name."""
    return look(folder).stats


def measure_missing(folder: Path, limit: int = 100_000) -> dict[str, ImageStats]:
    """Measure the images that have not been measured yet, at most `limit`; return the statistics of all."""
    new = look(folder).missing[:limit]
    if new:
        with ThreadPoolExecutor(THREADS) as pool:  # Pillow and NumPy release the GIL while they compute
            measured = dict(zip(new, pool.map(_try_to_measure, new), strict=True))
        with _WRITING:
            existing = {path.name for path in dataset.image_files(folder)}
            entries = {name: entry for name, entry in _stored(folder).items() if name in existing}
            entries |= {path.name: (stamp(path), stats) for path, stats in measured.items()}
            _keep(folder, entries)
    return known(folder)


def measure(data: bytes) -> ImageStats:
    """Measure an image.

    Raises:
        UserError: it is not an image.
    """
    image, opaque = images.downscale(data, SIDE)
    gray = np.asarray(image.convert("L"), dtype=np.float32)
    small = np.asarray(image.resize((CELLS, CELLS), Image.Resampling.BOX), dtype=np.uint8)
    return ImageStats(_difference_hash(image), small.tobytes().hex(), blur(gray), round(opaque, 4))


def _try_to_measure(path: Path) -> ImageStats | None:
    try:
        return measure(path.read_bytes())
    except (UserError, OSError):
        return None


def _difference_hash(image: Image.Image) -> str:
    """Hash an image by where brightness grows to the right and downwards on a coarse grid; near duplicates share it."""
    gray = image.convert("L")
    wide, high = (
        np.asarray(gray.resize(size, Image.Resampling.BOX), dtype=np.int16)
        for size in ((CELLS + 1, CELLS), (CELLS, CELLS + 1))
    )
    bits = np.concatenate([(np.diff(wide, axis=1) > STEP).ravel(), (np.diff(high, axis=0) > STEP).ravel()])
    return np.packbits(bits).tobytes().hex()


def blur(gray: Grayscale) -> float:
    """Measure the blur of an image [h, w] in 0..255 in its sharpest part, 0 to 1.

    Crete et al. 2007, "The blur effect" (section 2): a blurred image changes little when it is blurred once more.
    Its sharpest part counts, as a face may be sharp before a background that is not meant to be.
    """
    if min(gray.shape) < BOX * TILES:  # too small for parts
        return 0.0
    return round(max(_least_blur(gray), _least_blur(gray.T)), 3)


def _least_blur(gray: Grayscale) -> float:
    """Return the blur along rows of the sharpest tile, of those that have strong edges."""
    edges, lost = np.array(list(_edges(gray))).T
    strong = edges >= 0.5 * max(edges.max(), 1.0)
    blurs = (edges[strong] - lost[strong]) / edges[strong]
    return float(blurs.min()) if blurs.size else 1.0


def _edges(gray: Grayscale) -> Iterator[tuple[float, float]]:
    """For each tile, yield how much neighbors in a row differ, and how much of that blurring takes away."""
    sums = np.cumsum(np.pad(gray, ((0, 0), (BOX // 2 + 1, BOX // 2)), mode="edge"), axis=1)
    soft = (sums[:, BOX:] - sums[:, :-BOX]) / BOX
    steps, soft_steps = np.abs(np.diff(gray, axis=1)), np.abs(np.diff(soft, axis=1))
    lost = np.maximum(0, steps - soft_steps)
    for step_rows, lost_rows in zip(np.array_split(steps, TILES), np.array_split(lost, TILES), strict=True):
        step_tiles, lost_tiles = np.array_split(step_rows, TILES, axis=1), np.array_split(lost_rows, TILES, axis=1)
        for step_tile, lost_tile in zip(step_tiles, lost_tiles, strict=True):
            yield float(step_tile.mean()), float(lost_tile.mean())


def nearest(folder: Path, data: bytes) -> str | None:
    """Return the name of the measured image of a dataset whose colors are most like those of an image; None if none is.

    Raises:
        UserError: it is not an image.
    """
    wanted = measure(data).grid
    distances = {name: int(np.abs(stats.grid - wanted).sum()) for name, stats in known(folder).items()}
    return min(distances, key=lambda name: (distances[name], name), default=None)


# Comparing ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def near_duplicates(measured: tuple[tuple[str, ImageStats], ...]) -> tuple[tuple[str, ...], ...]:
    """Return groups of names of images that look nearly the same."""
    if len(measured) < 2:
        return ()
    bits = np.array([list(bytes.fromhex(stats.shape)) for _, stats in measured], dtype=np.uint8)
    grids = np.array([stats.grid for _, stats in measured])
    group = np.arange(len(measured))
    for number in range(len(measured) - 1):
        distances = np.bitwise_count(bits[number + 1 :] ^ bits[number]).sum(axis=1)
        for other in np.flatnonzero(distances <= MAX_BITS) + number + 1:
            if np.abs(grids[other] - grids[number]).mean() <= MAX_COLOR_DISTANCE:
                group[group == group[other]] = group[number]
    members: dict[int, list[str]] = {}
    for (name, _), label in sorted(zip(measured, group.tolist(), strict=True), key=lambda item: item[1]):
        members.setdefault(label, []).append(name)
    return tuple(tuple(names) for names in members.values() if len(names) > 1)


@lru_cache(maxsize=8)
def shared_background(measured: tuple[tuple[str, ImageStats], ...]) -> tuple[tuple[str, ...], str]:
    """Return the largest group of images with the same background, and its color's name; "" if it is not plain."""
    if len(measured) < 2:
        return (), ""
    borders = np.array([_border(stats) for _, stats in measured])  # [n, cells, 3]
    largest: np.ndarray[Any, Any] = np.zeros(len(measured), dtype=bool)
    for border in borders[: 4 * 64]:
        same = (np.abs(borders - border).max(axis=2) <= SAME_BACKGROUND).mean(axis=1) >= 0.75
        if same.sum() > largest.sum():
            largest = same
    names = tuple(name for (name, _), in_group in zip(measured, largest, strict=True) if in_group)
    middle = np.median(borders[largest].reshape(-1, 3), axis=0)
    is_plain = float(np.median(np.abs(borders[largest] - middle))) <= PLAIN
    return names, color_name(tuple(middle)) if is_plain else ""


def _border(stats: ImageStats) -> np.ndarray[Any, Any]:
    """Return the cells along the top and the upper sides, where the background shows in most images."""
    grid = stats.grid
    sides = grid[1:5, (0, CELLS - 1)].reshape(-1, 3)
    return np.concatenate([grid[0], sides])


def color_name(color: Sequence[float]) -> str:
    """Return the nearest of a dozen colors that captions name."""

    def distance(name: str) -> float:
        return sum((a - b) ** 2 for a, b in zip(COLORS[name], color, strict=True))

    return min(COLORS, key=distance)


COLORS = {
    "white": (250, 250, 250),
    "light gray": (200, 200, 200),
    "gray": (128, 128, 128),
    "black": (15, 15, 15),
    "red": (200, 40, 40),
    "orange": (240, 150, 40),
    "yellow": (240, 225, 70),
    "green": (60, 160, 70),
    "teal": (40, 150, 150),
    "blue": (50, 90, 200),
    "light blue": (160, 205, 240),
    "purple": (130, 60, 170),
    "pink": (245, 165, 195),
    "brown": (120, 75, 45),
    "beige": (230, 215, 185),
}


# Keeping --------------------------------------------------------------------------------------------------------

Stamp = tuple[int, ...]
Entries = dict[str, tuple[Stamp, ImageStats | None]]


def stamp(path: Path) -> Stamp:
    """Return size and time of a file, by which a change is recognized; empty if it is not there."""
    try:
        stat = path.stat()
    except FileNotFoundError:  # removed a moment ago
        return ()
    return stat.st_size, stat.st_mtime_ns


def _file(folder: Path) -> Path:
    return folder / paths.CACHE / FILE


def _stored(folder: Path) -> Entries:
    try:
        return _load(_file(folder), _file(folder).stat().st_mtime_ns)
    except OSError:
        return {}


@lru_cache(maxsize=8)
def _load(path: Path, _changed: int) -> Entries:
    data = foreign_text.read_own_json(path)
    try:
        pictures = data["pictures"] if data["version"] == _VERSION else {}
        return {
            name: (tuple(file_stamp), ImageStats(**values) if values else None)
            for name, (file_stamp, values) in pictures.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):  # not as `_keep` writes it: measured again
        return {}


def _keep(folder: Path, entries: Entries) -> None:
    path = paths.make_cache(folder) / FILE
    values = {name: (file_stamp, stats and asdict(stats)) for name, (file_stamp, stats) in entries.items()}
    storage.write(path, json.dumps({"version": _VERSION, "pictures": values}))
