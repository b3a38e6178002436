"""Read a recipe: recognize its format by its content, within limits, as it comes from strangers."""

import json
import re
import struct
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml

from trainer.adapter_files import safetensors_reader
from trainer.errors import UserError
from trainer.recipes import ai_toolkit, kohya, kohya_datasets, limner, onetrainer
from trainer.recipes.draft import MAX_DEPTH, Recipe


class Format(Protocol):
    """A format of recipes in tables: a module."""

    def is_recipe(self, data: Mapping[str, Any]) -> bool:
        """Tell whether a table is a recipe of this format."""

    def read(self, data: Mapping[str, Any], images: int) -> Recipe:
        """Read it."""


MAX_BYTES = 512 * 1024
MAX_EVENTS = 20_000  # of a YAML file, which PyYAML reads at some 50,000 a second
FORMATS: tuple[Format, ...] = (ai_toolkit, onetrainer, limner, kohya)
# A key of more dots than any recipe has, which tomllib reads in quadratic time.
_DEEP_KEY = re.compile(
    r"(?<![\w\"'-])(?:[\w-]{1,80}[ \t]*\.[ \t]*|\"[^\"\n]{0,80}\"[ \t]*\.[ \t]*|'[^'\n]{0,80}'[ \t]*\.[ \t]*){16}"
)


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
        path = path / "config.toml"
    try:
        with path.open("rb") as file:
            start = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError("There is no file {name}.", "Check the path.", name=path.name) from None
    except IsADirectoryError:
        raise _not_a_recipe(path) from None
    if _is_safetensors(start):
        return _of_adapter(path, images)
    if len(start) > MAX_BYTES:
        raise UserError("{name} is too large for a recipe.", "Give a settings file.", name=path.name)
    data = _parse(start, path)
    if datasets and kohya_datasets.are_in(data):
        return kohya.read(data, images, datasets=True)
    for form in FORMATS:
        if form.is_recipe(data):
            return form.read(data, images)
    raise _not_a_recipe(path)


def _not_a_recipe(path: Path) -> UserError:
    return UserError(
        "{name} is not a recipe that Limner knows.",
        "Give a settings file of kohya's scripts or GUI, OneTrainer or ai-toolkit, a run folder, or an adapter.",
        name=path.name,
    )


def _is_safetensors(start: bytes) -> bool:
    if len(start) < 9 or start[8:9] != b"{":
        return False
    return bool(struct.unpack("<Q", start[:8])[0] <= safetensors_reader.MAX_HEADER)


def _of_adapter(path: Path, images: int) -> Recipe:
    metadata = safetensors_reader.read(path).metadata
    if data := _toml(metadata.get("limner.config", "")[:MAX_BYTES]):
        return limner.read(data, images)
    if data := _json(metadata.get("ot_config", "")[:MAX_BYTES]):
        return onetrainer.read(data, images)
    if metadata.get("ss_network_module") or metadata.get("ss_network_dim"):
        return kohya.read_metadata(metadata, images)
    raise UserError(
        "{name} does not say how it was trained.",
        "Give an adapter of Limner, kohya's scripts or OneTrainer whose metadata were not removed.",
        name=path.name,
    )


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _not_a_recipe(path) from None
    parsers = (_json,) if text.lstrip()[:1] == "{" else (_toml, _yaml)
    for parse in parsers:
        data = parse(text)
        if data is not None:
            return data
    raise _not_a_recipe(path)


def _json(text: str) -> dict[str, Any] | None:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _toml(text: str) -> dict[str, Any] | None:
    if _DEEP_KEY.search(text):
        return None
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        return None


def _yaml(text: str) -> dict[str, Any] | None:
    """Read YAML without references, which could multiply a small file, and without deep nesting."""
    try:
        depth = 0
        for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > MAX_DEPTH or number > MAX_EVENTS or isinstance(event, yaml.AliasEvent):
                return None
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None
