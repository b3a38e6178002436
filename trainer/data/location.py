"""Remove the place where a photograph was taken from its file. Pixels and everything else stay, bit for bit.

Cameras write the position into EXIF data, and some programs also into XMP. Both are blanked where they lie, so that
nothing in the file moves.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress

_GPS = 0x8825  # tag of the EXIF data that points to the position
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # bytes of each type of value
_EXIF = re.compile(rb"Exif\0\0(?=II\*\0|MM\0\*)")
_XMP = re.compile(rb"<x:xmpmeta.*?</x:xmpmeta>", re.DOTALL)
_XMP_POSITION = re.compile(rb"(?<=[:\s])GPS\w+\s*=\s*([\"'])(.*?)\1|<(\w+:GPS\w+)[^>]*>(.*?)</\3>", re.DOTALL)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = re.compile(rb"Raw profile type (exif|APP1|xmp)\0|XML:com\.adobe\.xmp\x00\x01", re.IGNORECASE)


def removed(data: bytes) -> bytes:
    """Return an image file without the place where it was taken; the file itself if there is none in it."""
    image = bytearray(data)
    if data.startswith(PNG_SIGNATURE):
        return _from_png(image)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        for kind, start, end in _webp_chunks(image):
            if kind == b"EXIF":
                _blank_exif(image, start + 6 * (image[start : start + 6] == b"Exif\0\0"), end)
    for match in _EXIF.finditer(data):  # of a JPEG, and of each image in one of several
        _blank_exif(image, match.end(), len(image))
    _blank_xmp(image, 0, len(image))
    return bytes(image)


def _from_png(image: bytearray) -> bytes:
    """Blank the position in the chunks of a PNG; compressed text that may hold it is left out."""
    kept = bytearray(image[:8])
    position = 8
    while position + 12 <= len(image):
        (length,) = struct.unpack_from(">I", image, position)
        kind, start, end = bytes(image[position + 4 : position + 8]), position + 8, position + 8 + length
        position = end + 4
        if position > len(image):  # cut off, which the decoder judges
            return bytes(kept + image[start - 8 :])
        if kind in (b"tEXt", b"zTXt", b"iTXt") and _PNG_TEXT.match(bytes(image[start : min(end, start + 64)])):
            continue
        before = bytes(image[start:end]) if kind in (b"eXIf", b"iTXt") else b""
        if kind == b"eXIf":
            _blank_exif(image, start, end)
        if kind == b"iTXt":
            _blank_xmp(image, start, end)
        if before and before != image[start:end]:
            struct.pack_into(">I", image, end, zlib.crc32(image[start - 4 : end]))
        kept += image[start - 8 : position]
    return bytes(kept + image[position:])


def _webp_chunks(image: bytearray) -> Iterator[tuple[bytes, int, int]]:
    position = 12
    while position + 8 <= len(image):
        (length,) = struct.unpack_from("<I", image, position + 4)
        yield bytes(image[position : position + 4]), position + 8, min(len(image), position + 8 + length)
        position += 8 + length + length % 2


def _blank_exif(image: bytearray, start: int, end: int) -> None:
    """Empty the position in EXIF data at `start`: its entries and all values that they point to."""
    order = "<" if image[start : start + 2] == b"II" else ">"
    with suppress(struct.error):  # what points out of the data holds nothing
        (first,) = struct.unpack_from(f"{order}I", image, start + 4)
        for entry in _entries(image, start + first, order):
            tag, *_unused, offset = struct.unpack_from(f"{order}HHII", image, entry)
            if tag == _GPS:
                _blank_directory(image, start, start + offset, order)


def _blank_directory(image: bytearray, start: int, directory: int, order: str) -> None:
    entries = list(_entries(image, directory, order))
    for entry in entries:
        _tag, kind, count, offset = struct.unpack_from(f"{order}HHII", image, entry)
        size = _SIZES.get(kind, 1) * count
        if 4 < size <= len(image) - start - offset:
            image[start + offset : start + offset + size] = bytes(size)
    if entries:
        image[directory : entries[-1] + 12] = bytes(entries[-1] + 12 - directory)


def _entries(image: bytearray, directory: int, order: str) -> Iterator[int]:
    """Yield where the entries of a directory begin, as far as there are bytes for them."""
    (count,) = struct.unpack_from(f"{order}H", image, directory)
    for number in range(count):
        entry = directory + 2 + 12 * number
        if entry + 12 <= len(image):
            yield entry


def _blank_xmp(image: bytearray, start: int, end: int) -> None:
    for packet in list(_XMP.finditer(image, start, end)):
        for match in list(_XMP_POSITION.finditer(image, packet.start(), packet.end())):
            for group in (2, 4):
                if match[group] is not None:
                    image[match.start(group) : match.end(group)] = b" " * len(match[group])
