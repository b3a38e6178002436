"""A safetensors file as a container: nothing of it is believed before it was checked. Knows no torch and no adapters.

The format: 8 bytes with the header's length, a JSON header with type, shape and place of each tensor, the data. The
reader wants more than the format says: a header of bounded length, keys that are there once, known types, and data
that tile the rest of the file without gap or overlap.
"""

import json
import math
import struct
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import UserError
from trainer.i18n import say

MAX_HEADER = 8 * 2**20
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
# The bits of the exponent; a float is not finite if all of them are set.
_EXPONENTS = {"F64": 0x7FF0000000000000, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class Entry:
    """A tensor in the header: its type, its shape, and where its bytes are in the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Container:
    """A file that was checked."""

    name: str
    entries: dict[str, Entry]
    metadata: dict[str, str]
    data: bytes

    @cached_property
    def start(self) -> int:
        """Return the offset in bytes at which the tensors' data begin."""
        length: int = struct.unpack("<Q", self.data[:8])[0]
        return 8 + length

    @property
    def body(self) -> memoryview:
        """The tensors' data."""
        return memoryview(self.data)[self.start :]

    def bits(self, key: str) -> NDArray[Any]:
        """A tensor's values as unsigned numbers of their width, flat."""
        entry = self.entries[key]
        return np.frombuffer(self.body[entry.begin : entry.end], dtype=f"<u{_SIZES[entry.dtype]}")

    def is_finite(self, key: str) -> bool:
        """Tell whether all values of a tensor are finite."""
        mask = _EXPONENTS.get(self.entries[key].dtype)
        return mask is None or not bool(((self.bits(key) & mask) == mask).any())

    def number(self, key: str) -> float:
        """The first value of a tensor of floats; not a number if there is none."""
        bits, dtype = self.bits(key)[:1], self.entries[key].dtype
        if dtype not in _EXPONENTS or not len(bits):
            return math.nan
        if dtype == "BF16":  # the upper half of a single-precision number
            bits, dtype = bits.astype("<u4") << 16, "F32"
        return float(bits.view(f"<f{_SIZES[dtype]}")[0])


def read(path: Path) -> Container:
    """Read and check a file.

    Raises:
        UserError: it is missing, no safetensors file, or damaged; it says how.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError("There is no file {name}.", "Check the path.", name=path.name) from None
    except IsADirectoryError:
        raise UserError("{name} is a folder.", "Give the path of a .safetensors file.", name=path.name) from None
    return parse(data, path.name)


def refusal(name: str, reason: str, /, **values: object) -> UserError:
    """Build the error for a file that cannot be used; the reason is a message with its values, as for `say`."""
    return UserError(
        "{name} cannot be used: {reason}.", "Use an adapter in the .safetensors form of kohya or Limner.",
        name=name, reason=say(reason, **values),
    )  # fmt: skip


def parse(data: bytes, name: str) -> Container:
    """Check a file's bytes.

    Raises:
        UserError: it is no safetensors file, or damaged; it says how.
    """
    if len(data) < 8:
        raise refusal(name, "it is too short for a safetensors file")
    (length,) = struct.unpack("<Q", data[:8])
    if length > len(data) - 8 and data.startswith(_PICKLES):
        raise refusal(name, "it is no safetensors file but a pickled one or a zip, which can hold programs")
    if length > MAX_HEADER and length <= len(data) - 8:
        raise refusal(name, "its header is larger than {size} MB", size=MAX_HEADER // 2**20)
    if length > len(data) - 8:
        raise refusal(name, "it is no safetensors file, or its header is damaged")
    entries, metadata = header(data[8 : 8 + length], name)
    check_tiling(entries, len(data) - 8 - length, name)
    return Container(name, entries, metadata, data)


def check_tiling(entries: dict[str, Entry], size: int, name: str) -> None:
    """Check that tensors fill their file without gap or overlap.

    Raises:
        UserError: they do not.
    """
    position = 0
    for entry in sorted(entries.values(), key=lambda one: (one.begin, one.end)):
        if entry.begin != position or entry.end - entry.begin != math.prod(entry.shape) * _SIZES[entry.dtype]:
            raise refusal(name, "its header does not fit its data")
        position = entry.end
    if position != size:
        raise refusal(name, "it is cut off, or has bytes that belong to no tensor")


def header(text: bytes, name: str) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors' entries and the metadata of a header.

    Raises:
        UserError: it is damaged.
    """
    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise refusal(name, "its header is damaged or names a tensor twice") from None
    if not isinstance(table, dict):
        raise refusal(name, "its header is no table")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise refusal(name, "its metadata is not text")
    return {key: _entry(entry, name) for key, entry in table.items()}, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if any(count > 1 for count in Counter(key for key, _ in pairs).values()):
        raise ValueError("a key twice")
    return dict(pairs)


def _entry(entry: Any, name: str) -> Entry:  # noqa: ANN401 - foreign JSON
    try:
        shape, (begin, end), dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
        known = dtype in _SIZES
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError):
        known, numbers = False, []
    if not known:
        raise refusal(name, "its header describes a tensor in an unknown way")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise refusal(name, "its header has odd numbers")
    return Entry(dtype, tuple(shape), begin, end)
