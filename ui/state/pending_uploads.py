"""Uploads that wait to be imported. Each has a folder of its own, with a numbered folder for each of its files."""

import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from trainer import paths, storage

MAX_BYTES = 4 * 2**30  # of all uploads that arrive or wait
MAX_FILES = 25_000
EXPIRY = 3600.0  # seconds after which an upload that was never imported is deleted


def room() -> int:
    """Return the bytes that uploads may still take: some disk space stays free, and those that wait count."""
    waiting = list(_files())
    if len(waiting) >= MAX_FILES:
        return 0
    taken = sum(size for _, size, _ in waiting)
    return max(0, min(storage.usable_space(paths.outputs()), MAX_BYTES - taken))


def create_folder() -> Path:
    """Create the folder of a new upload."""
    folder = paths.uploads() / secrets.token_hex(16)
    folder.mkdir(parents=True)
    return folder


def public_path(file: Path) -> str:
    """Return the path of a file as browsers get to see it: from the home folder, which is the server's current one."""
    return file.relative_to(paths.home()).as_posix()


def find(path: str) -> Path | None:
    """Return the file with a path that `public_path` returned; None if it is not one of an upload."""
    try:
        file = (paths.home() / path).resolve()
    except (OSError, ValueError):  # it can be no path
        return None
    return file if file.is_relative_to(paths.uploads().resolve()) and file.is_file() else None


def discard(files: Iterable[Path]) -> None:
    """Delete files of uploads that were imported or refused, and the folders that this leaves empty."""
    for file in files:
        storage.remove(file)
        _remove_empty(file.parent)


def _remove_empty(folder: Path) -> None:
    """Remove the folder of a file, and that of its upload, if nothing else is in them."""
    with suppress(OSError):
        while folder != paths.uploads() and folder.is_relative_to(paths.uploads()):
            folder.rmdir()
            folder = folder.parent


def discard_folder(folder: Path) -> None:
    """Delete an upload that was cut off."""
    shutil.rmtree(folder, ignore_errors=True)


def delete_expired(age: float = EXPIRY) -> None:
    """Delete uploads that no page imported and that are at least `age` seconds old."""
    for file, _, written in list(_files()):
        if time.time() - written >= age:
            with suppress(PermissionError):  # on Windows, while something has it open
                file.unlink(missing_ok=True)
                _remove_empty(file.parent)


def _files() -> Iterator[tuple[Path, int, float]]:
    """Yield path, size and modification time of each file that waits; others may vanish meanwhile."""
    for folder, _, names in os.walk(paths.uploads()):
        for name in names:
            with suppress(OSError):
                path = Path(folder, name)
                stat = path.stat()
                yield path, stat.st_size, stat.st_mtime
