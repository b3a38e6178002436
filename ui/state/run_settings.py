"""Settings of runs: what differs from their presets, to be said in a few words and to be used again.

Those in the form are stored field by field, so that two pages of a project keep what is edited in either. Those that
the user saved under a name are in `outputs/.presets/<name>.toml`: what they changed in the form.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import tomlkit

from trainer import config as configs
from trainer import foreign_text, paths, storage
from trainer.config import TrainConfig, comparison
from trainer.data.captions import one_line
from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import Run
from ui.state import order, page_memory, projects
from ui.state.answers import ENTRIES
from ui.state.order import UNKNOWN, Moment
from ui.widgets import settings_form

SAID = 6  # differences in the list of runs
QUESTIONS = ("preset", "name", "base", "trigger", "class")  # answers that a page stores


def own(run: Run, preset: str = "") -> tuple[TrainConfig, dict[str, Any]]:
    """Return the config of a run and, by widget id, what a preset (by default its own) and its base have otherwise.

    Raises:
        UserError: the settings cannot be read.
    """
    return _own(run.config_file, run.config_file.stat().st_mtime_ns, preset)


@lru_cache(maxsize=500)
def _own(file: Path, _changed: int, preset: str) -> tuple[TrainConfig, dict[str, Any]]:
    config = configs.load(file)
    config = config.model_copy(update={"preset": preset or config.preset})
    images = sum(subject.repeats * len(page_memory.captions(subject.dataset)) for subject in config.taught)
    resolved = comparison.resolved(config, images)
    left_out = {entry.id for entry in ENTRIES if ".".join(entry.path) in resolved}
    differences = settings_form.differences(ENTRIES, config)
    return config, {field: value for field, value in differences.items() if field not in left_out}


def store(project: str, fields: Mapping[str, object]) -> None:
    """Store edited fields of a project: answers by their names, and settings by their ids, as a browser reads them.

    Raises:
        UserError: the project or field does not exist, or the value is of another kind.
    """
    projects.folder(project)
    entries = {entry.id: entry for entry in ENTRIES}
    questions, edited = {}, {}
    for field, value in fields.items():
        if field in entries:
            edited[field] = settings_form.parsed(entries[field], value)
        else:
            questions[field] = _question(field, value)
    if not paths.is_name(questions.get("name", "x")):
        del questions["name"]  # the plan says so; the last one that a run can have is kept
    merge(project, edited, questions)


def _question(field: str, value: object) -> str:
    is_text = isinstance(value, str) and len(value) <= settings_form.LONGEST
    is_preset = field != "preset" or value in get_args(configs.Preset)
    if field not in QUESTIONS or not is_text or not is_preset:
        raise UserError("{field!r} cannot be stored.", "Reload the page.", field=field)
    return one_line(paths.unquoted(str(value)))


def merge(
    project: str,
    edited: Mapping[str, object],
    questions: Mapping[str, str] | None = None,
    *,
    sent: Moment = UNKNOWN,
    replaces: bool = False,
) -> None:
    """Change some of a project's stored settings, or replace all; those that have their usual values are not stored.

    What the page has edited since it `sent` this stays.
    """

    def merged() -> dict[str, str]:
        later = order.edited_later(sent, project)
        answers = {name: value for name, value in (questions or {}).items() if name not in later}
        preset, base = (page_memory.answer(project, key) for key in ("preset", "base"))
        chosen = {"preset": preset, "base": base} | answers
        if chosen["preset"] not in get_args(configs.Preset):
            chosen["preset"] = "character"
        usual = settings_form.standard(chosen["preset"], chosen["base"])
        own = settings_form.own_of(ENTRIES, page_memory.settings(project) or {})
        if replaces:
            own = {field: value for field, value in own.items() if field in later}
        own |= {field: value for field, value in edited.items() if field not in later}
        settings = settings_form.partial(ENTRIES, own, usual)
        return {**answers, "settings": json.dumps(settings)}

    if project:
        page_memory.remember_computed(project, merged)


def described(run: Run) -> str:
    """Describe what differs from the preset and the base of a run; "" if nothing does, or it cannot be read."""
    try:
        _config, differing = own(run)
    except (UserError, OSError):
        return ""
    titles = {entry.id: entry.group if entry.path[-1] == "kind" else entry.title for entry in ENTRIES}
    texts = [f"{titles[field]} {comparison.shown(value)}" for field, value in list(differing.items())[:SAID]]
    more = len(differing) - len(texts)
    return ", ".join([*texts, *([_("{n} more", n=more)] if more else [])])


def _folder() -> Path:
    """Return the folder of settings that the user saved."""
    return paths.outputs() / ".presets"


def saved() -> list[str]:
    """Return the names of all saved settings."""
    return sorted(path.stem for path in _folder().glob("*.toml") if paths.is_name(path.stem))


def save(name: str, data: dict[str, Any]) -> None:
    """Save settings; those of the same name are replaced.

    Raises:
        UserError: the name is not allowed.
    """
    path = _folder() / f"{paths.check_name(name.strip(), 'preset')}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write(path, tomlkit.dumps(data))


def load(name: str) -> dict[str, Any]:
    """Return the settings saved under a name.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    try:
        return foreign_text.read_toml(_folder() / f"{paths.check_name(name, 'preset')}.toml")
    except (OSError, ValueError):
        raise UserError(
            "The settings {name!r} cannot be read.", "Choose others, or save them again.", name=name
        ) from None
