"""Write files that must survive, and folders; move what is deleted to a bin. Knows no formats.

Every durable file is written beside its final name, synced, renamed over it, and the folder is synced. So at any
moment, whatever happens to the machine, a final name holds either the old or the new content, never a part.
"""

import itertools
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer import fault_injection

PART = ".part"
BIN = ".bin"  # under outputs: runs and kept adapters; in a data set: its pictures
KEPT = 7 * 24 * 3600.0  # seconds that what was deleted stays in its bin
FLOOR = 2 * 2**30  # bytes of a disk that uploads leave free, for the system and for checkpoints


def write(path: Path, data: bytes | str) -> None:
    """Write a whole file so that after a crash the final name holds the old content or the new one.

    Raises:
        OSError: no room, no permission; the old content is untouched and no temporary file is left.
    """
    write_chunks(path, [data.encode() if isinstance(data, str) else data])


def write_chunks(path: Path, chunks: Iterable[bytes]) -> None:
    """The same for a file that is made piece by piece.

    Raises:
        OSError: as above; so it is after any error of who makes the pieces.
    """
    place(path, chunks)
    sync_folder(path.parent)


def place(path: Path, chunks: Iterable[bytes]) -> None:
    """The same for one of many files: each is whole or not there, and lasts once its folder is synced after the last.

    Raises:
        OSError: as above.
    """
    with _written(path, chunks) as part:
        part.replace(path)


def create(path: Path, chunks: Iterable[bytes]) -> None:
    """Write one of many new files as `place` does, but never over one that is there.

    Raises:
        FileExistsError: the name is taken; what has it is untouched.
        OSError: as `write`.
    """
    with _written(path, chunks) as part:
        _rename_to_free(part, path)


def create_numbered(path: Path, chunks: Iterable[bytes]) -> Path:
    """Create a file under a name or, where it is taken, under the same name with the next free number; return its path.

    Raises:
        OSError: as `write`.
    """
    chunks, candidate = list(chunks), path
    for number in itertools.count(2):
        with suppress(FileExistsError):
            create(candidate, chunks)
            sync_folder(path.parent)
            return candidate
        candidate = path.with_name(f"{path.stem[:60]}-{number}{path.suffix}")
    raise AssertionError("numbers do not end")


@contextmanager
def _written(path: Path, chunks: Iterable[bytes]) -> Iterator[Path]:
    """Give a whole, synced file beside `path`; what is left of it afterwards is removed."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        with part.open("xb") as file:
            fault_injection.moment()
            fault_injection.write()
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        fault_injection.moment()
        yield part
        fault_injection.moment()
    finally:
        part.unlink(missing_ok=True)


def _rename_to_free(part: Path, path: Path) -> None:
    """Rename a file to a name that must be free; of several who try, one succeeds.

    Raises:
        FileExistsError: it is not free.
    """
    if os.name == "nt":
        part.rename(path)  # refuses by itself to replace a file
        return
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: claim the name, then fill it
        path.open("xb").close()
        part.replace(path)


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder of several files appear at once: `fill` writes into a temporary one, which is then renamed.

    A folder that already exists at `path` is moved out of the way first and removed after the rename.
    """
    part = path.with_name(f".{path.name}{PART}")
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    try:
        fill(part)
        sync_folder(part)
        fault_injection.moment()
        if path.exists():
            old = path.with_name(f".{path.name}.old{PART}")
            path.replace(old)
            part.replace(path)
            shutil.rmtree(old)
        else:
            part.replace(path)
        fault_injection.moment()
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sync_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Make a folder of several files disappear at once; `sweep` removes what a crash leaves of it."""
    part = path.with_name(f".{path.name}.old{PART}")
    path.replace(part)
    sync_folder(path.parent)
    fault_injection.moment()
    shutil.rmtree(part)


def sweep(*folders: Path) -> None:
    """Remove what a crash left half-written in folders that nobody else writes to now."""
    for folder in folders:
        for part in folder.glob(f".*{PART}"):
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)


def discard(path: Path, place: Path) -> None:
    """Move a file or folder to its place in a bin, where it stays for `KEPT` seconds from now."""
    place.parent.mkdir(parents=True, exist_ok=True)
    os.utime(path)
    path.replace(place)


def empty_bin(folder: Path, kept: float = KEPT) -> None:
    """Remove what has been in the bin of a folder for so many seconds."""
    for path in (folder / BIN).iterdir() if (folder / BIN).is_dir() else ():
        if time.time() - path.lstat().st_mtime > kept:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def is_regular_file(path: Path) -> bool:
    """Tell whether a path is a regular file: a link would lead out of its folder, a pipe would never end."""
    return path.is_file() and not path.is_symlink()


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable; a no-op where the system has no such call (Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def room(folder: Path) -> int:
    """Bytes that may still be taken in on the disk that holds `folder`, so that `FLOOR` of it stays free."""
    return max(0, free_space(folder) - FLOOR)


def free_space(folder: Path) -> int:
    """Bytes free on the disk that holds `folder`, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
