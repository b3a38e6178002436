"""Write files that must survive crashes, and folders; move deleted files to a bin. Independent of file formats.

Every durable file is written beside its final name, synced and renamed over it, and then the folder is synced. So at
any moment, whatever happens to the machine, a final name holds either the old or the new content, never a part of it.

Windows refuses to replace, rename or delete what a process has open: the page that reads a log, a virus scanner. Here
that is tried again for a while.
"""

import glob
import hashlib
import itertools
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

import psutil
from filelock import BaseFileLock

PART = ".part"
_PART_OF = re.compile(r"\.(\d+)-[0-9a-f]{8}\.part")
MOMENT = 60.0  # seconds
LONG = 200  # bytes of a name, of which file systems take 255, from which that of a temporary file is shortened
BIN = ".bin"  # under outputs: runs and kept adapters; under datasets: projects; in a dataset: its images
KEPT = 7 * 24 * 3600.0  # seconds that deleted files stay in their bin
IN_USE = 5.0  # seconds that a file may be open elsewhere before an operation on it fails
RESERVED = 2 * 2**30  # bytes of a disk that uploads leave free, for the system and for checkpoints


def take_lock(lock: BaseFileLock, timeout: float = -1) -> None:
    """Take a lock whose file lies in a folder that may be deleted or renamed at any time; -1 = wait for it.

    By itself a lock makes the folder of its file, so that one that is gone would come back, empty.

    Raises:
        OSError: the folder does not exist, or was moved away meanwhile; or no permission.
        Timeout: another process has the lock.
    """
    file = Path(lock.lock_file)
    before = [(folder, folder.stat()) for folder in (file.parent, file.parent.parent)]
    lock.acquire(timeout=timeout)
    try:
        made = [folder for folder, state in before if not os.path.samestat(state, folder.stat())]
    except FileNotFoundError:
        made = [file.parent]
    if not made:
        return
    lock.release()
    with suppress(OSError):  # another process was faster, or has put something there
        if list(file.parent.iterdir()) == [file]:
            file.unlink()
            for folder in made:
                folder.rmdir()
    raise FileNotFoundError(file.parent)


def keep_private(*folders: Path) -> None:
    """Let only this user read what this process, and those that it starts, write from now on, and some folders.

    Raises:
        OSError: a folder belongs to another user.
    """
    os.umask(0o077)
    for folder in folders:
        if os.name == "posix" and folder.is_dir() and folder.stat().st_mode & 0o077:
            folder.chmod(0o700)


def write(path: Path, data: bytes | str) -> str:
    """Write a file so that after a crash it has either its old or its new content; return the SHA-256 of the new one.

    Raises:
        OSError: no space or no permission; the old content is untouched and no temporary file is left.
    """
    data = data.encode() if isinstance(data, str) else data
    write_chunks(path, [data])
    return hashlib.sha256(data).hexdigest()


def write_chunks(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file as `write` does, from chunks.

    Raises:
        OSError: as `write`. After an error in `chunks`, too, the old content is untouched.
    """
    write_unsynced(path, chunks)
    sync_folder(path.parent)


def append(part: Path, chunks: Iterable[bytes], *, from_start: bool) -> None:
    """Append to a part that is written over several attempts, or begin it again; `finish` gives it its name."""
    with part.open("wb" if from_start else "ab") as file:
        for chunk in chunks:
            file.write(chunk)


def finish(part: Path, path: Path) -> None:
    """Give a part that was written piece by piece its final name, durably."""
    with part.open("rb+") as written:
        os.fsync(written.fileno())
    part.replace(path)
    sync_folder(path.parent)


def open_passing(path: Path) -> BinaryIO:
    """Open a new file for what need not survive a crash, such as an upload until it is imported."""
    return path.open("xb")


def open_scratch(folder: Path) -> IO[bytes]:
    """Open a new file without a name beside what will be written from it; it goes when it is closed, or its process."""
    return tempfile.TemporaryFile(dir=folder)


def write_unsynced(path: Path, chunks: Iterable[bytes]) -> None:
    """Write one of many files as `write_chunks` does, without syncing the folder: the caller does so after the last.

    Raises:
        OSError: as `write`.
    """
    with _written(path, lambda file: file.writelines(chunks)) as part:
        replace(part, path)


def write_with(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Write a file as `write` does; `fill` writes its content into an open file.

    Raises:
        OSError: as `write`. After an error in `fill`, too, the old content is untouched.
    """
    with _written(path, fill) as part:
        replace(part, path)
    sync_folder(path.parent)


def create(path: Path, chunks: Iterable[bytes]) -> None:
    """Write one of many new files as `write_unsynced` does, but never over an existing one.

    Raises:
        FileExistsError: the name is taken; the existing file is untouched.
        OSError: as `write`.
    """
    with _written(path, lambda file: file.writelines(chunks)) as part:
        _rename_to_free(part, path)


def move_numbered(source: Path, path: Path) -> Path:
    """Give a file of the same disk a name or, where it is taken, the same with the next free number; return its path.

    Raises:
        OSError: as `write`.
    """
    with source.open("rb+") as written:
        os.fsync(written.fileno())
    candidate = path
    for number in itertools.count(2):
        with suppress(FileExistsError):
            _rename_to_free(source, candidate)
            remove(source)
            sync_folder(path.parent)
            return candidate
        candidate = path.with_name(f"{path.stem[:60]}-{number}{path.suffix}")
    raise AssertionError("numbers do not end")


def _part(path: Path, ending: str = "") -> Path:
    """Return the path of a temporary file or folder beside another one, however long the name of that is."""
    name, encoded = path.name, os.fsencode(path.name)
    if len(encoded) > LONG:
        name = f"{encoded[:100].decode(errors='ignore')}.{hashlib.sha256(encoded).hexdigest()[:16]}"
    return path.with_name(f".{name}{ending}{PART}")


@contextmanager
def _written(path: Path, fill: Callable[[IO[bytes]], object]) -> Iterator[Path]:
    """Yield a complete, synced file beside `path`; it is removed afterwards unless it was renamed."""
    part = _part(path, f".{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with part.open("xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        yield part
    finally:
        remove(part)


def _rename_to_free(part: Path, path: Path) -> None:
    """Rename a file to a name that must be free; of several attempts at once, one succeeds.

    Raises:
        FileExistsError: it is not free.
    """
    if os.name == "nt":
        _while_in_use(lambda: part.rename(path))  # refuses by itself to replace a file
        return
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: claim the name, then fill it
        path.open("xb").close()
        replace(part, path)


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Create a folder of several files atomically: `fill` writes into a temporary one, which is then renamed.

    A folder that already exists at `path` is moved out of the way first and removed after the rename.
    """
    part = _part(path)
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    try:
        fill(part)
        sync_folder(part)
        if path.exists():
            old = _part(path, ".old")
            replace(path, old)
            replace(part, path)
            _remove_old(old)
        else:
            replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sync_folder(path.parent)


def create_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Create a folder as `write_folder` does, but never over an existing one that has anything in it.

    Raises:
        FileExistsError: the name is taken; the existing folder is untouched.
        OSError: as `write`.
    """
    part = _part(path, f".{secrets.token_hex(4)}")
    part.mkdir(parents=True)
    try:
        fill(part)
        sync_folder(part)
        try:
            replace(part, path)
        except OSError as error:
            if not path.exists():
                raise
            raise FileExistsError(error.errno, error.strerror, path.name) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sync_folder(path.parent)


def replace(source: Path, target: Path) -> None:
    """Rename a file over another one, or a folder to a free name.

    Raises:
        OSError: on Windows also if one of them stays open elsewhere.
    """
    _while_in_use(lambda: source.replace(target))


def remove(path: Path) -> None:
    """Delete a file if it exists.

    Raises:
        OSError: on Windows also if it stays open elsewhere.
    """
    _while_in_use(lambda: path.unlink(missing_ok=True))


def _while_in_use(change: Callable[[], object]) -> None:
    """Make a change to files, on Windows again and again while one of them is open elsewhere."""
    end, wait = time.monotonic() + IN_USE, 0.01
    while True:
        try:
            change()
            return
        except PermissionError:
            if os.name != "nt" or time.monotonic() > end:
                raise
            time.sleep(wait)
            wait = min(2 * wait, 0.3)


def remove_folder(path: Path) -> None:
    """Remove a folder of several files atomically; `remove_leftovers` removes what a crash leaves of it.

    Raises:
        OSError: on Windows also if one of the files is open elsewhere, which may take as long as a download.
    """
    part = _part(path, ".old")
    replace(path, part)
    sync_folder(path.parent)
    _remove_old(part)


def remove_leftovers_of(path: Path) -> None:
    """Remove temporary files that killed processes left of a file in a folder that is not Limner's own.

    Those are spared which may be in use: their process is running, or has written a moment ago, maybe elsewhere.
    """
    start = _part(path).name.removesuffix(PART)
    for part in path.parent.glob(f"{glob.escape(start)}.*{PART}"):
        named = _PART_OF.fullmatch(part.name.removeprefix(start))
        if named and not psutil.pid_exists(int(named[1])) and time.time() - part.stat().st_mtime > MOMENT:
            _remove_old(part)


def remove_leftovers(*folders: Path) -> None:
    """Remove temporary files that a crash left in folders that no other process writes to now."""
    for folder in folders:
        for part in folder.glob(f".*{PART}"):
            _remove_old(part)


def move_to_bin(path: Path, root: Path) -> None:
    """Move a file or folder to the bin of a folder, where it stays for `KEPT` seconds from now."""
    target = root / BIN / f"{path.name}.{time.time_ns()}"
    target.parent.mkdir(parents=True, exist_ok=True)
    os.utime(path)
    replace(path, target)


def binned(root: Path) -> list[Path]:
    """Return what `move_to_bin` has moved, each under its name and the time, the latest first."""
    return sorted((root / BIN).glob("*.*"), key=lambda path: path.suffix, reverse=True)


def empty_bin(folder: Path, kept: float = KEPT) -> None:
    """Remove what has been in the bin of a folder for more than `kept` seconds."""
    for path in (folder / BIN).glob("*"):
        if time.time() - path.lstat().st_mtime > kept:
            _remove_old(path)


def _remove_old(path: Path) -> None:
    """Remove a file or folder that nobody needs; what Windows keeps, as it is open elsewhere, is left for next time."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except PermissionError:
        if os.name != "nt":
            raise


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as `write` does for what it writes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_regular_file(path: Path) -> bool:
    """Return True if a path is a regular file: a link would lead out of its folder, a pipe would never end."""
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


def usable_space(folder: Path) -> int:
    """Return the bytes that uploads may take on the disk that holds `folder`; `RESERVED` of it stays free."""
    return max(0, free_space(folder) - RESERVED)


def free_space(folder: Path) -> int:
    """Return the free bytes on the disk that holds `folder`, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
