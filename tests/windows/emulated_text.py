"""Text of a Western Windows: code page 1252 wherever a program names no encoding, unless Python is in UTF-8 mode."""

import builtins
import io
import locale
import sys
from typing import Any

CODE_PAGE = "cp1252"


def install() -> None:
    """Take the code page for files and for the standard streams, which are pipes."""
    if sys.flags.utf8_mode:
        return
    real_open = io.open

    def open_file(
        file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, *rest: Any, **more: Any
    ) -> Any:
        if "b" not in mode and encoding in (None, "locale"):
            encoding = CODE_PAGE
        return real_open(file, mode, buffering, encoding, *rest, **more)

    builtins.open = io.open = open_file
    locale.getpreferredencoding = lambda do_setlocale=True: CODE_PAGE
    for stream, errors in ((sys.stdin, "strict"), (sys.stdout, "strict"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=CODE_PAGE, errors=errors)
