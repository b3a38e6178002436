"""Captions: `.txt` files beside the images, their decoding, and the trigger word in them."""

import codecs
import re
from pathlib import Path

from trainer import storage
from trainer.i18n import JOINERS

MAX_BYTES = 2**20  # of a caption file that are read
REPLACEMENT = "\ufffd"  # stands for bytes that mean nothing in the encoding of a text
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # first: it begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_FOREIGN = re.compile(rb"[\x80-\xff]{4}")  # more than Western languages have in a row


def caption_file(image: Path) -> Path:
    """Return the path of an image's caption file."""
    return image.with_suffix(".txt")


def read_caption(image: Path) -> str:
    """Read the caption of an image as one line; "" if there is none."""
    return one_line(_read_text(caption_file(image)))


def read_captions(image: Path) -> tuple[str, ...]:
    """Read each line of a caption file that is not blank as a caption of its own."""
    lines = [one_line(line) for line in _read_text(caption_file(image)).splitlines()]
    return tuple(line for line in lines if line)


def _read_text(path: Path) -> str:
    """Read a text file; "" if there is none."""
    if not storage.is_regular_file(path):
        return ""
    with path.open("rb") as file:
        return decode_text(file.read(MAX_BYTES))


def one_line(text: str) -> str:
    """Return text without line breaks, control characters and outer white space; its backslashes and emoji stay."""
    printable = "".join(c if c.isprintable() or c.isspace() or c in JOINERS else " " for c in text)
    return re.sub(r"\s+", " ", printable).strip()


def decode_text(data: bytes) -> str:
    """Decode UTF-8, UTF-16 or UTF-32, or else Windows-1252, which old editors write.

    Bytes that mean nothing in the encoding become `REPLACEMENT`, as do all bytes above ASCII in a text that is in
    another one, such as GBK, Shift-JIS or Windows-1251: it would be read as a row of odd letters.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data.decode(encoding, errors="replace")
    for encoding, high_bytes in (("utf-16-le", data[1::2]), ("utf-16-be", data[::2])):
        if high_bytes.count(0) > 0.4 * len(high_bytes):  # true of most languages in UTF-16; other text has no zeros
            return data.decode(encoding, errors="replace").replace("\0", REPLACEMENT)
    try:
        return data.decode("utf-8-sig").replace("\0", REPLACEMENT)
    except UnicodeDecodeError:
        if _FOREIGN.search(data):
            return data.decode("ascii", errors="replace").replace("\0", REPLACEMENT)
        return data.decode("cp1252", errors="replace").replace("\0", REPLACEMENT)


def with_trigger(caption: str, trigger: str) -> str:
    """Return the caption as it is trained: with the trigger word in front unless it contains it already."""
    if not trigger or contains_trigger(caption, trigger):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def without_trigger(caption: str, *triggers: str) -> str:
    """Return the caption without the trigger words, and without the commas that they leave behind."""
    if not any(triggers):
        return caption
    parts = caption.split(",")
    for trigger in filter(None, triggers):
        parts = [_pattern(trigger).sub("", part).strip() for part in parts]
    return ", ".join(re.sub(r"\s+", " ", part) for part in parts if part)


def contains_trigger(caption: str, trigger: str) -> bool:
    """Tell whether the trigger stands in the caption as a word of its own."""
    return _pattern(trigger).search(caption) is not None


def _pattern(trigger: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)
