"""Image decoding: upright, in RGB, within limits, whatever a file holds; and thumbnails."""

import hashlib
import io
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from trainer import storage
from trainer.data import dataset
from trainer.errors import UserError

THUMBNAIL = 320
PIXELS_PER_BYTE = 2000  # of a JPEG at the most; less is a header that lies, of which decoders make a grey picture
_ONE_AT_A_TIME = threading.Lock()
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def decode(data: bytes, background: str = "white") -> Image.Image:
    """A picture as a viewer shows it, in RGB: rotation applied, 16 bits scaled, alpha composed on a plain colour.

    Raises:
        UserError: it is no picture of a known format, damaged, or too large.
    """
    return _to_rgb(upright(data), background)


def opacity(data: bytes) -> Image.Image | None:
    """Return the alpha channel of an image as grayscale; None if it is opaque everywhere.

    Raises:
        UserError: as `decode`.
    """
    image = upright(data)
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
        image = upright(data, side)
        opaque = 1.0
        if _has_alpha(image):
            image = image.convert("RGBA")
            seen = image.getchannel("A").histogram()
            opaque = sum(seen[128:]) / sum(seen)
        image = _to_rgb(image, "white")
        image.thumbnail((side, side), reducing_gap=2.0)
    return image, opaque


def upright(data: bytes, side: int = 0) -> Image.Image:
    """Decode an image in full and turn it upright, in its own mode.

    A JPEG may come smaller than it is, but not smaller than `side` if that is given.

    Raises:
        UserError: as `decode`.
    """
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


def thumbnail(folder: Path, picture: Path) -> Path:
    """Return a small WebP of an image or a mask, made on first use and kept in the cache of the dataset `folder`."""
    stat = picture.stat()
    name = picture.relative_to(folder)
    key = hashlib.sha256(f"{name}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:24]
    path = folder / dataset.CACHE / "thumbnails" / f"{key}.webp"
    if not path.is_file():
        image, _ = shrunk(picture.read_bytes(), THUMBNAIL)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=80)
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write(path, buffer.getvalue())
    return path
