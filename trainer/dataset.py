"""A data set: a folder of pictures with their captions in `.txt` files beside them; the folder is the truth.

Knows the layout `rin/001.png` + `rin/001.txt` that the tools of the field share, and which bucket a picture goes to.
"""

import codecs
import hashlib
import json
import math
import re
import shutil
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from trainer import files
from trainer.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # a JPEG of several pictures (MPO) opens as its first
MASK = ".mask.png"
CACHE = ".cache"
BIN = ".bin"
MAX_PIXELS = 64_000_000
MAX_CAPTION = 2**20  # bytes of a caption file that are read
LOST = "\ufffd"  # stands where a text has bytes that mean nothing
_SIDEWAYS = {5, 6, 7, 8}
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Example:
    """One picture, as a viewer shows it (`width` x `height` pixels), and its caption."""

    path: Path
    caption: str
    width: int
    height: int

    @property
    def name(self) -> str:
        """The file's name in its folder."""
        return self.path.name


@dataclass(frozen=True)
class Problem:
    """Something in a data set that a person should know; `name` is the file, "" for the whole set."""

    name: str
    message: str
    remedy: str
    fatal: bool = False


def folder_of(dataset: str) -> Path:
    """The folder of a data set given by its name under `datasets/`, or else by a path.

    Raises:
        UserError: there is no such folder.
    """
    folder = files.datasets() / dataset
    if not files.NAME.fullmatch(dataset) or not folder.is_dir():
        folder = Path(dataset).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"There is no data set {Path(dataset).name!r}.",
            f"Known data sets: {', '.join(names()) or 'none yet'}. Add pictures first, or give the path of a folder.",
        )
    return folder


def names() -> list[str]:
    """Names of all data sets, sorted."""
    root = files.datasets()
    return (
        sorted(one.name for one in root.iterdir() if one.is_dir() and files.NAME.fullmatch(one.name))
        if root.is_dir()
        else []
    )


def create(name: str) -> Path:
    """Make sure that a data set of this name exists, and return its folder."""
    folder = files.datasets() / files.check_name(name, "data set")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read_prior(dataset: str) -> tuple[Example, ...]:
    """The examples of the data set of prior pictures; none if it is "".

    Raises:
        UserError: there is no such folder, or there are no pictures in it.
    """
    examples = read(folder_of(dataset)) if dataset else ()
    if dataset and not examples:
        raise UserError("There are no prior pictures in that data set.", "Add some, or leave prior pictures out.")
    return examples


def pictures(folder: Path) -> list[Path]:
    """The picture files of a data set in the order of their names; masks are none, and links are not followed."""
    return sorted(
        one
        for one in folder.iterdir()
        if one.suffix.lower() in SUFFIXES
        and not one.name.startswith(".")
        and not one.name.lower().endswith(MASK)
        and one.is_file()
        and not one.is_symlink()
    )


def read(folder: Path) -> tuple[Example, ...]:
    """All readable examples of a data set, in the order of their names."""
    examples = []
    for path in pictures(folder):
        size = picture_size(path)
        if size is not None:
            examples.append(Example(path, read_caption(path), *size))
    return tuple(examples)


def picture_size(path: Path) -> tuple[int, int] | None:
    """Width and height as a viewer shows the picture (its rotation flag applied), or None if it is no picture."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            sideways = orientation(image) in _SIDEWAYS
    except (OSError, ValueError, SyntaxError, struct.error, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    if width * height > MAX_PIXELS:
        return None
    return (height, width) if sideways else (width, height)


def orientation(image: Image.Image) -> int:
    """How a viewer turns a picture, 1 (not at all) to 8; 1 also where what says so is damaged, in whatever way."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except (OSError, ValueError, SyntaxError, TypeError, LookupError, AttributeError, OverflowError, struct.error):
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def caption_file(picture: Path) -> Path:
    """Where the caption of a picture lies."""
    return picture.with_suffix(".txt")


def mask_file(picture: Path) -> Path:
    """Where the mask of a picture lies, if it has one: white where it is to be learned."""
    return picture.with_suffix(MASK)


def read_captions(picture: Path) -> tuple[str, ...]:
    """Each line of a caption file that says something, as a caption of its own."""
    return tuple(line for line in map(one_line, _read_text(caption_file(picture)).splitlines()) if line)


def read_caption(picture: Path) -> str:
    """The caption of a picture in one line; "" if there is none."""
    return one_line(_read_text(caption_file(picture)))


def _read_text(path: Path) -> str:
    """The text of a file; "" if there is none. Links and what is no file (a pipe would never end) are left alone."""
    if path.is_symlink() or not path.is_file():
        return ""
    with path.open("rb") as file:
        return decode_text(file.read(MAX_CAPTION))


def write_caption(picture: Path, caption: str) -> None:
    """Save the caption of a picture."""
    if not picture.is_file():
        raise UserError(f"{picture.name} is no longer in this data set.", "Reload the page to see what is there.")
    files.write(caption_file(picture), one_line(caption) + "\n")


def one_line(text: str) -> str:
    """Text without line breaks, control characters and outer white space."""
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() or c.isspace() else " " for c in text)).strip()


def decode_text(data: bytes) -> str:
    """Text from UTF-8, from UTF-16 or UTF-32, or else from Windows-1252, which is what old editors write.

    Where the bytes mean nothing in it there is a `LOST`.
    """
    for mark, encoding in ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
                           (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):  # fmt: skip
        if data.startswith(mark):
            return data.decode(encoding, errors="replace")
    for encoding, half in (("utf-16-le", data[1::2]), ("utf-16-be", data[::2])):
        if half.count(0) > 0.4 * len(half):  # as in most words of most languages; no other text has this byte
            return data.decode(encoding, errors="replace").replace("\0", LOST)
    try:
        return data.decode("utf-8-sig").replace("\0", LOST)
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace").replace("\0", LOST)


def with_trigger(caption: str, trigger: str) -> str:
    """The caption as it is trained: with the trigger word in front unless it is in there already."""
    if not trigger or contains_trigger(caption, trigger):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def without_trigger(caption: str, trigger: str) -> str:
    """The caption with the trigger word taken out, and the commas around it set right."""
    if not trigger:
        return caption
    parts = [_pattern(trigger).sub("", part).strip() for part in caption.split(",")]
    return ", ".join(re.sub(r"\s+", " ", part) for part in parts if part)


def contains_trigger(caption: str, trigger: str) -> bool:
    """Whether the trigger stands in the caption as a word of its own."""
    return _pattern(trigger).search(caption) is not None


def _pattern(trigger: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)


def digest(examples: Sequence[Example]) -> str:
    """SHA-256 over the pictures' bytes and captions: the same data set gives the same digest wherever it lies."""
    total = hashlib.sha256()
    for example in examples:
        total.update(hashlib.sha256(example.path.read_bytes()).digest())
        total.update(hashlib.sha256(example.caption.encode()).digest())
        mask = mask_file(example.path)
        if mask.is_file():
            total.update(hashlib.sha256(mask.read_bytes()).digest())
    return total.hexdigest()


def problems(folder: Path, trigger: str = "") -> list[Problem]:
    """What a person should fix before training, the fatal first."""
    found: list[Problem] = []
    examples = {example.name: example for example in read(folder)}
    paths = pictures(folder)
    if not examples:
        found.append(
            Problem("", "There are no pictures in this data set.", "Add at least 5; 10 to 30 work best.", fatal=True)
        )
    elif len(examples) < 5:
        found.append(
            Problem("", f"There are only {len(examples)} pictures.", "It will train, but 10 to 30 pictures work best.")
        )
    for path in paths:
        if path.name not in examples:
            found.append(
                Problem(path.name, "This file cannot be read as a picture.", "Export it again as PNG or JPEG.")
            )
    stems = Counter(path.stem for path in paths)
    for stem, count in stems.items():
        if count > 1:
            found.append(
                Problem(f"{stem}.txt", f"{count} pictures share this caption file.", "Give them different names.")
            )
    for example in examples.values():
        found.extend(_example_problems(example, trigger))
    for text in sorted(folder.glob("*.txt")):
        if text.stem not in stems:
            found.append(Problem(text.name, "This caption has no picture.", "Add the picture or remove the file."))
    return sorted(found, key=lambda problem: not problem.fatal)


def _example_problems(example: Example, trigger: str) -> list[Problem]:
    found = []
    if not example.caption:
        remedy = (
            "The trigger word alone will be used." if trigger else "Write what can be seen, or give a trigger word."
        )
        found.append(Problem(example.name, "This picture has no caption.", remedy))
    elif LOST in example.caption:
        found.append(
            Problem(example.name, "The caption has letters that cannot be read.", "Type it anew, or save it as UTF-8.")
        )
    elif trigger and not contains_trigger(example.caption, trigger):
        found.append(
            Problem(
                example.name, f"The caption lacks the trigger word {trigger!r}.", "It is put in front for the training."
            )
        )
    if min(example.width, example.height) < 64:
        found.append(
            Problem(
                example.name, f"It is only {example.width} x {example.height} pixels.", "Use a larger version of it."
            )
        )
    return found


def bucket(width: int, height: int, resolution: int, step: int = 64) -> tuple[int, int]:
    """The size (width, height) that a picture is resized and cropped to.

    Of all sizes in multiples of `step` whose area is at most resolution^2, the one of the nearest aspect ratio,
    and of these the largest.
    """
    area = resolution * resolution
    candidates = [
        (w, max(step, area // w // step * step))
        for w in range(step, max(step, 2 * resolution) + 1, step)
        if w * step <= area
    ] or [(step, step)]
    ratio = math.log(width / height)
    return min(candidates, key=lambda size: (abs(math.log(size[0] / size[1]) - ratio), -size[0] * size[1]))


def buckets(sizes: Sequence[tuple[int, int]], resolution: int) -> list[tuple[int, int]]:
    """The bucket of each picture (width, height) of a data set, with the rare buckets joined to others.

    A bucket of few pictures is seen in the same few batches again and again, so that there are at most 5 buckets, or
    one for each 20 pictures if that is more. The rarest goes to the one of the nearest aspect ratio.
    """
    found = [bucket(width, height, resolution) for width, height in sizes]
    counts = Counter(found)
    while len(counts) > max(5, len(sizes) // 20):
        rare = min(counts, key=lambda size: (counts[size], size))
        near = min(
            counts.keys() - {rare}, key=lambda size: (abs(math.log(size[0] * rare[1] / size[1] / rare[0])), size)
        )
        found = [near if size == rare else size for size in found]
        counts = Counter(found)
    return found


# Removing and bringing back -------------------------------------------------------------------------------------


def remove(picture: Path) -> Path:
    """Move a picture and its caption to the data set's bin; returns the folder there, for `restore`."""
    place = picture.parent / BIN / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    place.mkdir(parents=True)
    for path in (caption_file(picture), mask_file(picture), picture):
        if path.is_file():
            path.replace(place / path.name)
    return place


def restore(place: Path) -> None:
    """Bring back what `remove` moved away."""
    for path in sorted(place.iterdir()):
        path.replace(place.parent.parent / path.name)
    place.rmdir()


def restore_last(folder: Path) -> bool:
    """Bring back the picture removed last; False if there is none."""
    places = sorted((folder / BIN).iterdir()) if (folder / BIN).is_dir() else []
    if not places:
        return False
    restore(places[-1])
    return True


def empty_bin(folder: Path) -> None:
    """Forget removed pictures for good."""
    shutil.rmtree(folder / BIN, ignore_errors=True)


def snapshot(folder: Path) -> None:
    """Keep the captions as they are now, so that `undo_captions` can bring them back (20 levels)."""
    place = folder / CACHE / "undo"
    place.mkdir(parents=True, exist_ok=True)
    captions = {path.name: read_caption(path) for path in pictures(folder)}
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    files.write(place / f"{stamp}.json", json.dumps(captions))
    for old in sorted(place.glob("*.json"))[:-20]:
        old.unlink()


def undo_captions(folder: Path) -> bool:
    """Bring back the captions of the last `snapshot`; False if there is none."""
    levels = sorted((folder / CACHE / "undo").glob("*.json"))
    if not levels:
        return False
    captions = json.loads(levels[-1].read_text())
    for path in pictures(folder):
        if path.name in captions and captions[path.name] != read_caption(path):
            write_caption(path, captions[path.name])
    levels[-1].unlink()
    return True
