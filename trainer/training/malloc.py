"""Tune malloc for programs that allocate and free much; called once, before the first tensor.

By default glibc returns each large block to the kernel and gets it back in the next step, page by page. There is no
effect without glibc.
"""

import ctypes
import sys

# From glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEPT = 2**30 + 2**29  # bytes that may stay free at the end of the heap
_INCREMENT = 2**26  # bytes by which the heap grows


def tune() -> bool:
    """Keep freed memory for the next step instead of returning it to the system; return whether it worked."""
    library = _glibc()
    if library is None:
        return False
    options = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _KEPT, _TOP_PAD: _INCREMENT}
    return all([library.mallopt(option, value) for option, value in options.items()])


def trim() -> None:
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
