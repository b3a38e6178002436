"""Checksums of the images of a dataset as they were added, by which damage can be told from an edit.

A program that edits an image changes its date, too; a bad disk does not. So an image that has another checksum, but the
date that was recorded with it, is damaged. Captions and masks are not recorded: they change all the time.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer import foreign_text, paths, storage

State = Literal["whole", "edited", "damaged", "missing"]


@dataclass(frozen=True)
class Original:
    """SHA-256 of an image, and the modification time that its file had then, in nanoseconds."""

    sha256: str
    changed: int

    def compare(self, path: Path) -> State:
        """Compare the file of an image with the record."""
        if not storage.is_regular_file(path):
            return "missing"
        if storage.sha256(path) == self.sha256:
            return "whole"
        return "damaged" if path.stat().st_mtime_ns == self.changed else "edited"


def known(folder: Path) -> dict[str, Original]:
    """Return what is recorded of the images of a dataset, by name."""
    try:
        data = foreign_text.read_json(file(folder), most=foreign_text.MAX_OWN)
        return {str(name): Original(str(sha256), int(changed)) for name, (sha256, changed) in data.items()}
    except (OSError, ValueError, TypeError, AttributeError):  # none yet, or damaged
        return {}


def is_readable(folder: Path) -> bool:
    """Tell whether the record is whole, or there is none."""
    return bool(known(folder)) or not file(folder).exists() or file(folder).read_bytes() == b"{}"


def record(folder: Path, checksums: Mapping[str, str]) -> None:
    """Record images that were added, by their names and checksums."""
    new = {name: Original(sha256, (folder / name).stat().st_mtime_ns) for name, sha256 in checksums.items()}
    if new:
        _keep(folder, known(folder) | new)


def record_as_they_are(folder: Path, images: Iterable[Path], *, forget_missing: bool) -> None:
    """Record the images of a dataset as they are now; a damaged one keeps the checksum that it should have."""
    entries, paths_by_name = known(folder), {path.name: path for path in images}
    if forget_missing:
        entries = {name: original for name, original in entries.items() if name in paths_by_name}
    for name, path in paths_by_name.items():
        if name not in entries or entries[name].compare(path) == "edited":
            entries[name] = Original(storage.sha256(path), path.stat().st_mtime_ns)
    _keep(folder, entries)


def move(source: Path, target: Path, names: Mapping[str, str]) -> None:
    """Move what is recorded of images to another folder, or to other names: from the keys to the values of `names`."""
    entries = known(source)
    moved = {new: entries.pop(old) for old, new in names.items() if old in entries}
    if not moved:
        return
    if target != source:
        _keep(target, known(target) | moved)
        moved = {}
    _keep(source, entries | moved)


def file(folder: Path) -> Path:
    """Return the path of the record of a dataset."""
    return folder / paths.CACHE / "originals.json"


def _keep(folder: Path, entries: Mapping[str, Original]) -> None:
    path = file(folder)
    path.parent.mkdir(exist_ok=True)
    values = {name: (original.sha256, original.changed) for name, original in sorted(entries.items())}
    storage.write(path, json.dumps(values))
