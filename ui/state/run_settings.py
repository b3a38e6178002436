"""Settings of runs: what differs from their presets, to be said in a few words and to be used again."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from trainer import config as configs
from trainer.config import TrainConfig, comparison
from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import Run
from ui.state import page_memory
from ui.state.answers import ENTRIES
from ui.widgets import settings_form

SAID = 6  # differences in the list of runs


def own(run: Run) -> tuple[TrainConfig, dict[str, Any]]:
    """Return the config of a run, and the settings in it that are not those of its preset and base, by widget id.

    Raises:
        UserError: the settings cannot be read.
    """
    return _own(run.config_file, run.config_file.stat().st_mtime_ns)


@lru_cache(maxsize=500)
def _own(file: Path, _changed: int) -> tuple[TrainConfig, dict[str, Any]]:
    config = configs.load(file)
    images = sum(subject.repeats * len(page_memory.captions(subject.dataset)) for subject in config.taught)
    resolved = comparison.resolved(config, images)
    left_out = {entry.id for entry in ENTRIES if ".".join(entry.path) in resolved}
    found = settings_form.differences(ENTRIES, config)
    return config, {field: value for field, value in found.items() if field not in left_out}


def described(run: Run) -> str:
    """Describe what differs from the preset and the base of a run; "" if nothing does, or it cannot be read."""
    try:
        _config, differing = own(run)
    except (UserError, OSError):
        return ""
    titles = {entry.id: entry.group if entry.path[-1] == "kind" else entry.title for entry in ENTRIES}
    said = [f"{titles[field]} {comparison.shown(value)}" for field, value in list(differing.items())[:SAID]]
    more = len(differing) - len(said)
    return ", ".join([*said, *([_("{n} more", n=more)] if more else [])])
