"""Pictures and captions from outside, made safe: decoded in full before they are kept, under names of our own.

One bad file never loses the good ones beside it: each is taken or refused by itself, with a reason.
"""

import hashlib
import io
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from trainer import dataset, files
from trainer.errors import UserError
from trainer.words import count, say

MAX_FILE = 100 * 2**20
MAX_TOTAL = 4 * 2**30
MAX_ENTRIES = 25_000
MAX_PICTURES = 25_000  # in a data set
MAX_RATIO = 200
THUMBNAIL = 320
PIXELS_PER_BYTE = 2000  # of a JPEG at the most; less is a header that lies, of which decoders make a grey picture
_ONE_AT_A_TIME = threading.Lock()
_EXTENSIONS = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "BMP": ".bmp"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_LEFT_BY_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")  # in folders, unseen
_FOREIGN = {
    ".heic": "HEIC", ".heif": "HEIC", ".svg": "SVG", ".jxl": "JPEG XL", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF",
    ".psd": "Photoshop", ".avif": "AVIF",
}  # fmt: skip


@dataclass
class Report:
    """What became of an upload: pictures kept, number already there, and (file, reason) of what was refused.

    `moving` is how many of those kept are animations, of which the first picture is used.
    """

    added: list[str] = field(default_factory=list)
    captions: int = 0
    known: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    moving: int = 0

    def sentence(self) -> str:
        """One or two sentences for the page."""
        parts = [count("Added {n} picture.", "Added {n} pictures.", len(self.added))]
        if self.captions:
            parts.append(count("{n} caption came with them.", "{n} captions came with them.", self.captions))
        if self.known:
            parts.append(say("{number} already there, skipped.", number=self.known))
        if self.moving:
            parts.append(count(
                "Of {n} moving picture the first frame is used.", "Of {n} moving pictures the first frame is used.",
                self.moving,
            ))  # fmt: skip
        if self.refused:
            shown = "; ".join(f"{name} ({reason})" for name, reason in self.refused[:8])
            if (more := len(self.refused) - 8) > 0:
                parts.append(say("Not used: {files} and {number} more.", files=shown, number=more))
            else:
                parts.append(say("Not used: {files}.", files=shown))
        return " ".join(parts)


def decode(data: bytes, background: str = "white") -> Image.Image:
    """A picture as a viewer shows it, in RGB: rotation applied, 16 bits scaled, alpha composed on a plain colour.

    Raises:
        UserError: it is no picture of a known format, damaged, or too large.
    """
    return _to_rgb(_decode(data), background)


def opacity(data: bytes) -> Image.Image | None:
    """How opaque a picture is at each pixel, as grey; None if it is opaque everywhere.

    Raises:
        UserError: as `decode`.
    """
    image = _decode(data)
    if not _has_alpha(image):
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return alpha if alpha.getextrema()[0] != 255 else None


def shrunk(data: bytes, side: int) -> tuple[Image.Image, float]:
    """A picture as a viewer shows it, in RGB on white and at most `side` pixels wide and high, and its opaque share.

    Raises:
        UserError: as `decode`.
    """
    with _ONE_AT_A_TIME:  # a page asks for many at once, and a large picture takes much memory
        image = _decode(data, side)
        opaque = 1.0
        if _has_alpha(image):
            image = image.convert("RGBA")
            seen = image.getchannel("A").histogram()
            opaque = sum(seen[128:]) / sum(seen)
        image = _to_rgb(image, "white")
        image.thumbnail((side, side), reducing_gap=2.0)
    return image, opaque


def _decode(data: bytes, side: int = 0) -> Image.Image:
    """The picture upright; a JPEG may come smaller than it is, but not smaller than `side`, if that is given."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about odd but readable files
            with Image.open(io.BytesIO(data), formats=dataset.FORMATS) as image:
                if image.width * image.height > dataset.MAX_PIXELS:
                    raise Image.DecompressionBombError
                if image.format in ("JPEG", "MPO") and image.width * image.height > PIXELS_PER_BYTE * len(data):
                    raise EOFError
                if side:
                    image.draft(None, (side, side))
                image.load()
                turn = _TURNS.get(dataset.orientation(image))
                return image.copy() if turn is None else image.transpose(turn)
    except UnidentifiedImageError:
        raise UserError("not a picture", "Use PNG, JPEG, WebP or BMP.") from None
    except Image.DecompressionBombError:
        raise UserError(
            "larger than {pixels} million pixels", "Make it smaller first.", pixels=dataset.MAX_PIXELS // 1_000_000
        ) from None
    except MemoryError:
        raise UserError("it takes too much memory", "Make it smaller first.") from None
    except (OSError, ValueError, SyntaxError, EOFError, zlib.error, IndexError, OverflowError, struct.error):
        raise UserError("damaged, cannot be read", "Export it again as PNG or JPEG.") from None


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _to_rgb(image: Image.Image, background: str) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        scaled = np.clip(np.asarray(image, dtype=np.float64) / 257.0, 0, 255).round().astype(np.uint8)
        return Image.fromarray(scaled).convert("RGB")
    if _has_alpha(image):
        image = image.convert("RGBA")
        below = Image.new("RGBA", image.size, background)
        return Image.alpha_composite(below, image).convert("RGB")
    return image.convert("RGB")


def add(folder: Path, sources: Sequence[tuple[str, Path]], look: Callable[[str], None] | None = None) -> Report:
    """Take pictures, captions and zips into a data set.

    Args:
        folder: the data set.
        sources: (name as the person knows it, with its folder if there is one; file that holds the bytes).
        look: is told the name of each picture before it is looked at.
    """
    report = Report()
    captions = _captions(sources, report)
    shelf = _Shelf(folder)
    used = set()
    for source in sources:
        for name, data in _entries(*source, report, None):
            used.add(_stem(name))
            if look:
                look(_shown(name))
            _add_picture(shelf, name, data, captions.get(_stem(name)), report)
    files.sync_folder(folder)
    _add_loose_captions(folder, {stem: text for stem, text in captions.items() if stem not in used}, report)
    return report


def _captions(sources: Sequence[tuple[str, Path]], report: Report) -> dict[str, str]:
    """The captions of an upload by folder and name of their files without the ending.

    Of those that differ under one name none is used: it is not known to which picture each belongs.
    """
    found: dict[str, str] = {}
    refused, mixed = Report(), set()
    for source in sources:
        for name, data in _entries(*source, refused, (".txt",)):
            text = dataset.decode_text(data)
            if dataset.LOST in text or len(data) > dataset.MAX_CAPTION:
                refused.refused.append((_shown(name), "not a text, or in an unknown encoding; save it as UTF-8"))
            elif found.setdefault(_stem(name), text) != text:
                mixed.add(_stem(name))
    for stem in sorted(mixed):
        del found[stem]
        refused.refused.append((_shown(stem) + ".txt", "several captions have this name; add one folder at a time"))
    report.refused += [one for one in refused.refused if one[0].lower().endswith(".txt")]
    return found


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _shown(name: str) -> str:
    """A file's name as it is told: without folders, in one line, not too long."""
    return dataset.one_line(PurePosixPath(name).name)[:80]


class _Shelf:
    """A data set while pictures are added: which there are, and which names are taken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self._taken = {path.stem.lower() for path in folder.iterdir()}
        self._alike: dict[int, list[Path]] = {}
        self._hashes: dict[Path, bytes] = {}
        for path in dataset.pictures(folder):
            self.put(path, path.stat().st_size)

    def put(self, path: Path, size: int) -> None:
        """Remember a picture that is there now."""
        self.count += 1
        self._taken.add(path.stem.lower())
        self._alike.setdefault(size, []).append(path)

    def has(self, data: bytes) -> bool:
        """Whether one of the pictures has these very bytes."""
        alike = self._alike.get(len(data), [])
        for path in alike:
            if path not in self._hashes:
                self._hashes[path] = hashlib.sha256(path.read_bytes()).digest()
        return bool(alike) and hashlib.sha256(data).digest() in {self._hashes[path] for path in alike}

    def free_path(self, stem: str, extension: str) -> Path:
        """A path whose stem no picture and no caption has, so that nothing is replaced or mixed up."""
        return self.folder / (dataset.free_stem(self._taken, stem) + extension)


def _add_picture(shelf: _Shelf, name: str, data: bytes, caption: str | None, report: Report) -> None:
    if shelf.has(data):
        report.known += 1
        return
    form = _FOREIGN.get(PurePosixPath(name).suffix.lower())
    try:
        if files.room(shelf.folder) < len(data):
            raise UserError("the disk is full", "Make room and add it again.")
        if shelf.count >= MAX_PICTURES:
            raise UserError(
                "a data set holds {max_pictures} pictures at the most", "Make another one.", max_pictures=MAX_PICTURES
            )
        _decode(data)
    except UserError as error:
        advice = say("{form} pictures cannot be read here; export it as PNG or JPEG", form=form)
        report.refused.append((_shown(name), advice if form else error.message))
        return
    with Image.open(io.BytesIO(data), formats=dataset.FORMATS) as image:
        extension = _EXTENSIONS[str(image.format)]
        report.moving += image.format in ("PNG", "WEBP") and bool(getattr(image, "is_animated", False))
    path = shelf.free_path(files.safe_name(PurePosixPath(name).stem, "picture"), extension)
    # The caption first: a crash between the two leaves a caption alone, never a picture without its caption.
    if caption is not None and dataset.one_line(caption):
        files.place(dataset.caption_file(path), [dataset.one_line(caption).encode() + b"\n"])
        report.captions += 1
    files.place(path, [data])
    shelf.put(path, len(data))
    report.added.append(path.name)


def _add_loose_captions(folder: Path, captions: dict[str, str], report: Report) -> None:
    """Captions that came without a picture belong to pictures that are already there, by name."""
    stems = {path.stem: path for path in dataset.pictures(folder)}
    for stem, text in captions.items():
        name = PurePosixPath(stem).name
        picture = stems.get(files.safe_name(name, "picture"))
        if picture is None:
            report.refused.append(
                (dataset.one_line(name)[:76] + ".txt", say("a caption without a picture of that name"))
            )
        else:
            dataset.write_caption(picture, text)
            report.captions += 1


def _entries(name: str, path: Path, report: Report, suffixes: tuple[str, ...] | None) -> Iterator[tuple[str, bytes]]:
    """The files in an upload (itself, or what is in a zip) of the given suffixes; None means all but captions."""
    name = name.replace("\\", "/")
    suffix = PurePosixPath(name).suffix.lower()
    if PurePosixPath(name).name in _LEFT_BY_SYSTEMS or PurePosixPath(name).name.startswith("._"):
        return
    if suffix == ".zip":
        yield from _zip_entries(name, path, report, suffixes)
    elif suffix not in suffixes if suffixes else suffix == ".txt":
        return
    elif path.stat().st_size > MAX_FILE:
        report.refused.append((_shown(name), say("larger than {size} MB", size=MAX_FILE // 2**20)))
    else:
        yield name, path.read_bytes()


def _zip_entries(
    name: str, path: Path, report: Report, suffixes: tuple[str, ...] | None
) -> Iterator[tuple[str, bytes]]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error):
        report.refused.append((_shown(name), say("not a zip, or a damaged one")))
        return
    total = 0
    with archive:
        if len(archive.infolist()) > MAX_ENTRIES:
            told = say("only the first {number} files in it were looked at", number=MAX_ENTRIES)
            report.refused.append((_shown(name), told))
        for info in archive.infolist()[:MAX_ENTRIES]:
            entry = info.filename.replace("\\", "/")
            shown = _shown(entry)
            suffix = PurePosixPath(entry).suffix.lower()
            if not shown or entry.endswith("/") or shown.startswith(".") or entry.startswith("__MACOSX/"):
                continue
            if suffix not in suffixes if suffixes else suffix == ".txt":
                continue
            if suffix not in (*dataset.SUFFIXES, ".txt", *_FOREIGN):
                report.refused.append((shown, say("not a picture")))
                continue
            data, reason = _read_entry(archive, info, MAX_TOTAL - total)
            if data is None:
                report.refused.append((shown, reason))
            else:
                total += len(data)
                yield entry, data


def _read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, room: int) -> tuple[bytes | None, str]:
    """The bytes of a zip entry, counted as they come (its own word on its size is not trusted), or why not."""
    limit = min(MAX_FILE, room, max(2**20, info.compress_size * MAX_RATIO))
    try:
        with archive.open(info) as entry:
            data = entry.read(limit + 1)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, OSError, EOFError, ValueError, struct.error):
        return None, say("damaged in the zip, or packed in an unknown way")
    except RuntimeError:
        return None, say("encrypted")
    if len(data) > limit:
        return None, say("unpacks to more than is allowed")
    return data, ""


def thumbnail(picture: Path) -> Path:
    """A small WebP of a picture, made on first use and kept in the data set's cache."""
    stat = picture.stat()
    key = hashlib.sha256(f"{picture.name}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:24]
    path = picture.parent / dataset.CACHE / "thumbnails" / f"{key}.webp"
    if not path.is_file():
        image, _ = shrunk(picture.read_bytes(), THUMBNAIL)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=80)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, buffer.getvalue())
    return path
