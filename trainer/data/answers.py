"""Answers about a dataset on the page: trigger word, name, preset and so on; its settings in a backup.

The page remembers them in `outputs/.page.json`. Those that came with a backup lie in the dataset's cache, so that no
other process writes to the page's file, and count until the page remembers others.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer import foreign_text, paths, storage

PAGE = ".page.json"


def remembered() -> dict[str, Any]:
    """Return what the page remembers, with the answers of each project that are whole."""
    data = _read(paths.outputs() / PAGE)
    stored = data.get("answers")
    if not isinstance(stored, dict):
        stored = {}
    return data | {"answers": {project: answers for project, answers in stored.items() if isinstance(answers, dict)}}


def of(project: str) -> dict[str, str]:
    """Return the answers of a project: those that the page remembers, and else those of its backup."""
    imported = _read(_file(paths.datasets() / project)) if paths.is_name(project) else {}
    answers = imported | remembered()["answers"].get(project, {})
    return {str(key): str(value) for key, value in answers.items()}


def keep(folder: Path, answers: Mapping[str, str]) -> None:
    """Keep the answers that came with a backup of a dataset."""
    _file(folder).parent.mkdir(exist_ok=True)
    storage.write(_file(folder), json.dumps(dict(answers)))


def _file(folder: Path) -> Path:
    return folder / paths.CACHE / "answers.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        data = foreign_text.read_json(path)
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
