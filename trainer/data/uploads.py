"""Uploaded images, captions and masks, made safe: decoded in full before they are kept, under names of our own.

Each file is accepted or refused by itself, with a reason, so that a bad one never loses the good ones beside it.
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
from trainer.data import captions, dataset, images, location
from trainer.errors import UserError, explain_disk
from trainer.i18n import _, ngettext

MAX_FILE = 100 * 2**20
MAX_TOTAL = 4 * 2**30
MAX_ENTRIES = 25_000
MAX_IMAGES = 25_000  # in a dataset
MAX_RATIO = 200
MAX_LISTED = 8  # refused files that are named
_EXTENSIONS = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "BMP": ".bmp"}
_SYSTEM_FILES = (".DS_Store", "Thumbs.db", "desktop.ini")


@dataclass
class Report:
    """Report on an upload: images kept, number already there, and (file, reason) for each that was refused.

    `animated` is how many of those kept are animations, of which the first frame is used.
    """

    added: list[str] = field(default_factory=list)
    captions: int = 0
    masks: int = 0
    known: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    animated: int = 0

    def sentence(self) -> str:
        """Summarize the upload in one or two sentences for the page."""
        parts = [ngettext("Added {n} image.", "Added {n} images.", len(self.added))]
        if self.captions:
            parts.append(ngettext("{n} caption came with them.", "{n} captions came with them.", self.captions))
        if self.masks:
            parts.append(ngettext("{n} mask came with them.", "{n} masks came with them.", self.masks))
        if self.known:
            parts.append(_("{number} already there, skipped.", number=self.known))
        if self.animated:
            parts.append(
                ngettext(
                    "{n} image is animated; only its first frame is used.",
                    "{n} images are animated; only their first frames are used.",
                    self.animated,
                )
            )
        if self.refused:
            files = "; ".join(f"{name} ({reason})" for name, reason in self.refused[:MAX_LISTED])
            more = len(self.refused) - MAX_LISTED
            if more > 0:
                parts.append(_("Not used: {files} and {number} more.", files=files, number=more))
            else:
                parts.append(_("Not used: {files}.", files=files))
        return " ".join(parts)


def add(
    folder: Path,
    sources: Sequence[tuple[str, Path]],
    look: Callable[[str], None] | None = None,
    *,
    keep_location: bool = False,
) -> Report:
    """Add images, captions, masks and zips to a dataset; one upload at a time, another one waits.

    Args:
        folder: the dataset.
        sources: (name that the user knows, with its folder if there is one; file that holds the bytes).
        look: called with the name of each image before it is decoded.
        keep_location: keep the place where a photograph was taken, which is removed otherwise.
    """
    with dataset.upload_lock(folder):
        report = Report()
        texts = _read_captions(sources, report)
        index = _Index(folder, keep_location=keep_location)
        added: dict[str, Path] = {}
        for source in sources:
            for name, data in _entries(*source, report, _is_image):
                if look:
                    look(_display_name(name))
                path = _add_image(index, name, data, texts.get(_stem(name)), report)
                if path:
                    added[_stem(name)] = path
        _add_masks(folder, sources, added, report)
        storage.sync_folder(folder)
        _add_loose_captions(folder, {stem: text for stem, text in texts.items() if stem not in added}, report)
        return report


def _read_captions(sources: Sequence[tuple[str, Path]], report: Report) -> dict[str, str]:
    """Read the captions of an upload, by the folder and name of their files without the extension.

    Different captions of the same name are all refused, as it is unknown which image each belongs to. If there are
    several forms of a caption, the `.txt` file counts, as it does in a dataset.
    """
    by_form: dict[str, dict[str, str]] = {form: {} for form in (captions.METADATA, *reversed(captions.FORMS))}
    refused, ambiguous = Report(), set()
    for source in sources:
        for name, data in _entries(*source, refused, _is_caption):
            form = captions.METADATA if _is_metadata(name) else PurePosixPath(name).suffix.lower()
            limit = captions.MAX_METADATA if _is_metadata(name) else captions.MAX_BYTES
            text = captions.decode_text(data)
            if captions.REPLACEMENT in text or len(data) > limit:
                refused.refused.append((_display_name(name), _("not text, or in an unknown encoding; use UTF-8")))
                continue
            folder = PurePosixPath(name).parent
            images_of = captions.parse_metadata(data) if _is_metadata(name) else {PurePosixPath(name).name: text}
            for image, caption in images_of.items():
                stem = _stem(str(folder / image))
                if by_form[form].setdefault(stem, caption) != caption:
                    ambiguous.add((stem, form))
    for stem, form in sorted(ambiguous):
        del by_form[form][stem]
        reason = _("several different captions have this name; add one folder at a time")
        refused.refused.append((_display_name(stem) + form, reason))
    report.refused += [(name, reason) for name, reason in refused.refused if _is_caption(name)]
    return {stem: text for form in by_form.values() for stem, text in form.items()}


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.parent / path.stem)  # with_suffix("") refuses `..png` in newer versions of Python


def _is_caption(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in captions.FORMS or _is_metadata(name)


def _is_metadata(name: str) -> bool:
    return PurePosixPath(name).name.lower() == captions.METADATA


def _is_mask(name: str) -> bool:
    path = PurePosixPath(name)
    return not _is_caption(name) and (dataset.is_mask(path.name) or path.parent.name.lower() in dataset.MASK_FOLDERS)


def _is_image(name: str) -> bool:
    return not _is_caption(name) and not _is_mask(name)


def _display_name(name: str) -> str:
    """Return a file's name for messages: without folders, in one line, not too long."""
    return captions.one_line(PurePosixPath(name).name)[:80] or _("a file without a name")


class _Index:
    """Files of a dataset while images are added: names that are taken, and images by size and hash."""

    def __init__(self, folder: Path, *, keep_location: bool) -> None:
        self.folder = folder
        self.keep_location = keep_location
        self.count = 0
        self._taken = {path.stem.lower() for path in folder.iterdir()}
        self._by_size: dict[int, list[Path]] = {}
        self._hashes: dict[Path, bytes] = {}
        for path in dataset.image_files(folder):
            self._insert(path, path.stat().st_size)

    def _insert(self, path: Path, size: int) -> None:
        self.count += 1
        self._taken.add(path.stem.lower())
        self._by_size.setdefault(size, []).append(path)

    def find(self, data: bytes) -> Path | None:
        """Return the image with exactly these bytes, if there is one."""
        same_size = self._by_size.get(len(data), [])
        if not same_size:
            return None
        digest = hashlib.sha256(data).digest()
        for path in same_size:
            if path not in self._hashes:
                self._hashes[path] = hashlib.sha256(path.read_bytes()).digest()
            if self._hashes[path] == digest:
                return path
        return None

    def create(self, stem: str, extension: str, data: bytes, caption: str) -> Path:
        """Write an image and its caption under a stem that no other file has, and return the image's path.

        The caption is written first: a crash between the two leaves a caption without an image, never an image without
        its caption. A file that someone else put there in the meantime is not replaced; the next name is used.
        """
        while True:
            free = dataset.free_stem(self._taken, stem)
            self._taken.add(free.lower())
            path = self.folder / (free + extension)
            try:
                if caption:
                    storage.create(captions.caption_file(path), [caption.encode() + b"\n"])
            except FileExistsError:
                continue
            try:
                storage.create(path, [data])
            except OSError as error:
                if caption:
                    storage.remove(captions.caption_file(path))
                if not isinstance(error, FileExistsError):
                    raise
                continue
            self._insert(path, len(data))
            return path


def _add_image(index: _Index, name: str, data: bytes, caption: str | None, report: Report) -> Path | None:
    """Add one image; return its path, or None if it was refused, with the reason in the report."""
    if duplicate := index.find(data):
        report.known += 1
        return duplicate
    try:
        _check_space(index.folder, len(data))
        if index.count >= MAX_IMAGES:
            raise UserError("a dataset holds at most {max_images} images", "Create another one.", max_images=MAX_IMAGES)
        data = images.storable(data)
    except UserError as error:
        reason = error.message
        if form := images.UNSUPPORTED.get(PurePosixPath(name).suffix.lower()):
            reason = _("{form} images are not supported; export it as PNG or JPEG", form=form)
        report.refused.append((_display_name(name), reason))
        return None
    if not index.keep_location:
        data = location.removed(data)
    if duplicate := index.find(data):
        report.known += 1
        return duplicate
    with Image.open(io.BytesIO(data), formats=images.FORMATS) as image:
        extension = _EXTENSIONS[str(image.format)]
        report.animated += image.format in ("PNG", "WEBP") and bool(getattr(image, "is_animated", False))
    text = captions.clean(caption or "")
    try:
        path = index.create(paths.safe_name(PurePosixPath(name).stem, "picture"), extension, data, text)
    except OSError as error:
        if not (explained := explain_disk(error)):
            raise
        report.refused.append((_display_name(name), explained.message))
        return None
    report.captions += bool(text)
    report.added.append(path.name)
    return path


def _check_space(folder: Path, size: int) -> None:
    if storage.usable_space(folder) < size:
        raise UserError("the disk is full", "Free some space and add it again.")


def _add_masks(folder: Path, sources: Sequence[tuple[str, Path]], added: dict[str, Path], report: Report) -> None:
    """Put each mask of an upload beside its image, which came with it (`added`, by folder and stem) or was there."""
    refused = Report()
    for source in sources:
        for name, data in _entries(*source, refused, _is_mask):
            image = _masked_image(folder, PurePosixPath(name), added)
            if image is None:
                report.refused.append((_display_name(name), _("no image of this name for the mask")))
                continue
            try:
                _check_space(folder, len(data))
                mask = images.decode(data).convert("L")
            except UserError as error:
                report.refused.append((_display_name(name), error.message))
                continue
            storage.write_unsynced(image.with_suffix(dataset.MASK), [images.png(mask)])
            report.masks += 1
    report.refused += [refusal for refusal in refused.refused if not refusal[0].lower().endswith(".zip")]


def _masked_image(folder: Path, mask: PurePosixPath, added: dict[str, Path]) -> Path | None:
    """Return the image of a mask: in its own folder, beside its folder of masks, or the only one of its name."""
    stem = dataset.masked_stem(mask)
    parents = [mask.parent]
    if mask.parent.name.lower() in dataset.MASK_FOLDERS:
        parents.append(mask.parent.parent)
    for parent in parents:
        if image := added.get(str(parent / stem)):
            return image
    same_name = [image for key, image in added.items() if PurePosixPath(key).name == stem]
    if not same_name:
        safe_stem = paths.safe_name(stem, "picture")
        same_name = [image for image in dataset.image_files(folder) if image.stem == safe_stem]
    return same_name[0] if len(same_name) == 1 else None


def _add_loose_captions(folder: Path, texts: dict[str, str], report: Report) -> None:
    """Save captions that came without an image for the images of their names that are already there."""
    stems = {path.stem: path for path in dataset.image_files(folder)}
    for stem, text in texts.items():
        name = PurePosixPath(stem).name
        image = stems.get(paths.safe_name(name, "picture"))
        if image is None:
            file_name = captions.one_line(name)[:76] + ".txt"
            report.refused.append((file_name, _("no image of this name for the caption")))
        else:
            dataset.write_caption(image, text)
            report.captions += 1


def _entries(name: str, path: Path, report: Report, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of the wanted files of an upload: the file itself, or those in a zip."""
    name = name.replace("\\", "/")
    file_name, suffix = PurePosixPath(name).name, PurePosixPath(name).suffix.lower()
    if file_name in _SYSTEM_FILES or file_name.startswith("._"):
        return
    if suffix == ".zip":
        yield from _zip_entries(name, path, report, wanted)
    elif wanted(name):
        try:
            data = None if path.stat().st_size > MAX_FILE else path.read_bytes()
        except OSError:
            report.refused.append((_display_name(name), _("did not arrive")))
            return
        if data is None:
            report.refused.append((_display_name(name), _("larger than {size} MB", size=MAX_FILE // 2**20)))
        else:
            yield name, data


def _zip_entries(name: str, path: Path, report: Report, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error):
        report.refused.append((_display_name(name), _("not a zip file, or damaged")))
        return
    total = 0
    with archive:
        if len(archive.infolist()) > MAX_ENTRIES:
            reason = _("only its first {number} files were read", number=MAX_ENTRIES)
            report.refused.append((_display_name(name), reason))
        for info in archive.infolist()[:MAX_ENTRIES]:
            entry = info.filename.replace("\\", "/")
            if _is_hidden(entry) or not wanted(entry):
                continue
            known = (*images.SUFFIXES, *images.CONVERTED, *images.UNSUPPORTED)
            if PurePosixPath(entry).suffix.lower() not in known and not _is_caption(entry):
                report.refused.append((_display_name(entry), _("not an image")))
                continue
            data, reason = _read_entry(archive, info, MAX_TOTAL - total)
            if data is None:
                report.refused.append((_display_name(entry), reason))
            else:
                total += len(data)
                yield entry, data


def _is_hidden(entry: str) -> bool:
    """Return True if a zip entry is a folder, a hidden file, or what macOS adds to a zip."""
    name = captions.one_line(PurePosixPath(entry).name)
    return not name or name.startswith(".") or entry.endswith("/") or entry.startswith("__MACOSX/")


def _read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, room: int) -> tuple[bytes | None, str]:
    """Read the bytes of a zip entry, or the reason why not. Counts them, as the size in the header may be wrong."""
    limit = min(MAX_FILE, room, max(2**20, info.compress_size * MAX_RATIO))
    try:
        with archive.open(info) as entry:
            data = entry.read(limit + 1)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, OSError, EOFError, ValueError, struct.error):
        return None, _("damaged in the zip, or compressed in an unknown way")
    except RuntimeError:
        return None, _("encrypted")
    if len(data) > limit:
        return None, _("too large when unpacked")
    return data, ""
