"""Paths of home, datasets, outputs and models, and checks of the names that may stand in a path."""

import itertools
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from trainer.errors import UserError
from trainer.i18n import _

CODE = Path(__file__).resolve().parent.parent  # folder of the packages: where their programs are started
_NAME = re.compile(r"[\w-]{1,64}")
# Names of devices on Windows, whatever extension follows. Refused everywhere, as folders are copied between machines.
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])( *\..*)?", re.IGNORECASE)
CACHE = ".cache"  # folder in a dataset: locks, undo levels, checksums, and data that can be computed again


def home() -> Path:
    """Return the folder that holds `datasets/` and `outputs/`: LIMNER_HOME, else the checkout, else `~/limner`."""
    if named := os.environ.get("LIMNER_HOME"):
        return Path(named)
    if (CODE / "pyproject.toml").is_file():
        return CODE
    return Path.home() / "limner"  # the code is an installed package


def datasets() -> Path:
    """Return the folder of all datasets."""
    return home() / "datasets"


def make_cache(folder: Path, name: str = "") -> Path:
    """Return a dataset's cache or a folder in it, made if missing; FileNotFoundError if the dataset itself is gone."""
    (folder / CACHE).mkdir(exist_ok=True)
    (folder / CACHE / name).mkdir(exist_ok=True)
    return folder / CACHE / name


def outputs() -> Path:
    """Return the folder of all runs."""
    return home() / "outputs"


def shared() -> Path:
    """Return the folder of base models and card locks, which servers may share: LIMNER_SHARED, else the home."""
    return Path(os.environ.get("LIMNER_SHARED") or home())


def adapters() -> Path:
    """Return the folder of adapter files that belong to no run: dropped on the page, or written by one of its tools."""
    return outputs() / ".adapters"


def models() -> Path:
    """Return the folder of base models."""
    return shared() / "models"


def unquoted(text: str) -> str:
    """Return a path as it was typed, without the quotation marks that Windows' "Copy as path" puts around it."""
    text = text.strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def uploads() -> Path:
    """Return the folder where uploads are kept until they are imported."""
    return outputs() / ".tmp"


def sample_images() -> Path:
    """Return the folder of images that were generated in the Try out tab."""
    return outputs() / ".pictures"


def is_name(name: str) -> bool:
    """Return True if a name is valid in a path on every system: at most 64 letters, digits, `_` and `-`, no device."""
    return bool(_NAME.fullmatch(name)) and not is_device(name)


def is_device(name: str) -> bool:
    """Return True if Windows takes a file name, with or without an extension, for a device."""
    return bool(_DEVICE.fullmatch(name))


def check_name(name: str, kind: str) -> str:
    """Return `name` if it may stand in a path, as `is_name` tells.

    Raises:
        UserError: for anything else, including `../` and absolute paths.
    """
    if not is_name(name):
        raise UserError(
            "{name!r} is not a valid name for a {kind}.",
            "Use letters, digits, '-' and '_', at most 64, but not the name of a Windows device such as con.",
            name=name if len(name) <= 40 else name[:40] + "...",
            kind=_(kind),
        )
    return name


def safe_name(text: str, fallback: str) -> str:
    """Turn any text into an allowed name that still resembles it."""
    text = unicodedata.normalize("NFC", text)
    text = re.sub(r"[^\w-]+", "-", text).strip("-_")[:64]
    return f"{text}_" if is_device(text) else text or fallback


def numbered(name: str) -> Iterator[str]:
    """Yield a name and then, for where it is taken, the same with a number: `kim`, `kim-2`, `kim-3`."""
    yield name
    for number in itertools.count(2):
        yield f"{name[:58]}-{number}"


def check_file_name(name: str) -> str:
    """Return the name of a file if it has no folder in it and can be that of a file on every system.

    Raises:
        UserError: it would lead elsewhere, or names a device on Windows.
    """
    if not re.fullmatch(r"[\w-]([\w .-]{0,198}[\w-])?", name) or is_device(name):
        raise UserError("{name!r} is not a valid file name.", "Use letters, digits, '-', '_' and '.'.", name=name[:40])
    return name
