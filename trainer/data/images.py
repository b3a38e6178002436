"""Image files: their headers, decoding (upright, in RGB, within limits, whatever the file holds) and thumbnails."""

import hashlib
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from trainer import paths, storage
from trainer.data.location import PNG_SIGNATURE
from trainer.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # a JPEG of several images (MPO) opens as its first
CONVERTED = (".heic", ".heif", ".avif")  # extensions of what is stored as PNG
UNSUPPORTED = {  # what people may take for images that can be trained, by extension
    ".svg": "SVG",
    ".jxl": "JPEG XL",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".psd": "Photoshop",
}
MAX_PIXELS = 64_000_000
THUMBNAIL_EFFORT = 2  # of WebP, 0 to 6; its default of 4 takes more than twice the time, for files 3 % smaller
THUMBNAIL = 320
PIXELS_PER_BYTE = 2000  # of a JPEG, at most; more means a false header, which decoders turn into a gray image
_CONVERTED_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
_ORIENTATION = 0x0112
_SIDEWAYS = {5, 6, 7, 8}
_PNG_HEADER = (b"IHDR", b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # chunks that tell the size, or may tell the orientation
_NO_PIXELS = b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
BROKEN = (OSError, ValueError, SyntaxError, struct.error)  # what Pillow raises for a header that is not whole
LARGE = 2**22  # pixels above which images are decoded one at a time
_ONE_AT_A_TIME = threading.Lock()
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DamagedError(UserError):
    """An image file that is not complete, or has been changed."""


# Headers --------------------------------------------------------------------------------------------------------


def display_size(path: Path) -> tuple[int, int] | None:
    """Return the width and height of an image as a viewer shows it, or None if the file is not an image."""
    header = _header(path)
    if header is None:
        return None
    width, height, rotation = header
    return (height, width) if rotation in _SIDEWAYS else (width, height)


def is_rotated(path: Path) -> bool:
    """Return True if an image is stored in another orientation than a viewer shows it in."""
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
    """Read the stored width, height and orientation; None if it is not an image. Cached until the file changes."""
    try:
        with Image.open(_without_pixels(path), formats=FORMATS) as image:
            width, height = image.size
            rotation = orientation(image)
    except (*BROKEN, Image.DecompressionBombError):
        return None
    return None if width * height > MAX_PIXELS else (width, height, rotation)


def png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield the kind and the length of each chunk of a PNG, with the file at its data; what is not read is skipped.

    PNG specification, third edition, section 5.3.
    """
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        end = file.tell() + length + 4  # and the checksum
        yield kind, length
        file.seek(end)


def _without_pixels(path: Path) -> Path | io.BytesIO:
    """Return a PNG without its pixels, which Pillow decodes to look for an orientation behind them; other files as is.

    Order of chunks: PNG specification, third edition, section 5.6.
    """
    with path.open("rb") as file:
        chunks = [file.read(len(PNG_SIGNATURE))]
        if chunks != [PNG_SIGNATURE]:
            return path
        for kind, length in png_chunks(file):
            if kind == b"fdAT":  # what stands behind further frames is not about the first
                break
            if kind in _PNG_HEADER:
                chunks.append(struct.pack(">I4s", length, kind) + file.read(length + 4))
    return io.BytesIO(b"".join([*chunks, _NO_PIXELS]))


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 (upright) to 8; 1 also where the EXIF data are damaged."""
    try:
        value = Image.Image.getexif(image).get(_ORIENTATION)  # the method of a PNG decodes it first
    except (*BROKEN, TypeError, LookupError, AttributeError, OverflowError):
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


# Pixels ---------------------------------------------------------------------------------------------------------


def decode(data: bytes, background: str = "white") -> Image.Image:
    """Decode an image as a viewer shows it, in RGB: upright, 16 bits scaled to 8, alpha composed on a plain color.

    Raises:
        UserError: it is not an image of a known format, damaged, or too large.
    """
    return _to_rgb(upright(data), background)


def alpha_channel(data: bytes) -> Image.Image | None:
    """Return the alpha channel of an image as grayscale; None if it is opaque everywhere.

    Raises:
        UserError: as `decode`.
    """
    image = upright(data)
    if not _has_alpha(image):
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return alpha if alpha.getextrema()[0] != 255 else None


def downscale(data: bytes, side: int) -> tuple[Image.Image, float]:
    """Decode an image on white, at most `side` pixels wide and high; return it with the share of it that is opaque.

    Raises:
        UserError: as `decode`.
    """
    with _gate(data):  # the page requests many at once, and a large image takes much memory
        image = upright(data, side)
        opaque = 1.0
        if _has_alpha(image):
            image = image.convert("RGBA")
            histogram = image.getchannel("A").histogram()
            opaque = sum(histogram[128:]) / sum(histogram)
        image = _to_rgb(image, "white")
        image.thumbnail((side, side), reducing_gap=2.0)
    return image, opaque


def _gate(data: bytes) -> AbstractContextManager[object]:
    """Return what an image is decoded in: large ones one at a time, others at once."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            is_large = image.width * image.height > LARGE
    except (*BROKEN, Image.DecompressionBombError):
        return nullcontext()  # it is refused when it is decoded
    return _ONE_AT_A_TIME if is_large else nullcontext()


def storable(data: bytes) -> bytes:
    """Decode an upload in full, and return what a dataset holds of it: HEIC and AVIF as PNG, all else as it is.

    Training, browsers and the tools of the field read PNG everywhere. The PNG is upright and has no metadata but the
    color profile.

    Raises:
        UserError: as `decode`.
    """
    if data[4:8] != b"ftyp" or data[8:12] not in _CONVERTED_BRANDS:
        upright(data)
        return data
    # Only the upload sandbox gets here: the page never loads libheif.
    import pillow_heif  # noqa: PLC0415 - for HEIC and AVIF only

    pillow_heif.register_heif_opener(thumbnails=False, decode_threads=1)
    image = upright(data, formats=("HEIF", "AVIF"))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=2, icc_profile=image.info.get("icc_profile"), exif=b"")
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    """Return an image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def upright(data: bytes, side: int = 0, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Decode an image of one of the formats in full and turn it upright, in its own mode.

    If `side` is given, a JPEG may be decoded at a reduced size that is not below it.

    Raises:
        UserError: as `decode`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about odd but readable files
            with Image.open(io.BytesIO(data), formats=formats) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                if image.format in ("JPEG", "MPO") and image.width * image.height > PIXELS_PER_BYTE * len(data):
                    raise EOFError
                if side:
                    image.draft(None, (side, side))
                image.load()
                transpose = _TO_UPRIGHT.get(orientation(image))
                return image.copy() if transpose is None else image.transpose(transpose)
    except UnidentifiedImageError:
        if formats != FORMATS:
            raise DamagedError("damaged", "Export it again as PNG or JPEG.") from None
        raise UserError("not an image", "Use PNG, JPEG, WebP, BMP, HEIC or AVIF.") from None
    except Image.DecompressionBombError:
        raise UserError(
            "larger than {pixels} megapixels", "Scale it down first.", pixels=MAX_PIXELS // 1_000_000
        ) from None
    except MemoryError:
        raise UserError("needs too much memory", "Scale it down first.") from None
    except (*BROKEN, EOFError, RuntimeError, zlib.error, LookupError, OverflowError):
        raise DamagedError("damaged", "Export it again as PNG or JPEG.") from None


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _to_rgb(image: Image.Image, background: str) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        import numpy as np  # noqa: PLC0415 - slow, and few images need it

        scaled = np.clip(np.asarray(image, dtype=np.float64) / 257.0, 0, 255).round().astype(np.uint8)
        return Image.fromarray(scaled).convert("RGB")
    if _has_alpha(image):
        image = image.convert("RGBA")
        below = Image.new("RGBA", image.size, background)
        return Image.alpha_composite(below, image).convert("RGB")
    return image.convert("RGB")


def thumbnail(folder: Path, path: Path) -> bytes:
    """Return a small WebP of an image or a mask, made on first use.

    It is kept in the cache of the dataset `folder`, or made each time where that cannot be written to.
    """
    stat = path.stat()
    name = path.relative_to(folder)
    key = hashlib.sha256(f"{name}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:24]
    target = folder / paths.CACHE / "thumbnails" / f"{key}.webp"
    if target.is_file():
        return target.read_bytes()
    image, _ = downscale(path.read_bytes(), THUMBNAIL)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80, method=THUMBNAIL_EFFORT)
    with suppress(OSError):  # the disk is full, or the folder has been deleted meanwhile
        paths.make_cache(folder, target.parent.name)
        storage.write_unsynced(target, [buffer.getvalue()])  # made again if it is lost
    return buffer.getvalue()
