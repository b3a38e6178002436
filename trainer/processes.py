"""Start Limner's own programs as processes of their own, in the same way on every system.

They read and write UTF-8, whatever the system's code page. On Windows they open no console window, and Ctrl-C in the
console of the page, or closing it, does not reach them.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, Any

from trainer import paths

NOWHERE = subprocess.DEVNULL
PIPE = subprocess.PIPE


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
