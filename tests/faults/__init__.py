"""Faults that a test puts into a process from outside: lost power, broken disks, hanging devices.

`injected_faults.py` lists them and replaces functions of the program; `sitecustomize.py`, loaded by each process of a
program that a test starts, does so before the program is imported.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.injected_faults import VARIABLE, install

__all__ = ["environment", "injected", "install"]


def environment(faults: str) -> dict[str, str]:
    """Return the variables of a program that is to have some faults."""
    return {VARIABLE: faults, "PYTHONPATH": str(Path(__file__).parent)}


@contextmanager
def injected(faults: str) -> Iterator[None]:
    """Have some faults in this process, inside the `with`."""
    remove = install(faults)
    try:
        yield
    finally:
        remove()
