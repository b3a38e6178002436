"""Captions: `.txt` files beside the images, the other forms that are read, and the trigger word in them.

An image without a `.txt` file has the caption of a `.caption` file, as kohya's scripts read it, or else that of a
`metadata.jsonl` in its folder, in the form of Hugging Face datasets: `{"file_name": "001.png", "text": "a fox"}`. What
is changed is written to the `.txt` file.
"""

import codecs
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from trainer import foreign_text, storage
from trainer.i18n import JOINERS

MAX_BYTES = 2**20  # of a caption file that are read
MAX_METADATA = 64 * 2**20  # bytes of a file with the captions of a folder that are read
FORMS = (".txt", ".caption")  # in the order in which they are looked for
METADATA = "metadata.jsonl"
TEXTS = ("text", "caption", "prompt")  # names of a caption in it
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


def source(image: Path) -> Path | None:
    """Return the file that an image's caption is read from; None if it has none."""
    for form in FORMS:
        if storage.is_regular_file(image.with_suffix(form)):
            return image.with_suffix(form)
    metadata = image.with_name(METADATA)
    return metadata if storage.is_regular_file(metadata) and image.name in _metadata_of(metadata) else None


def read_caption(image: Path) -> str:
    """Read the caption of an image as one line; "" if there is none, or only commas."""
    return " ".join(lines(_read(image)))


def read_text(image: Path) -> str:
    """Read the caption of an image with its line breaks; each line may be trained as a caption of its own."""
    return clean(_read(image))


def read_captions(image: Path) -> tuple[str, ...]:
    """Read each line of a caption file that is not blank as a caption of its own."""
    return tuple(lines(_read(image)))


def _read(image: Path) -> str:
    path = source(image)
    if path is None:
        return ""
    if path.name == METADATA:
        return _metadata_of(path)[image.name]
    with path.open("rb") as file:
        return decode_text(file.read(MAX_BYTES))


def _metadata_of(path: Path) -> dict[str, str]:
    state = path.stat()
    return _read_metadata(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=16)
def _read_metadata(path: Path, _changed: int, size: int) -> dict[str, str]:
    return parse_metadata(path.read_bytes()) if size <= MAX_METADATA else {}


def parse_metadata(data: bytes) -> dict[str, str]:
    """Return the captions in a `metadata.jsonl` by the names of their images; lines that name none are left out."""
    texts = {}
    for line in decode_text(data).split("\n"):  # JSON may have other separators of lines in its texts
        try:
            row = foreign_text.parse_json(line)
        except foreign_text.ForeignTextError:
            continue
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            continue
        text = next((row[name] for name in TEXTS if isinstance(row.get(name), str)), None)
        if text is not None:
            texts[row["file_name"].replace("\\", "/")] = text
    return texts


def clean(text: str) -> str:
    """Return a text as it is stored as a caption: its `lines`, with their breaks."""
    return "\n".join(lines(text))


def lines(text: str) -> list[str]:
    """Return the lines of a text that have more than white space and commas, each as `one_line` returns it."""
    return [line for line in map(one_line, text.splitlines()) if line.strip(", ")]


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


def of_class(caption: str, class_words: Mapping[str, str]) -> str:
    """Return the caption with class words for trigger words; one whose class word is "" or there anyway is removed."""
    for trigger, class_word in class_words.items():
        if class_word and not contains_trigger(caption, class_word):
            caption = _pattern(trigger).sub(class_word.replace("\\", r"\\"), caption)
    return without_trigger(caption, *class_words)


def contains_trigger(caption: str, trigger: str) -> bool:
    """Return True if the trigger stands in the caption as a word of its own."""
    return _pattern(trigger).search(caption) is not None


def _pattern(trigger: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)
