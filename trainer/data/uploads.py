"""Images, captions and masks from outside, made safe: decoded in full before they are kept, under names of our own.

One bad file never loses the good ones beside it: each is taken or refused by itself, with a reason.
"""

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image

from trainer import paths, storage
from trainer.data import dataset, images
from trainer.errors import UserError
from trainer.i18n import count, say

MAX_FILE = 100 * 2**20
MAX_TOTAL = 4 * 2**30
MAX_ENTRIES = 25_000
MAX_PICTURES = 25_000  # in a data set
MAX_RATIO = 200
_EXTENSIONS = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "BMP": ".bmp"}
_LEFT_BY_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")  # in folders, unseen
_FOREIGN = {
    ".heic": "HEIC", ".heif": "HEIC", ".svg": "SVG", ".jxl": "JPEG XL", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF",
    ".psd": "Photoshop", ".avif": "AVIF",
}  # fmt: skip


@dataclass
class Report:
    """Report on an upload: images kept, number already there, and (file, reason) for each that was refused.

    `moving` is how many of those kept are animations, of which the first picture is used.
    """

    added: list[str] = field(default_factory=list)
    captions: int = 0
    masks: int = 0
    known: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    moving: int = 0

    def sentence(self) -> str:
        """One or two sentences for the page."""
        parts = [count("Added {n} picture.", "Added {n} pictures.", len(self.added))]
        if self.captions:
            parts.append(count("{n} caption came with them.", "{n} captions came with them.", self.captions))
        if self.masks:
            parts.append(count("{n} mask came with them.", "{n} masks came with them.", self.masks))
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


def add(folder: Path, sources: Sequence[tuple[str, Path]], look: Callable[[str], None] | None = None) -> Report:
    """Take images, captions, masks and zips into a dataset; one upload at a time, another one waits.

    Args:
        folder: the dataset.
        sources: (name as the person knows it, with its folder if there is one; file that holds the bytes).
        look: is told the name of each image before it is looked at.
    """
    with dataset.upload_lock(folder):
        report = Report()
        captions = _captions(sources, report)
        shelf = _Shelf(folder)
        added: dict[str, Path] = {}
        for source in sources:
            for name, data in _entries(*source, report, _is_image):
                if look:
                    look(_shown(name))
                path = _add_picture(shelf, name, data, captions.get(_stem(name)), report)
                if path:
                    added[_stem(name)] = path
        _add_masks(folder, sources, added, report)
        storage.sync_folder(folder)
        _add_loose_captions(folder, {stem: text for stem, text in captions.items() if stem not in added}, report)
        return report


def _captions(sources: Sequence[tuple[str, Path]], report: Report) -> dict[str, str]:
    """The captions of an upload by folder and name of their files without the ending.

    Of those that differ under one name none is used: it is not known to which picture each belongs.
    """
    found: dict[str, str] = {}
    refused, mixed = Report(), set()
    for source in sources:
        for name, data in _entries(*source, refused, _is_caption):
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


def _is_caption(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() == ".txt"


def _is_mask(name: str) -> bool:
    path = PurePosixPath(name)
    return not _is_caption(name) and (dataset.is_mask(path) or path.parent.name.lower() in dataset.MASK_FOLDERS)


def _is_image(name: str) -> bool:
    return not _is_caption(name) and not _is_mask(name)


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

    def known(self, data: bytes) -> Path | None:
        """Return the image that has these very bytes, if there is one."""
        alike = self._alike.get(len(data), [])
        for path in alike:
            if path not in self._hashes:
                self._hashes[path] = hashlib.sha256(path.read_bytes()).digest()
        digest = hashlib.sha256(data).digest() if alike else b""
        return next((path for path in alike if self._hashes[path] == digest), None)

    def create(self, stem: str, extension: str, data: bytes, caption: str) -> Path:
        """Write an image and its caption under a stem that no other file has, and return the image's path.

        The caption first: a crash between the two leaves a caption alone, never an image without its caption. A file
        that somebody else put there meanwhile is not replaced; the next name is taken.
        """
        while True:
            free = dataset.free_stem(self._taken, stem)
            self._taken.add(free.lower())
            path = self.folder / (free + extension)
            try:
                if caption:
                    storage.create(dataset.caption_file(path), [caption.encode() + b"\n"])
            except FileExistsError:
                continue
            try:
                storage.create(path, [data])
            except FileExistsError:
                if caption:
                    dataset.caption_file(path).unlink()
                continue
            self.put(path, len(data))
            return path


def _add_picture(shelf: _Shelf, name: str, data: bytes, caption: str | None, report: Report) -> Path | None:
    """Add one image; return where it lies, or None if it was refused, which the report tells."""
    if known := shelf.known(data):
        report.known += 1
        return known
    form = _FOREIGN.get(PurePosixPath(name).suffix.lower())
    try:
        if storage.room(shelf.folder) < len(data):
            raise UserError("the disk is full", "Make room and add it again.")
        if shelf.count >= MAX_PICTURES:
            raise UserError(
                "a data set holds {max_pictures} pictures at the most", "Make another one.", max_pictures=MAX_PICTURES
            )
        images.upright(data)
    except UserError as error:
        advice = say("{form} pictures cannot be read here; export it as PNG or JPEG", form=form)
        report.refused.append((_shown(name), advice if form else error.message))
        return None
    with Image.open(io.BytesIO(data), formats=dataset.FORMATS) as image:
        extension = _EXTENSIONS[str(image.format)]
        report.moving += image.format in ("PNG", "WEBP") and bool(getattr(image, "is_animated", False))
    text = dataset.one_line(caption or "")
    path = shelf.create(paths.safe_name(PurePosixPath(name).stem, "picture"), extension, data, text)
    report.captions += bool(text)
    report.added.append(path.name)
    return path


def _add_masks(folder: Path, sources: Sequence[tuple[str, Path]], added: dict[str, Path], report: Report) -> None:
    """Put each mask of an upload beside its image, which came with it (`added`, by folder and stem) or was there."""
    refused = Report()
    for source in sources:
        for name, data in _entries(*source, refused, _is_mask):
            image = _masked_image(folder, PurePosixPath(name), added)
            if image is None:
                report.refused.append((_shown(name), say("a mask without a picture of that name")))
                continue
            try:
                mask = images.decode(data).convert("L")
            except UserError as error:
                report.refused.append((_shown(name), error.message))
                continue
            buffer = io.BytesIO()
            mask.save(buffer, "PNG")
            storage.place(image.with_suffix(dataset.MASK), [buffer.getvalue()])
            report.masks += 1
    report.refused += [refusal for refusal in refused.refused if not refusal[0].lower().endswith(".zip")]


def _masked_image(folder: Path, mask: PurePosixPath, added: dict[str, Path]) -> Path | None:
    """Return the image that a mask is for: in its own folder, beside its folder of masks, or the only one so called."""
    stem = dataset.masked_stem(mask)
    places = [mask.parent, mask.parent.parent] if mask.parent.name.lower() in dataset.MASK_FOLDERS else [mask.parent]
    for place in places:
        if image := added.get(str(place / stem)):
            return image
    alike = [image for key, image in added.items() if PurePosixPath(key).name == stem]
    alike = alike or [image for image in dataset.pictures(folder) if image.stem == paths.safe_name(stem, "picture")]
    return alike[0] if len(alike) == 1 else None


def _add_loose_captions(folder: Path, captions: dict[str, str], report: Report) -> None:
    """Captions that came without a picture belong to pictures that are already there, by name."""
    stems = {path.stem: path for path in dataset.pictures(folder)}
    for stem, text in captions.items():
        name = PurePosixPath(stem).name
        picture = stems.get(paths.safe_name(name, "picture"))
        if picture is None:
            report.refused.append(
                (dataset.one_line(name)[:76] + ".txt", say("a caption without a picture of that name"))
            )
        else:
            dataset.write_caption(picture, text)
            report.captions += 1


def _entries(name: str, path: Path, report: Report, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Give the files of an upload (itself, or what is in a zip) whose names are wanted, each with its bytes."""
    name = name.replace("\\", "/")
    suffix = PurePosixPath(name).suffix.lower()
    if PurePosixPath(name).name in _LEFT_BY_SYSTEMS or PurePosixPath(name).name.startswith("._"):
        return
    if suffix == ".zip":
        yield from _zip_entries(name, path, report, wanted)
    elif not wanted(name):
        return
    elif path.stat().st_size > MAX_FILE:
        report.refused.append((_shown(name), say("larger than {size} MB", size=MAX_FILE // 2**20)))
    else:
        yield name, path.read_bytes()


def _zip_entries(name: str, path: Path, report: Report, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
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
            if not wanted(entry):
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
