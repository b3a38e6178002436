"""Settings that the user saved under a name, in `outputs/.presets/<name>.toml`: what they changed in the form."""

from pathlib import Path
from typing import Any

import tomlkit

from trainer import foreign_text, paths, storage
from trainer.errors import UserError


def folder() -> Path:
    """Return the folder of saved settings."""
    return paths.outputs() / ".presets"


def names() -> list[str]:
    """Return the names of all saved settings."""
    return sorted(path.stem for path in folder().glob("*.toml") if paths.is_name(path.stem))


def save(name: str, data: dict[str, Any]) -> None:
    """Save settings; those of the same name are replaced.

    Raises:
        UserError: the name is not allowed.
    """
    path = folder() / f"{paths.check_name(name.strip(), 'preset')}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write(path, tomlkit.dumps(data))


def load(name: str) -> dict[str, Any]:
    """Return the settings saved under a name.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    try:
        return foreign_text.read_toml(folder() / f"{paths.check_name(name, 'preset')}.toml")
    except (OSError, ValueError):
        raise UserError(
            "The settings {name!r} cannot be read.", "Choose others, or save them again.", name=name
        ) from None
