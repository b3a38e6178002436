"""Files as on Windows: nothing that is open or mapped is replaced, renamed or deleted, and some names do not exist.

An audit hook sees what Python is about to do and refuses it. Only files below one folder are protected, against the
processes that are registered there: all that load this kit.
"""

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OWN = ".emulation"  # folder with the numbers of the registered processes, and the log of what was refused
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)( *\..*)?", re.IGNORECASE)
FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]|[. ]$')
UNIX_ONLY = ".filelock-probe-"  # files of a library that it makes nowhere else
IN_USE = "The process cannot access the file because it is being used by another process"


@dataclass(frozen=True)
class Disk:
    """The folder that is protected."""

    root: str

    @property
    def own(self) -> str:
        """The folder of the emulation itself, which is not protected."""
        return os.path.join(self.root, OWN)

    def inside(self, path: Any) -> str:
        """Return the absolute path of a file on the disk; "" for any other."""
        if isinstance(path, int) or path is None:
            return ""
        absolute = os.path.abspath(os.fsdecode(path))
        if not absolute.startswith(self.root + os.sep) or absolute.startswith(self.own) or UNIX_ONLY in absolute:
            return ""
        return absolute

    def on_open(self, path: Any, mode: str | None, flags: int) -> None:
        """Refuse to create a file under a wrong name, or to open a folder."""
        if not self.inside(path):
            return
        creates = any(letter in mode for letter in "wxa") if mode else bool(flags & os.O_CREAT)
        (self.check_new if creates else self.check_name)(path)
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)

    def on_rename(self, source: Any, target: Any) -> None:
        """Refuse to rename what is open, or over what is open or a folder."""
        self.check_new(target, instead_of=self.inside(source))
        self.check_free(source)
        if self.inside(target) and os.path.isdir(target) and not os.path.samefile(source, target):
            raise PermissionError(errno.EACCES, "Access is denied", os.fspath(target))
        self.check_free(target)

    def check_free(self, path: Any) -> None:
        """Refuse to touch a file that a process has open, or a folder with one; write down that it was refused."""
        absolute = self.inside(path)
        holder = next(_holders(self.own, absolute), None) if absolute else None
        if holder is None:
            return
        log = os.open(os.path.join(self.own, "violations"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(log, f"{os.getpid()} {absolute} {holder}\n".encode())
        os.close(log)
        error = PermissionError(errno.EACCES, IN_USE, absolute)
        error.winerror = 32  # type: ignore[attr-defined]
        raise error

    def check_name(self, path: Any) -> None:
        """Refuse names that Windows does not have."""
        absolute = self.inside(path)
        for part in absolute[len(self.root) + 1 :].split(os.sep):
            if RESERVED.fullmatch(part) or FORBIDDEN.search(part):
                raise OSError(errno.EINVAL, "Invalid argument", absolute)

    def check_new(self, path: Any, instead_of: str = "") -> None:
        """Refuse, besides, a name that differs from one that is there only in case, but for the one it replaces."""
        self.check_name(path)
        absolute = self.inside(path)
        if not absolute or os.path.lexists(absolute):
            return
        folder, name = os.path.split(absolute)
        for other in _names(folder):
            if other.lower() == name.lower() and os.path.join(folder, other) != instead_of:
                raise FileExistsError(errno.EEXIST, "File exists", absolute)


def install(folder: Path) -> None:
    """Register this process and protect the disk from it."""
    disk = Disk(os.path.realpath(folder))
    os.close(os.open(os.path.join(disk.own, str(os.getpid())), os.O_CREAT | os.O_WRONLY))
    hooks: dict[str, Any] = {
        "open": disk.on_open,
        "os.rename": lambda source, target, *_: disk.on_rename(source, target),
        "os.mkdir": lambda path, *_: disk.check_new(path),
        "os.link": lambda _, target, *__: disk.check_new(target),
        "os.remove": lambda path, *_: disk.check_free(path),
        "os.rmdir": lambda path, *_: disk.check_free(path),
    }

    def heed(event: str, args: tuple[Any, ...]) -> None:
        if event in hooks:
            hooks[event](*args)

    sys.addaudithook(heed)
    shutil._use_fd_functions = False  # Windows has no functions relative to an open folder
    real_rename = os.rename

    def rename(source: Any, target: Any, **more: Any) -> None:
        if disk.inside(target) and os.path.lexists(target) and not os.path.samefile(source, target):
            raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", os.fspath(target))
        real_rename(source, target, **more)

    os.rename = rename


def _holders(own: str, path: str) -> Iterator[int]:
    """Yield the registered processes that have a file open or mapped, or one in a folder."""
    for name in filter(str.isdigit, os.listdir(own)):
        opened = [_target(f"/proc/{name}/fd/{number}") for number in _names(f"/proc/{name}/fd")]
        if any(file == path or file.startswith(path + os.sep) for file in opened) or _is_mapped(name, path):
            yield int(name)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # a process that has ended, or no such folder
        return []


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _is_mapped(process: str, path: str) -> bool:
    try:
        with open(f"/proc/{process}/maps", "rb") as maps:
            text = maps.read()
    except OSError:
        return False
    name = os.fsencode(path)
    return any(ending in text for ending in (name + b"\n", name + b"/"))
