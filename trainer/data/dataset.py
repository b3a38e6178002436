"""A data set: a folder of pictures with their captions in `.txt` files beside them; the folder is the truth.

Knows the layout `rin/001.png` + `rin/001.txt` that the tools of the field share, masks among it.
"""

import codecs
import hashlib
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path, PurePath

from filelock import BaseFileLock, FileLock
from PIL import Image, UnidentifiedImageError

from trainer import paths, storage
from trainer.errors import UserError
from trainer.i18n import JOINERS, say

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # a JPEG of several pictures (MPO) opens as its first
MASK = ".mask.png"
MASK_ENDINGS = (".mask", "-masklabel")  # of the stem of a file beside the image, as kohya's and OneTrainer's users have
MASK_FOLDERS = ("mask", "masks")
CACHE = ".cache"
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


def folder_of(dataset: str) -> Path:
    """The folder of a data set given by its name under `datasets/`, or else by a path.

    Raises:
        UserError: there is no such folder, or it is another person's.
    """
    folder = paths.datasets() / dataset
    if not paths.NAME.fullmatch(dataset) or not folder.is_dir():
        folder = Path(dataset).expanduser()
    if not folder.is_dir() or not paths.is_open(folder):
        raise UserError(
            "There is no data set {name!r}.",
            "Known data sets: {known}. Add pictures first, or give the path of a folder.",
            name=Path(dataset).name,
            known=", ".join(names()) or say("none yet"),
        )
    return folder


def names() -> list[str]:
    """Names of all data sets, sorted."""
    root = paths.datasets()
    return (
        sorted(one.name for one in root.iterdir() if one.is_dir() and paths.NAME.fullmatch(one.name))
        if root.is_dir()
        else []
    )


def create(name: str) -> Path:
    """Make sure that a data set of this name exists, and return its folder."""
    folder = paths.datasets() / paths.check_name(name, "data set")
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
    """Return the image files of a dataset in the order of their names; masks are left out, links are not followed."""
    return sorted(path for path in _image_files(folder) if not is_mask(path))


def masks(folder: Path) -> list[Path]:
    """Return the masks that lie beside the images of a dataset, in the order of their names."""
    return sorted(path for path in _image_files(folder) if is_mask(path))


def _image_files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and _is_own_file(path):
            yield path


def is_mask(path: PurePath) -> bool:
    """Tell by its name whether a file is the mask of another one."""
    return path.stem.lower().endswith(MASK_ENDINGS)


def masked_stem(path: PurePath) -> str:
    """Return the stem of the image that a mask named by `MASK_ENDINGS` belongs to."""
    ending = next((ending for ending in MASK_ENDINGS if path.stem.lower().endswith(ending)), "")
    return path.stem[: len(path.stem) - len(ending)]


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
    header = _header(path)
    if header is None:
        return None
    width, height, turned = header
    return (height, width) if turned in _SIDEWAYS else (width, height)


def is_turned(path: Path) -> bool:
    """Tell whether an image is stored in another orientation than a viewer shows it in."""
    header = _header(path)
    return header is not None and header[2] != 1


def _header(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return _read_header(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=20_000)
def _read_header(path: Path, _size: int, _changed: int) -> tuple[int, int, int] | None:
    """Width, height and rotation flag as they are stored; None if it is no picture. Read once for each content."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            turned = orientation(image)
    except (OSError, ValueError, SyntaxError, struct.error, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    return None if width * height > MAX_PIXELS else (width, height, turned)


def free_path(folder: Path, stem: str, extension: str) -> Path:
    """A path whose stem no picture and no caption of the folder has, so that nothing is replaced or mixed up."""
    return folder / (free_stem({path.stem.lower() for path in folder.iterdir()}, stem) + extension)


def free_stem(taken: set[str], stem: str) -> str:
    """The stem, or one like it that is not among those taken, which are in lower case."""
    number, candidate = 1, stem
    while candidate.lower() in taken:
        number += 1
        candidate = f"{stem[:58]}-{number}"
    return candidate


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 (upright) to 8; 1 also where the EXIF data are damaged."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except (OSError, ValueError, SyntaxError, TypeError, LookupError, AttributeError, OverflowError, struct.error):
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def caption_file(picture: Path) -> Path:
    """Return the path of an image's caption file."""
    return picture.with_suffix(".txt")


def mask_file(picture: Path) -> Path:
    """Return where the mask of an image lies, white where it is to be learned; without one, where it would be written.

    Read are `name.mask.png` and `name-masklabel.png` beside the image, and `name.png` in a folder `mask` or `masks`.
    """
    written = picture.with_suffix(MASK)
    others = [picture.with_name(f"{picture.stem}-masklabel.png")]
    others += [picture.parent / folder / f"{picture.stem}.png" for folder in MASK_FOLDERS]
    return next((path for path in (written, *others) if _is_own_file(path)), written)


def read_mask(picture: Path) -> bytes:
    """The mask of a picture as it is stored; nothing if there is none, or a link in its place."""
    path = mask_file(picture)
    return path.read_bytes() if _is_own_file(path) else b""


def read_captions(picture: Path) -> tuple[str, ...]:
    """Each line of a caption file that says something, as a caption of its own."""
    return tuple(line for line in map(one_line, _read_text(caption_file(picture)).splitlines()) if line)


def read_caption(picture: Path) -> str:
    """The caption of a picture in one line; "" if there is none."""
    return one_line(_read_text(caption_file(picture)))


def _read_text(path: Path) -> str:
    """The text of a file; "" if there is none."""
    if not _is_own_file(path):
        return ""
    with path.open("rb") as file:
        return decode_text(file.read(MAX_CAPTION))


def _is_own_file(path: Path) -> bool:
    """Tell whether a path is a regular file of the dataset: a link would lead out of it, a pipe would never end."""
    return path.is_file() and not path.is_symlink()


def captions_lock(folder: Path) -> BaseFileLock:
    """Return the lock of whoever changes captions or moves images of a dataset: one thread of one process at a time.

    Whoever holds it may take it again. Nobody holds it for long, so that a caption that is typed never waits.
    """
    return _lock(folder, "captions")


def upload_lock(folder: Path) -> BaseFileLock:
    """Return the lock of whoever adds images to a dataset, from the first to the last."""
    return _lock(folder, "upload")


def _lock(folder: Path, name: str) -> BaseFileLock:
    (folder / CACHE).mkdir(exist_ok=True)
    return FileLock(folder / CACHE / f"{name}.lock", is_singleton=True)


def write_caption(picture: Path, caption: str) -> None:
    """Save the caption of a picture.

    Raises:
        UserError: the picture is gone.
    """
    if not picture.is_file():
        raise UserError(
            "{name} is no longer in this data set.", "Reload the page to see what is there.", name=picture.name
        )
    with captions_lock(picture.parent):
        storage.write(caption_file(picture), one_line(caption) + "\n")


def one_line(text: str) -> str:
    """Return text without line breaks, control characters and outer white space; its backslashes and emoji stay."""
    kept = "".join(c if c.isprintable() or c.isspace() or c in JOINERS else " " for c in text)
    return re.sub(r"\s+", " ", kept).strip()


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
    """Tell whether the trigger stands in the caption as a word of its own."""
    return _pattern(trigger).search(caption) is not None


def _pattern(trigger: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)


def digest(examples: Sequence[Example]) -> str:
    """SHA-256 over the pictures' bytes and captions: the same data set gives the same digest wherever it lies."""
    total = hashlib.sha256()
    for example in examples:
        total.update(hashlib.sha256(example.path.read_bytes()).digest())
        total.update(hashlib.sha256(example.caption.encode()).digest())
        if mask := read_mask(example.path):
            total.update(hashlib.sha256(mask).digest())
    return total.hexdigest()


# Removing and bringing back -------------------------------------------------------------------------------------


def remove(*pictures: Path) -> Path:
    """Move pictures of one data set and their captions to its bin for a week; returns their folder, for `restore`."""
    folder = pictures[0].parent
    place = folder / storage.BIN / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    place.mkdir(parents=True)
    with captions_lock(folder):
        for picture in pictures:
            mask = mask_file(picture)
            for path, name in (
                (caption_file(picture), caption_file(picture).name),
                (mask, mask.name if mask.parent == folder else picture.with_suffix(MASK).name),
                (picture, picture.name),
            ):
                if path.is_file():
                    path.replace(place / name)
    return place


def restore(place: Path) -> None:
    """Bring back what `remove` moved away; what has its name by now stays, and it stays in the bin."""
    folder = place.parent.parent
    with captions_lock(folder):
        for path in sorted(place.iterdir()):
            if not (folder / path.name).exists():
                path.replace(folder / path.name)
    if any(place.iterdir()):
        raise UserError("There are other files of the same names by now.", "Rename or remove those first.")
    place.rmdir()


def restore_last(folder: Path) -> bool:
    """Bring back the picture removed last; False if there is none."""
    places = sorted((folder / storage.BIN).iterdir()) if (folder / storage.BIN).is_dir() else []
    if not places:
        return False
    restore(places[-1])
    return True
