"""Files that a file for kohya's `--config_file` names: its datasets and its preview prompts.

A recipe may come from a stranger. So what it names is read only if it lies beside it, whatever folder it names.
"""

from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from limner_extensions.recipes import kohya
from trainer import foreign_text, storage
from trainer.i18n import _

DATASETS, PROMPTS = "dataset_config", "sample_prompts"
SUFFIXES = {DATASETS: (".toml", ".json"), PROMPTS: (".txt",)}


def follow(data: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return a recipe with what the files that it names beside it, in a folder, say; and notes about each."""
    merged, notes = dict(data), list[str]()
    for key, value in kohya.lifted(data).items():
        if key not in SUFFIXES or not isinstance(value, str) or not value.strip() or "\n" in value:
            continue
        file = folder / PureWindowsPath(value.strip()).name  # also understands slashes
        if file.suffix.lower() not in SUFFIXES[key]:
            if key == PROMPTS and file.suffix.lower() not in SUFFIXES[DATASETS]:
                continue  # a prompt
        elif storage.is_regular_file(file):
            try:
                merged = _without(merged, key) | _read(key, file)
                notes.append(_("{key} is read from {file}, beside the recipe.", key=key, file=file.name))
            except (OSError, foreign_text.ForeignTextError):
                notes.append(_("{key} names {file}, which cannot be read.", key=key, file=file.name))
            continue
        notes.append(_("{key} names a file that is not beside the recipe. Put it there to have it read.", key=key))
    return merged, notes


def _read(key: str, file: Path) -> dict[str, Any]:
    """Return what a file adds to a recipe.

    Raises:
        ForeignTextError: it is not such a file.
        OSError: it cannot be read.
    """
    if key == PROMPTS:
        return {PROMPTS: foreign_text.read_text(file) + "\n"}  # several lines are never taken for the name of a file
    table = foreign_text.read_json(file) if file.suffix.lower() == ".json" else foreign_text.read_toml(file)
    if not isinstance(table, dict):
        raise foreign_text.ForeignTextError("it is not a table")
    return {name: value for name, value in table.items() if name in ("general", "datasets")}


def _without(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a recipe without a setting, in whichever section it is."""
    return {
        name: _without(value, key) if isinstance(value, Mapping) else value
        for name, value in data.items()
        if name != key
    }
