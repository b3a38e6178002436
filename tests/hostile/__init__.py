"""Odd and hostile files, names and settings, made by ourselves, each with what must become of it."""

from dataclasses import dataclass

MARK = "limner-hostile-marker"  # what code inside a file would create in the temporary folder


@dataclass(frozen=True)
class Taken:
    """It is kept; `size` and the colours at the top left and the bottom right are as a viewer shows them."""

    size: tuple[int, int] = (80, 60)
    first: tuple[int, int, int] | None = None
    last: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Refused:
    """It is left out, and these words say why."""

    words: str
