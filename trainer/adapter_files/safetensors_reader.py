"""Read a safetensors file strictly. Knows neither torch nor adapters.

Only the header is kept in memory. Tensors are read when they are asked for, and checked in parts, so that a file takes
little memory however large it is, and stays free to be moved or deleted.

The format (https://github.com/huggingface/safetensors#format) is checked as by its own library: the tensors cover the
data without gaps or overlaps, in sizes that fit their shapes. Besides, the header has a bounded length, names no key
twice, and has no more tensors, and only of those types, than an adapter can have.
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer import foreign_text
from trainer.errors import UserError
from trainer.foreign_text import MAX_HEADER, MAX_TENSORS
from trainer.i18n import _

CHECKSUM = "limner.sha256"  # in the metadata: that of all bytes after the header
PART = 2**20  # bytes that are in memory while a tensor is checked; whole numbers of all types
TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # as torch has them
INTEGERS = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
# The bits of the exponent; a float is not finite if all of them are set.
_EXPONENTS = {"F64": 0x7FF0000000000000, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its type, its shape, and where its bytes are in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def is_float(self) -> bool:
        """True if its type is one of floating-point numbers."""
        return self.dtype in _EXPONENTS


@dataclass(frozen=True)
class SafetensorsFile:
    """A file that was checked; its entries are in the order of the header. `source` holds its bytes, or is its path."""

    name: str
    entries: dict[str, Entry]
    metadata: dict[str, str]
    size: int
    header: bytes
    source: Path | bytes
    _finite: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)  # of tensors that were checked

    def data(self, key: str) -> bytes:
        """Read the bytes of a tensor.

        Raises:
            UserError: the file is another one by now.
        """
        entry = self.entries[key]
        return self._read(entry.start, entry.size)

    def is_finite(self, key: str) -> bool:
        """Return True if all values of a tensor are finite.

        Raises:
            UserError: as `data`.
        """
        mask = _EXPONENTS.get(self.entries[key].dtype)
        if key not in self._finite:
            self._finite[key] = mask is None or not any(((bits & mask) == mask).any() for bits in self._bits(key))
        return self._finite[key]

    def number(self, key: str) -> float:
        """Return the first value of a float tensor, or NaN if there is none.

        Raises:
            UserError: as `data`.
        """
        entry = self.entries[key]
        if not entry.is_float or not entry.size:
            return math.nan
        first = self._read(entry.start, _SIZES[entry.dtype])
        if entry.dtype == "BF16":
            first = b"\0\0" + first  # the upper half of an F32
        kind = {8: "<f8", 4: "<f4", 2: "<f2"}[len(first)]
        return float(np.frombuffer(first, dtype=kind)[0])

    def _bits(self, key: str) -> Iterator[NDArray[Any]]:
        """Yield a tensor's values in parts, as unsigned integers of their width."""
        entry = self.entries[key]
        for start in range(0, entry.size, PART):
            data = self._read(entry.start + start, min(PART, entry.size - start))
            yield np.frombuffer(data, dtype=f"<u{_SIZES[entry.dtype]}")

    def body_sha256(self) -> str:
        """Return the SHA-256 of the bytes after the header.

        Raises:
            UserError: as `data`.
        """
        body, digest = 8 + len(self.header), hashlib.sha256()
        for start in range(body, self.size, PART):
            digest.update(self._read(start, min(PART, self.size - start)))
        return digest.hexdigest()

    def _read(self, start: int, size: int) -> bytes:
        if isinstance(self.source, bytes):
            return self.source[start : start + size]
        try:
            with self.source.open("rb") as file:
                file.seek(start)
                data = file.read(size)
        except OSError:
            data = b""
        if len(data) != size:
            raise refusal(self.name, "it was changed or removed while it was read")
        return data


def read(path: Path) -> SafetensorsFile:
    """Read the header of a file and check it.

    Raises:
        UserError: it does not exist, is damaged, or is not a safetensors file; it says how.
    """
    try:
        with path.open("rb") as file:
            size, opening = path.stat().st_size, file.read(8)
            header = file.read(_header_length(opening, size, path.name))
    except FileNotFoundError:
        raise UserError("There is no file {name}.", "Check the path.", name=path.name) from None
    except IsADirectoryError:
        raise UserError("{name} is a folder.", "Give the path of a .safetensors file.", name=path.name) from None
    return _checked(header, size, path.name, path)


def parse(data: bytes, name: str) -> SafetensorsFile:
    """Check a file's bytes.

    Raises:
        UserError: it is damaged, or is not a safetensors file; it says how.
    """
    length = _header_length(data[:8], len(data), name)
    return _checked(data[8 : 8 + length], len(data), name, data)


def packed(header: Mapping[str, object]) -> bytes:
    """Return the opening of a file as the safetensors library writes it: the length of the header, and the header.

    What is not ASCII is not escaped, and the data begin at a multiple of 8.
    """
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def body_sha256(data: bytes) -> str:
    """Return the SHA-256 of a file's bytes after the header, by which programs know it whatever its metadata."""
    (length,) = struct.unpack("<Q", data[:8])
    return hashlib.sha256(memoryview(data)[8 + length :]).hexdigest()


def check_sum(file: SafetensorsFile) -> None:
    """Compare a file with the checksum in its metadata, if there is one.

    Raises:
        UserError: they differ.
    """
    expected = file.metadata.get(CHECKSUM)
    if expected is not None and file.body_sha256() != expected:
        raise refusal(file.name, "it is damaged: its checksum is another one")


def refusal(name: str, reason: str, /, remedy: str = "", **values: object) -> UserError:
    """Build the error for a file that cannot be used; the reason is a message with its values, as for `i18n._`."""
    return UserError(
        "{name} cannot be used: {reason}.",
        remedy or _("Use an adapter in the .safetensors format of kohya or Limner."),
        name=name,
        reason=_(reason, **values),
    )


def _header_length(opening: bytes, size: int, name: str) -> int:
    """Return the length of a header, by the first eight bytes of a file of this size."""
    if len(opening) < 8:
        raise refusal(name, "it is too short for a safetensors file")
    length: int = struct.unpack("<Q", opening)[0]
    if length > size - 8 and opening.startswith(_PICKLES):
        raise refusal(name, "it is not a safetensors file but pickled data or a zip, which can contain programs")
    if length > size - 8:
        raise refusal(name, "it is not a safetensors file, or its header is damaged")
    if length > MAX_HEADER:
        raise refusal(name, "its header is larger than {size} MB", size=MAX_HEADER // 2**20)
    return length


def _checked(header: bytes, size: int, name: str, source: Path | bytes) -> SafetensorsFile:
    try:
        table = foreign_text.parse_header(header)
        if not header.startswith(b"{"):
            raise ValueError
        metadata = table.pop("__metadata__", None)
        if metadata is None:
            metadata = {}
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError
        start = 8 + len(header)
        entries = {key: _entry(tensor, start, name) for key, tensor in table.items()}
    except foreign_text.TooManyTensorsError:
        raise refusal(name, "it has more than {number} tensors", number=MAX_TENSORS) from None
    except foreign_text.RepeatedKeyError:
        raise refusal(name, "its header names a tensor twice") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise refusal(name, "its header is damaged") from None
    end = start
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.size)):
        if entry.start != end:
            raise refusal(name, "its header is damaged, or does not fit its data")
        end += entry.size
    if end != size:
        raise refusal(name, "it is cut off, or has bytes that belong to no tensor")
    return SafetensorsFile(name, entries, metadata, size, header, source)


def _entry(tensor: dict[str, Any], start: int, name: str) -> Entry:
    """Return what a header says of a tensor of a file whose data start there.

    Raises:
        UserError: its type or size is wrong.
        ValueError: it is damaged, as for a TypeError, KeyError or AttributeError.
    """
    dtype, shape, (begin, end) = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise TypeError
    if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, begin, end)):
        raise ValueError
    if dtype not in _SIZES:
        raise refusal(name, "it has tensors of type {dtype}", dtype=dtype[:20])
    if end - begin != math.prod(shape) * _SIZES[dtype]:
        raise refusal(name, "its header is damaged, or does not fit its data")
    return Entry(dtype, tuple(shape), start + begin, end - begin)
