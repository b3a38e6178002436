"""The form of tab 2 as it stands: the answers of a person, and the settings that they ask for."""

from dataclasses import dataclass
from typing import Any

from trainer import config as configs
from trainer.base_models import MICRO
from trainer.config import TrainConfig
from trainer.data.captions import one_line
from ui.widgets import settings_form

ENTRIES = settings_form.entries()


@dataclass(frozen=True)
class Answers:
    """The form as it stands; `own` are the settings that the person changed, by the id of their widget."""

    project: str
    preset: str
    name: str
    trigger: str
    base: str
    own: dict[str, Any]

    @classmethod
    def of(cls, project: str | None, preset: str, name: str | None, *given: Any) -> "Answers":  # noqa: ANN401 - values of the form
        """Take the components' values, in the order of `Tab.answers`."""
        trigger, base, filled, *values = given
        own = settings_form.changed(ENTRIES, settings_form.Filled(**filled), values)
        base = (base or "").strip() or MICRO
        return cls(project or "", preset, (name or "").strip(), one_line(trigger or ""), base, own)

    def settings(self) -> dict[str, Any]:
        """Return the partial settings of the form's widgets."""
        return settings_form.partial(ENTRIES, self.own, settings_form.standard(self.preset, self.base))

    def data(self) -> dict[str, Any]:
        """Return all that the form asks for as partial settings."""
        about = {"name": self.name, "dataset": self.project, "preset": self.preset, "trigger": self.trigger}
        return configs.merge(self.settings(), about | {"model": {"base": self.base}})


def settings(answers: Answers) -> TrainConfig:
    """The full config that the form asks for.

    Raises:
        UserError: something in it cannot be used; it is named.
    """
    return settings_form.build(ENTRIES, answers.data())
