"""Read a safetensors file strictly. Knows neither torch nor adapters.

The safetensors library checks the format. What it leaves open is checked here: the header has a bounded length, names
no key twice, and has only types that an adapter can have.
"""

import hashlib
import json
import math
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from trainer.errors import UserError
from trainer.i18n import _

MAX_HEADER = 8 * 2**20
CHECKSUM = "limner.sha256"  # in the metadata: that of all bytes after the header
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
# The bits of the exponent; a float is not finite if all of them are set.
_EXPONENTS = {"F64": 0x7FF0000000000000, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its type, its shape and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytearray


@dataclass(frozen=True)
class SafetensorsFile:
    """Contents of a file that was checked; its entries are in the order of the header."""

    name: str
    entries: dict[str, Entry]
    metadata: dict[str, str]
    data: bytes

    def bits(self, key: str) -> NDArray[Any]:
        """Return a tensor's values as unsigned integers of their width, flat."""
        entry = self.entries[key]
        return np.frombuffer(entry.data, dtype=f"<u{_SIZES[entry.dtype]}")

    def is_finite(self, key: str) -> bool:
        """Tell whether all values of a tensor are finite."""
        mask = _EXPONENTS.get(self.entries[key].dtype)
        return mask is None or not bool(((self.bits(key) & mask) == mask).any())

    def number(self, key: str) -> float:
        """Return the first value of a float tensor, or NaN if there is none."""
        bits, dtype = self.bits(key)[:1], self.entries[key].dtype
        if dtype not in _EXPONENTS or not len(bits):
            return math.nan
        if dtype == "BF16":  # the upper half of a single-precision number
            bits, dtype = bits.astype("<u4") << 16, "F32"
        return float(bits.view(f"<f{_SIZES[dtype]}")[0])


def read(path: Path) -> SafetensorsFile:
    """Read and check a file.

    Raises:
        UserError: it does not exist, is damaged, or is not a safetensors file; it says how.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError("There is no file {name}.", "Check the path.", name=path.name) from None
    except IsADirectoryError:
        raise UserError("{name} is a folder.", "Give the path of a .safetensors file.", name=path.name) from None
    return parse(data, path.name)


def refusal(name: str, reason: str, /, **values: object) -> UserError:
    """Build the error for a file that cannot be used; the reason is a message with its values, as for `i18n._`."""
    return UserError(
        "{name} cannot be used: {reason}.",
        "Use an adapter in the .safetensors format of kohya or Limner.",
        name=name,
        reason=_(reason, **values),
    )


def parse(data: bytes, name: str) -> SafetensorsFile:
    """Check a file's bytes.

    Raises:
        UserError: it is damaged, or is not a safetensors file; it says how.
    """
    length = _header_length(data, name)
    try:
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_unique)
        tensors = dict(deserialize(data))  # type: ignore[no-untyped-call]
    except _TwiceError:
        raise refusal(name, "its header names a tensor twice") from None
    except (ValueError, RecursionError):
        raise refusal(name, "its header is damaged") from None
    except SafetensorError as error:
        if "not fully covered" in str(error):
            raise refusal(name, "it is cut off, or has bytes that belong to no tensor") from None
        raise refusal(name, "its header is damaged, or does not fit its data") from None
    metadata = header.pop("__metadata__", None) or {}
    for tensor in tensors.values():
        if tensor["dtype"] not in _SIZES:
            raise refusal(name, "it has tensors of type {dtype}", dtype=tensor["dtype"])
    entries = {key: Entry(tensors[key]["dtype"], tuple(tensors[key]["shape"]), tensors[key]["data"]) for key in header}
    return SafetensorsFile(name, entries, metadata, data)


def body_sha256(data: bytes) -> str:
    """Return the SHA-256 of a file's bytes after the header, by which programs know it whatever its metadata."""
    (length,) = struct.unpack("<Q", data[:8])
    return hashlib.sha256(memoryview(data)[8 + length :]).hexdigest()


def check_sum(file: SafetensorsFile, key: str = CHECKSUM) -> None:
    """Compare a file with the checksum in its metadata, if there is one.

    Raises:
        UserError: they differ.
    """
    if file.metadata.get(key, checksum := body_sha256(file.data)) != checksum:
        raise refusal(file.name, "it is damaged: its checksum is another one")


def _header_length(data: bytes, name: str) -> int:
    if len(data) < 8:
        raise refusal(name, "it is too short for a safetensors file")
    length: int = struct.unpack("<Q", data[:8])[0]
    if length > len(data) - 8 and data.startswith(_PICKLES):
        raise refusal(name, "it is not a safetensors file but pickled data or a zip, which can contain programs")
    if length > len(data) - 8:
        raise refusal(name, "it is not a safetensors file, or its header is damaged")
    if length > MAX_HEADER:
        raise refusal(name, "its header is larger than {size} MB", size=MAX_HEADER // 2**20)
    return length


class _TwiceError(ValueError):
    """A JSON object has a key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if any(count > 1 for count in Counter(key for key, _ in pairs).values()):
        raise _TwiceError
    return dict(pairs)
