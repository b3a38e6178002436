"""UserError, whose message is shown to the user; and what errors of the system mean: memory, disk, files in use."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from trainer.i18n import _

Change = dict[str, float | str | list[int]]  # suggested settings, by their path
OUT_OF_MEMORY = re.compile(
    "out.of.(device.|host.)?memory|out_of_resources"  # anybody's; that of Intel and AMD
    "|status_?alloc_?failed|_allocation_failed|status_not_initialized|unable to find an engine"  # cuBLAS, cuDNN, MIOpen
    "|(nvml_success == r|expandable_segment_) internal assert"  # torch, in its place (pytorch 112377, 119452)
    "|invalid buffer size"  # Metal
    "|defaultcpuallocator|not enough memory|cannot allocate memory|bad_alloc|error 1455",  # the last is of Windows
    re.IGNORECASE,
)


class UserError(Exception):
    """Something that the user can change: what is wrong, and what to do about it.

    The page shows both sentences; the command line prints them and ends with exit code 2. They are translated here;
    with `values` they are templates, as in `i18n._`. Neither sentence contains a traceback, a secret, or a path outside
    the user's own data. `change` are suggested settings, by their path: the page offers to train again with them.
    `template` is the message in English, without values, by which the documentation is found.
    """

    def __init__(self, message: str, remedy: str, change: Change | None = None, /, **values: object) -> None:
        self.message, self.remedy = _(message, **values), _(remedy, **values)
        self.template = message
        super().__init__(f"{self.message} {self.remedy}".strip())
        self.change = dict(change or {})


def explain_disk(error: BaseException) -> UserError | None:
    """Explain an error of the disk; return None if it is another one."""
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError("The disk is full.", "Free some space, then resume or try again: what was there is kept.")
    if error.errno == errno.EIO:
        return UserError(
            "The disk cannot be read or written to.",
            "Check the disk and its connection, then resume or try again: what was there is kept.",
        )
    return None


@contextmanager
def explaining_files_in_use() -> Iterator[None]:
    """Explain why a folder cannot be moved: on Windows, while one of its files is open.

    Raises:
        UserError: it is.
    """
    try:
        yield
    except PermissionError:
        raise UserError(
            "Some of these files are in use, or may not be changed.",
            "Close the programs that have them open, wait for downloads, then try again.",
        ) from None


def is_out_of_memory(error: Exception) -> bool:
    """Return True if an error means out of memory. Allocators and libraries have no common class for it."""
    if type(error).__name__ in ("MemoryError", "OutOfMemoryError"):
        return True
    return OUT_OF_MEMORY.search(str(error)) is not None
