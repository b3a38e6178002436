"""Read a recipe: recognize its format by its content, within limits, as it comes from strangers."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any, Protocol

from limner_extensions.recipes import ai_toolkit, kohya, limner, onetrainer
from limner_extensions.recipes.draft import Recipe
from limner_extensions.recipes.kohya import dataset_config
from trainer import foreign_text, storage
from trainer.adapter_files import safetensors_reader
from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import Run

DATASETS, PROMPTS = "dataset_config", "sample_prompts"
SUFFIXES = {DATASETS: (".toml", ".json"), PROMPTS: (".txt",)}


class Format(Protocol):
    """A format of recipes in tables: a module."""

    def is_recipe(self, data: Mapping[str, Any]) -> bool:
        """Return True if a table is a recipe of this format."""

    def read(self, data: Mapping[str, Any], images: int) -> Recipe:
        """Read it."""


FORMATS: tuple[Format, ...] = (ai_toolkit, onetrainer, limner, kohya)


def read(path: Path, images: int = 0, *, datasets: bool = False) -> Recipe:
    """Read the recipe of a settings file, a run folder or an adapter file.

    Args:
        path: Settings of kohya's scripts or their GUI, of OneTrainer, ai-toolkit or Limner; a run folder; an adapter.
        images: Number of images that will be trained, for recipes that count epochs; 0 = unknown.
        datasets: Whether to read the datasets that a file of kohya's scripts names, too.

    Raises:
        UserError: it is none of these, too large, damaged, or for a model that Limner does not train.
    """
    if path.is_dir():
        path = Run(path).config_file
    try:
        with path.open("rb") as file:
            start = file.read(foreign_text.MAX_SETTINGS + 1)
    except FileNotFoundError:
        raise UserError("There is no file {name}.", "Check the path.", name=path.name) from None
    except IsADirectoryError:
        raise _not_a_recipe(path) from None
    if _is_safetensors(start):
        return _of_adapter(path, images)
    if len(start) > foreign_text.MAX_SETTINGS:
        raise UserError("{name} is too large for a recipe.", "Give a settings file.", name=path.name)
    data = _parse(start, path)
    form = next((form for form in FORMATS if form.is_recipe(data)), None)
    if form is kohya or (datasets and dataset_config.are_in(data)):
        data, notes = follow_files(data, path.parent)
        recipe = kohya.read(data, images, datasets=datasets)
        return replace(recipe, notes=(*notes, *recipe.notes))
    if form is None:
        raise _not_a_recipe(path)
    return form.read(data, images)


def _not_a_recipe(path: Path) -> UserError:
    return UserError(
        "{name} is not a recipe that Limner knows.",
        "Give a settings file of kohya's scripts or GUI, OneTrainer or ai-toolkit, a run folder, or an adapter.",
        name=path.name,
    )


def _is_safetensors(start: bytes) -> bool:
    if len(start) < 9 or start[8:9] != b"{":
        return False
    return bool(struct.unpack("<Q", start[:8])[0] <= foreign_text.MAX_HEADER)


def _of_adapter(path: Path, images: int) -> Recipe:
    metadata = safetensors_reader.read(path).metadata
    if data := _table(foreign_text.parse_toml, metadata.get("limner.config", "")):
        return limner.read(data, images)
    if data := _table(foreign_text.parse_json, metadata.get("ot_config", "")):
        return onetrainer.read(data, images)
    if metadata.get("ss_network_module") or metadata.get("ss_network_dim"):
        return kohya.read_metadata(metadata, images)
    raise UserError(
        "{name} does not say how it was trained.",
        "Give an adapter of Limner, kohya's scripts or OneTrainer whose metadata were not removed.",
        name=path.name,
    )


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    is_json = content.decode("utf-8-sig", errors="replace").lstrip()[:1] == "{"
    for parse in (foreign_text.parse_json,) if is_json else (foreign_text.parse_toml, foreign_text.parse_yaml):
        if data := _table(parse, content):
            return data
    raise _not_a_recipe(path)


def _table(parse: Callable[[bytes | str], Any], content: bytes | str) -> dict[str, Any]:
    """Return the table that a text holds; {} if it holds none."""
    try:
        data = parse(content)
    except foreign_text.ForeignTextError:
        return {}
    return data if isinstance(data, dict) else {}


# Files that a file for kohya's `--config_file` names: datasets and preview prompts. A recipe may come from a stranger,
# so what it names is read only if it lies beside it, whatever folder it names.


def follow_files(data: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
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
                merged = _without(merged, key) | _read_file(key, file)
                notes.append(_("{key} is read from {file}, beside the recipe.", key=key, file=file.name))
            except (OSError, foreign_text.ForeignTextError):
                notes.append(_("{key} names {file}, which cannot be read.", key=key, file=file.name))
            continue
        notes.append(_("{key} names a file that is not beside the recipe. Put it there to have it read.", key=key))
    return merged, notes


def _read_file(key: str, file: Path) -> dict[str, Any]:
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
