"""Paths of home, datasets, outputs and models, and checks of the names that may stand in a path."""

import os
import re
import unicodedata
from pathlib import Path

from trainer.errors import UserError
from trainer.i18n import say

CODE = Path(__file__).resolve().parent.parent  # folder of the packages: where their programs are started
NAME = re.compile(r"[\w-]{1,64}")
CACHE = ".cache"  # folder in a dataset: locks, undo levels, and data that can be computed again


def home() -> Path:
    """Folder that holds `datasets/` and `outputs/`: LIMNER_HOME, else the checkout, else `~/limner`."""
    if named := os.environ.get("LIMNER_HOME"):
        return Path(named)
    if (CODE / "pyproject.toml").is_file():
        return CODE
    return Path.home() / "limner"  # the code is an installed package


def datasets() -> Path:
    """Folder of all data sets."""
    return home() / "datasets"


def outputs() -> Path:
    """Folder of all runs."""
    return home() / "outputs"


def shared() -> Path:
    """Folder of what the people of a server share: the home, or what LIMNER_SHARED names where each has their own."""
    return Path(os.environ.get("LIMNER_SHARED") or home())


def models() -> Path:
    """Folder where base models may be put for everybody to choose."""
    return shared() / "models"


def is_open(path: Path) -> bool:
    """Tell whether a path that a user named may be read: any, but with several users only their own or shared ones."""
    if not os.environ.get("LIMNER_SHARED"):
        return True
    return any(path.resolve().is_relative_to(place.resolve()) for place in (home(), models()))


def uploads() -> Path:
    """Folder where uploads lie until they are taken in."""
    return outputs() / ".tmp"


def check_name(name: str, what: str) -> str:
    """Return `name` if it may stand in a path: letters, digits, `_` and `-`, at most 64.

    Raises:
        UserError: for anything else, `../` and absolute paths among it.
    """
    if not NAME.fullmatch(name):
        shown = name if len(name) <= 40 else name[:40] + "..."
        raise UserError(
            "{shown!r} cannot be the name of a {what}.",
            "Use letters, digits, '-' and '_', at most 64 of them.",
            shown=shown,
            what=say(what),
        )
    return name


def safe_name(text: str, fallback: str) -> str:
    """Turn any text into an allowed name that still resembles it."""
    text = unicodedata.normalize("NFC", text)
    text = re.sub(r"[^\w-]+", "-", text).strip("-_")[:64]
    return text or fallback


def checked_file_name(name: str) -> str:
    """Return the name of a file if it is no more than that: no folder is in it.

    Raises:
        UserError: it would lead elsewhere.
    """
    if not re.fullmatch(r"[\w-][\w .-]{0,199}", name):
        raise UserError(
            "{name!r} cannot be the name of a file.", "Use letters, digits, '-', '_' and '.'.", name=name[:40]
        )
    return name
