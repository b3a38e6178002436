"""Image statistics of a dataset: sharpness, similarity, background. Each image is measured once.

The numbers lie in the data set's cache, by name, size and time of the file, so a change of captions costs nothing.
"""

import itertools
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer import storage
from trainer.data import dataset, images
from trainer.errors import UserError

SIDE = 512  # pixels at which sharpness is looked at
CELLS = 8  # of the small version by which pictures are compared
TILES = 4
BOX = 9  # pixels over which is averaged to blur a picture once more
ALIKE_BITS, ALIKE_COLOURS = 10, 5.0  # of 128 bits, and of 255
STEP = 2  # of 255: brightness has to grow by more than noise does
SAME_BACKDROP, PLAIN = 14.0, 8.0  # of 255
THREADS = 2
Grey = np.ndarray[Any, np.dtype[np.float32]]
_VERSION = 1
_WRITING = threading.Lock()


@dataclass(frozen=True)
class Measurement:
    """The numbers of one picture.

    `shape` is a difference hash of 128 bits and `colours` an 8 x 8 version in RGB, both in hex; `blur` goes from 0,
    sharp, to 1; `opaque` is the share of pixels that can be seen.
    """

    shape: str
    colours: str
    blur: float
    opaque: float


def known(folder: Path) -> dict[str, Measurement]:
    """Return the stored statistics of the images that are there now, by name."""
    stored = _stored(folder)
    return {
        path.name: entry[1]
        for path in dataset.pictures(folder)
        if (entry := stored.get(path.name)) and entry[0] == stamp(path) and entry[1]
    }


def missing(folder: Path) -> list[Path]:
    """The pictures that have not been measured yet."""
    stored = _stored(folder)
    return [path for path in dataset.pictures(folder) if stored.get(path.name, ((), None))[0] != stamp(path)]


def complete(folder: Path, limit: int = 100_000) -> dict[str, Measurement]:
    """Measure what is missing, at most so many pictures; returns all that is known then."""
    paths = missing(folder)[:limit]
    if paths:
        with ThreadPoolExecutor(THREADS) as pool:  # Pillow and NumPy let go of the interpreter while they compute
            found = dict(zip(paths, pool.map(_measured, paths), strict=True))
        with _WRITING:
            there = {path.name for path in dataset.pictures(folder)}
            entries = {name: entry for name, entry in _stored(folder).items() if name in there}
            entries |= {path.name: (stamp(path), one) for path, one in found.items()}
            _keep(folder, entries)
    return known(folder)


def is_blank(one: Measurement) -> bool:
    """Tell whether an image shows a single color, judged on a small version of it."""
    colours = np.frombuffer(bytes.fromhex(one.colours), dtype=np.uint8).reshape(-1, 3).astype(np.int16)
    return not int(one.shape, 16) and int((colours.max(0) - colours.min(0)).max()) <= STEP


def measure(data: bytes) -> Measurement:
    """The numbers of a picture.

    Raises:
        UserError: it is no picture.
    """
    image, opaque = images.shrunk(data, SIDE)
    grey = np.asarray(image.convert("L"), dtype=np.float32)
    return Measurement(_shape(image), _colours(image).tobytes().hex(), blur(grey), round(opaque, 4))


def _measured(path: Path) -> Measurement | None:
    try:
        return measure(path.read_bytes())
    except (UserError, OSError):
        return None


def _shape(image: Image.Image) -> str:
    """Hash an image by where brightness grows to the right and downwards on a coarse grid; near copies share it."""
    wide, high = (
        np.asarray(image.convert("L").resize(size, Image.Resampling.BOX), dtype=np.int16)
        for size in ((CELLS + 1, CELLS), (CELLS, CELLS + 1))
    )
    bits = np.concatenate([(np.diff(wide, axis=1) > STEP).ravel(), (np.diff(high, axis=0) > STEP).ravel()])
    return np.packbits(bits).tobytes().hex()


def _colours(image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(image.resize((CELLS, CELLS), Image.Resampling.BOX), dtype=np.uint8)


def blur(grey: Grey) -> float:
    """Measure the blur of an image [h, w] in 0..255 in its sharpest part, 0 to 1.

    Crete et al. 2007, "The blur effect" (section 2): a blurred picture changes little when it is blurred once more.
    Its sharpest part counts, as a face may be sharp before a background that is not meant to be.
    """
    if min(grey.shape) < BOX * TILES:  # too small for parts
        return 0.0
    across, down = _kept(grey), _kept(grey.T)
    change = np.array([one[0] for one in across]), np.array([one[0] for one in down])
    left = np.array([one[1] for one in across]), np.array([one[1] for one in down])
    strong = [one >= 0.5 * max(one.max(), 1.0) for one in change]
    found = [1 - (1 - kept[mark] / total[mark]) for total, kept, mark in zip(change, left, strong, strict=True)]
    return round(max((float(one.min()) if one.size else 1.0) for one in found), 3)


def _kept(grey: Grey) -> list[tuple[float, float]]:
    """For each tile: how much neighbours in a row differ, and how much of that is left in a blurred picture."""
    sums = np.cumsum(np.pad(grey, ((0, 0), (BOX // 2 + 1, BOX // 2)), mode="edge"), axis=1)
    soft = (sums[:, BOX:] - sums[:, :-BOX]) / BOX
    sharp_steps, soft_steps = np.abs(np.diff(grey, axis=1)), np.abs(np.diff(soft, axis=1))
    lost = np.maximum(0, sharp_steps - soft_steps)
    found = []
    for rows, lost_rows in zip(np.array_split(sharp_steps, TILES), np.array_split(lost, TILES), strict=True):
        for steps, gone in zip(
            np.array_split(rows, TILES, axis=1), np.array_split(lost_rows, TILES, axis=1), strict=True
        ):
            found.append((float(steps.mean()), float((steps - gone).mean())))
    return found


# Comparing ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def near_copies(pictures: tuple[tuple[str, Measurement], ...]) -> tuple[tuple[str, ...], ...]:
    """Groups of names of pictures that look nearly the same."""
    if len(pictures) < 2:
        return ()
    names = [name for name, _ in pictures]
    bits = np.array([list(bytes.fromhex(one.shape)) for _, one in pictures], dtype=np.uint8)
    cells = np.array([list(bytes.fromhex(one.colours)) for _, one in pictures], dtype=np.int16)
    group = list(range(len(names)))
    for number in range(len(names) - 1):
        apart = np.bitwise_count(bits[number + 1 :] ^ bits[number]).sum(axis=1)
        for place in np.flatnonzero(apart <= ALIKE_BITS) + number + 1:
            if np.abs(cells[place] - cells[number]).mean() <= ALIKE_COLOURS:
                old, new = group[place], group[number]
                group = [new if one == old else one for one in group]
    members = [[name for name, one in zip(names, group, strict=True) if one == label] for label in sorted(set(group))]
    return tuple(tuple(one) for one in members if len(one) > 1)


@lru_cache(maxsize=8)
def shared_backdrop(pictures: tuple[tuple[str, Measurement], ...]) -> tuple[tuple[str, ...], str]:
    """The largest group of pictures with the same background, and its colour in words; "" if it is not plain."""
    if len(pictures) < 2:
        return (), ""
    edges = np.array([_edge(one) for _, one in pictures])  # [n, cells, 3]
    best: np.ndarray[Any, Any] = np.zeros(len(pictures), dtype=bool)
    for one in edges[: 4 * 64]:
        same = (np.abs(edges - one).max(axis=2) <= SAME_BACKDROP).mean(axis=1) >= 0.75
        best = same if same.sum() > best.sum() else best
    names = tuple(name for (name, _), mark in zip(pictures, best, strict=True) if mark)
    middle = np.median(edges[best].reshape(-1, 3), axis=0)
    plain = float(np.median(np.abs(edges[best] - middle))) <= PLAIN
    return names, colour_name(tuple(middle)) if plain else ""


def _edge(one: Measurement) -> np.ndarray[Any, Any]:
    """The cells along the top and the upper sides, where the background shows in most pictures."""
    grid = np.array(list(bytes.fromhex(one.colours)), dtype=np.int16).reshape(CELLS, CELLS, 3)
    sides = [grid[row, column] for row, column in itertools.product(range(1, 5), (0, CELLS - 1))]
    return np.concatenate([grid[0], np.array(sides)])


def colour_name(colour: Sequence[float]) -> str:
    """The nearest of a dozen colours that captions name."""
    return min(COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(COLOURS[name], colour, strict=True)))


COLOURS = {
    "white": (250, 250, 250), "light gray": (200, 200, 200), "gray": (128, 128, 128), "black": (15, 15, 15),
    "red": (200, 40, 40), "orange": (240, 150, 40), "yellow": (240, 225, 70), "green": (60, 160, 70),
    "teal": (40, 150, 150), "blue": (50, 90, 200), "light blue": (160, 205, 240), "purple": (130, 60, 170),
    "pink": (245, 165, 195), "brown": (120, 75, 45), "beige": (230, 215, 185),
}  # fmt: skip


# Keeping --------------------------------------------------------------------------------------------------------

Stamp = tuple[int, ...]
Entries = dict[str, tuple[Stamp, Measurement | None]]


def stamp(path: Path) -> Stamp:
    """Size and time of a file, by which a change of it is seen; empty if it is not there."""
    try:
        stat = path.stat()
    except FileNotFoundError:  # removed a moment ago
        return ()
    return stat.st_size, stat.st_mtime_ns


def _file(folder: Path) -> Path:
    return folder / dataset.CACHE / "measurements.json"


def _stored(folder: Path) -> Entries:
    try:
        return _load(_file(folder), _file(folder).stat().st_mtime_ns)
    except OSError:
        return {}


@lru_cache(maxsize=8)
def _load(path: Path, _changed: int) -> Entries:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] != _VERSION:
            return {}
        return {
            name: (tuple(mark), Measurement(**numbers) if numbers else None)
            for name, (mark, numbers) in data["pictures"].items()
        }
    except (OSError, ValueError, KeyError, TypeError):  # damaged: measured anew
        return {}


def _keep(folder: Path, entries: Entries) -> None:
    path = _file(folder)
    path.parent.mkdir(exist_ok=True)
    pictures = {name: (stamp, asdict(one) if one else None) for name, (stamp, one) in entries.items()}
    storage.write(path, json.dumps({"version": _VERSION, "pictures": pictures}))
