"""Tune malloc for programs that allocate and free much; called once, before the first tensor.

By default glibc returns each large block to the kernel and gets it again in the next step, page by page. No effect
where there is no glibc.
"""

import ctypes
import sys

# From glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEPT = 2**30 + 2**29  # bytes that may lie free at the end of the heap
_STEP = 2**26  # bytes by which the heap grows


def tune() -> bool:
    """Keep freed memory for the next step instead of giving it back; returns whether that could be said."""
    library = _glibc()
    if library is None:
        return False
    said = (library.mallopt(_MMAP_MAX, 0), library.mallopt(_TRIM_THRESHOLD, _KEPT), library.mallopt(_TOP_PAD, _STEP))
    return all(said)


def trim() -> None:
    """Give back what is free all the same, so that what a process takes is what it uses."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None
