"""JSON in the cache of a dataset with a checksum, so that a damaged file is never believed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from trainer import foreign_text, storage


def write(path: Path, value: object) -> None:
    """Write a value as JSON, below its checksum.

    Raises:
        OSError: as `storage.write`.
    """
    text = json.dumps(value)
    storage.write(path, f"{_checksum(text)}\n{text}")


def read(path: Path) -> Any:  # noqa: ANN401 - any JSON
    """Return the value that `write` stored; None if there is none, or the file is damaged."""
    try:
        checksum, _, text = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, ValueError):
        return None
    return foreign_text.parse_json(text, most=foreign_text.MAX_OWN) if checksum == _checksum(text) else None


def is_damaged(path: Path) -> bool:
    """Tell whether a file is there, but not as `write` left it."""
    return path.is_file() and read(path) is None


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
