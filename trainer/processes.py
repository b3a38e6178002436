"""Start Limner's own programs as processes of their own, in the same way on every system.

They read and write UTF-8, whatever the system's code page. On Windows they open no console window, and Ctrl-C in the
console of the page, or closing it, does not reach them. Here is also what a process sets for itself: output and malloc.
"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, Any

from trainer import paths

NOWHERE = subprocess.DEVNULL
PIPE = subprocess.PIPE
# From glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEPT = 2**30 + 2**29  # bytes that may stay free at the end of the heap
_INCREMENT = 2**26  # bytes by which the heap grows


def start(
    command: Sequence[str],
    *,
    stdin: int = NOWHERE,
    stdout: int | IO[Any] = NOWHERE,
    stderr: int | IO[Any] | None = None,
    outlives: bool = False,
) -> subprocess.Popen[str]:
    """Start a program with a list of arguments, no shell; its pipes are text.

    Args:
        command: the program and its arguments.
        stdin: NOWHERE or PIPE.
        stdout: NOWHERE, PIPE or a file.
        stderr: the same, or None for that of this process.
        outlives: it goes on when this process, its page or its terminal ends.
    """
    options: dict[str, Any] = {}
    if sys.platform == "win32":
        options["creationflags"] = subprocess.CREATE_NO_WINDOW
        if outlives:
            options["creationflags"] |= subprocess.CREATE_NEW_PROCESS_GROUP
    else:
        options["start_new_session"] = outlives
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=paths.CODE,
        env={**os.environ, "PYTHONUTF8": "1"},
        encoding="utf-8",
        **options,
    )


def print_all_letters() -> None:
    """Let `print` escape letters that the code page of standard output lacks, as in a redirected file on Windows."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def tune_malloc() -> bool:
    """Keep freed memory for the next step instead of returning it to the system; return whether it worked.

    By default glibc returns each large block to the kernel and gets it back in the next step, page by page. This is for
    programs that allocate and free much, before the first tensor; there is no effect without glibc.
    """
    library = _glibc()
    if library is None:
        return False
    options = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _KEPT, _TOP_PAD: _INCREMENT}
    return all([library.mallopt(option, value) for option, value in options.items()])


def trim_malloc() -> None:
    """Return free memory to the system after all, so that a process takes only what it uses."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt"):
            return library
    return None
