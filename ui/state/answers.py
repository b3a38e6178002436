"""Answers in the form of the Train tab, and the run that they ask for. The API starts its runs here too."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer import config as configs
from trainer import paths, runs
from trainer.base_models import MICRO
from trainer.config import TrainConfig, base_notes
from trainer.data import checks
from trainer.data.captions import one_line
from trainer.errors import UserError
from ui.state import projects
from ui.state.order import UNKNOWN, Moment
from ui.widgets import settings_form

ENTRIES = settings_form.entries()


@dataclass(frozen=True)
class Answers:
    """The form of the Train tab at one moment; `own` are the settings that the user changed, by widget id.

    `sent` is when the page asked for a change of them, in the order of its acts.
    """

    project: str
    preset: str
    name: str
    trigger: str
    base: str
    own: dict[str, Any]
    sent: Moment = UNKNOWN

    @classmethod
    def from_form(cls, values: Mapping[str, Any]) -> "Answers":
        """Read the values of `train.Tab.form` by name; those of settings by the ids of their widgets."""
        filled = settings_form.Filled(**values["filled"])
        return cls(
            project=values["project"] or "",
            preset=values["preset"],
            name=(values["name"] or "").strip(),
            trigger=one_line(values["trigger"] or ""),
            base=paths.unquoted(values["base"] or "") or MICRO,
            own=settings_form.changed(ENTRIES, filled, [values[entry.id] for entry in ENTRIES]),
            sent=Moment.read(values["sent"]),
        )

    def settings(self) -> dict[str, Any]:
        """Return the changed settings as partial settings."""
        return settings_form.partial(ENTRIES, self.own, settings_form.standard(self.preset, self.base))

    def data(self) -> dict[str, Any]:
        """Return everything that the form asks for as partial settings; an unnamed run is named after its project."""
        about = {
            "name": self.name or self.project,
            "dataset": self.project,
            "preset": self.preset,
            "trigger": self.trigger,
            "model": {"base": self.base},
        }
        return configs.merge(self.settings(), about)

    def about(self) -> dict[str, Any]:
        """Return what any settings are completed by: a preset and a base, for a run that has no name yet."""
        return settings_form.as_settings(self.preset, self.base)

    def notes(self) -> dict[str, Any]:
        """Return which fields are changed and which conflict, as `settings_form.notes`."""
        return settings_form.notes(ENTRIES, self.own, self.data())


def checked_config(project: str, data: dict[str, Any]) -> TrainConfig:
    """Build the config of a run from partial settings, and check the images of its project.

    Raises:
        UserError: a setting is invalid, or the images or the base model cannot be used.
    """
    for problem in checks.examine(projects.folder(project)).problems:
        if problem.fatal:
            raise UserError(problem.message, problem.remedy)
    config = settings_form.build(ENTRIES, data)
    base_notes.check(config)
    return config


def create_run(project: str, data: dict[str, Any], cluster: str = "") -> runs.Run:
    """Create a run of a project from partial settings, for this machine or the cluster at an address.

    Raises:
        UserError: as `checked_config`.
    """
    return runs.create(checked_config(project, data), cluster=cluster)
